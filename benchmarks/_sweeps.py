"""What the programs that measure sweeps share: a small study's data and configuration, and the command on them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from prunedeploy.data.demo import DemoSettings, write_demo
from prunedeploy.study.rows.file import read_rows
from prunedeploy.study.rows.rows import Row

MEASURED = ("ratio_achieved", "params", "map_pgd", "map_clean", "map_pgd_conf50", "map_clean_conf50")
"""Columns of a study's table that do not depend on how long something took."""


def write_study(folder: Path, text: str, scenes: DemoSettings) -> None:
    """Write ``study.yaml``, in whose text ``{data}`` stands for the data set, and that data set."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.yaml").write_text(text.format(data=write_demo(folder / "scenes", scenes)), encoding="utf-8")


def command(study: Path, folder: Path, workers: int, *more: str) -> list[str]:
    """``prunedeploy sweep`` of a study's folder, with store and rows in another one."""
    places = ["--config", str(study / "study.yaml"), "--store", str(folder / "store"), "--out", str(folder / "out")]
    return [sys.executable, "-m", "prunedeploy.cli", "sweep", *places, "--workers", str(workers), *more]


def start(arguments: Sequence[str], folder: Path) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own; what it says goes to ``log.txt``."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(arguments, stdout=log, stderr=log, start_new_session=True)


def must_end_well(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Wait for a program; end this one if it failed."""
    if process.wait() != 0:
        sys.exit(f"{folder} ended with {process.returncode}:\n{(folder / 'log.txt').read_text()[-2000:]}")


def rows_of(folder: Path) -> list[Row]:
    """The rows of a sweep, in the order of their file."""
    return list(read_rows(folder / "out" / "rows.jsonl").rows)
