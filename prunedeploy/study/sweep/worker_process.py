"""A worker process seen from outside; see `prunedeploy.study.sweep.worker` for what it says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from prunedeploy_engines.processes import same_imports

SECONDS_TO_STOP = 20.0
"""How long a worker that is told to end may take to tidy up."""


class WorkerProcess:
    """A process that works off tasks, one at a time.

    Args:
        errors: Where its standard error goes, as `subprocess.Popen` takes it.
        threads: Threads of PyTorch in it; other libraries get as many.
        folder: It runs in; None: this process's own.

    Attributes:
        ended: Its output has ended, and so has it.
    """

    def __init__(self, errors: IO[bytes] | int, threads: int, folder: Path | None = None) -> None:
        self.ended = False
        self._rest = b""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "prunedeploy.study.sweep.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**same_imports(), "OMP_NUM_THREADS": str(threads)},
            cwd=folder,
            start_new_session=True,  # Ctrl-C in the terminal is for the driver, which stops its workers in order
        )

    @property
    def output(self) -> int:
        """Descriptor to select on."""
        assert self.process.stdout is not None
        return self.process.stdout.fileno()

    def give(self, order: Mapping[str, Any]) -> None:
        """Hand it a task; if it is dead, that is seen when its output is read."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(order).encode() + b"\n")
            self.process.stdin.flush()

    def messages(self) -> list[dict[str, Any]]:
        """What it has said, without waiting; sets `ended` at the end of its output."""
        data = os.read(self.output, 1 << 16)
        self.ended = not data
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def how_it_ended(self) -> str:
        """For people."""
        code = self.process.wait()
        if code == -signal.SIGKILL:
            return "killed (by hand, or because memory was used up)"
        return f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}; see workers.log"


def stop(pool: Sequence[WorkerProcess]) -> None:
    """End workers by the end of their input, which interrupts busy ones, and kill what does not listen."""
    for worker in pool:
        assert worker.process.stdin is not None
        with suppress(BrokenPipeError):
            worker.process.stdin.close()
    deadline = time.monotonic() + SECONDS_TO_STOP
    for worker in pool:
        try:
            worker.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()
        for stream in (worker.process.stdout, worker.process.stderr):
            if stream is not None:
                stream.close()
