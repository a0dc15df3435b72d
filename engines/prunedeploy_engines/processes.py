"""Python processes of our own beside this one, which answer on their stdout."""

from __future__ import annotations

import os
import signal
import sys


def same_imports() -> dict[str, str]:
    """Environment in which a child imports from where this process does, a test's additions included."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}


def stdout_for_answers() -> int:
    """In the child: a descriptor for the answers, and descriptor 1 sent to stderr.

    Libraries that print must not come between the answers.
    """
    answers = os.dup(1)
    os.dup2(2, 1)
    return answers


def how_it_ended(code: int, stderr: bytes) -> str:
    """For people, as ``"exit code 1, MemoryError"``.

    Args:
        code: As `subprocess.Popen.returncode`: negative is a signal's.
        stderr: What the process printed; its last line is told.
    """
    how = f"exit code {code}" if code >= 0 else f"signal {_signal_name(-code)}"
    lines = stderr.decode(errors="replace").strip().splitlines()
    return how + (f", {lines[-1].strip()}" if lines else "")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return str(number)
