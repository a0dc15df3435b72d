"""Reading what the system says of itself, in files and through the makers' programs; what cannot be read is None."""

from __future__ import annotations

import subprocess
from collections.abc import Collection
from pathlib import Path


def read_text(path: str | Path) -> str | None:
    """Content of a file without what surrounds it; None if there is none."""
    try:
        return Path(path).read_text(errors="replace").strip("\0\n ") or None
    except OSError:
        return None


def answer_of(*command: str) -> str | None:
    """What a program prints; None if it is not there, fails, or takes longer than 10 s."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None


def nvidia_gpus(fields: Collection[str], layout: str) -> list[dict[str, str]]:
    """What ``nvidia-smi`` tells of each GPU.

    Args:
        fields: Fields of its ``--query-gpu``; the keys of the result.
        layout: Its ``--format``.
    """
    answer = answer_of("nvidia-smi", f"--query-gpu={','.join(fields)}", f"--format={layout}") or ""
    rows = [[field.strip() for field in line.split(",")] for line in answer.splitlines()]
    return [dict(zip(fields, row, strict=True)) for row in rows if len(row) == len(fields)]
