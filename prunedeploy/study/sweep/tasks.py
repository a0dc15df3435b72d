"""What an executor is given, what it says, and what an executor is.

A task is plain text and numbers, so that it can go to another process or machine as JSON.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from prunedeploy.study.rows.rows import CellKey

Phase = Literal["train", "time"]


@dataclass(frozen=True)
class Task:
    """A cell that is to be trained and evaluated, or whose latency is to be measured.

    Attributes:
        cell: Configuration, ratio, run.
        phase: What is to be done.
        is_reference: It is the network as given.
        configuration: `BuildConfig` as JSON.
        store: Folder of the stage store.
        missing: Digests of the stages that the store did not have when the task was made. Of two tasks that miss the
            same one, the second is not begun before the first has it.
    """

    cell: CellKey
    phase: Phase
    is_reference: bool
    configuration: str
    store: str
    missing: frozenset[str] = frozenset()


@dataclass(frozen=True)
class StageDone:
    """A stage is in the store.

    Attributes:
        cell: That asked for it.
        name: Name of the stage.
        digest: Digest of its key.
        computed: It was not there before.
        seconds: What computing it took.
    """

    cell: CellKey
    name: str
    digest: str
    computed: bool
    seconds: float


@dataclass(frozen=True)
class CellDone:
    """A task is done; ``values`` are fields of its row."""

    cell: CellKey
    values: dict[str, Any]


@dataclass(frozen=True)
class CellFailed:
    """A task cannot be done; ``error`` says why, in one line."""

    cell: CellKey
    error: str


Event = StageDone | CellDone | CellFailed


class Executor(Protocol):
    """Works off tasks. What is not closed at the end may leave processes behind."""

    def prepare(self, tasks: int) -> None:
        """Begin what takes time before the first task can be done.

        Args:
            tasks: About so many will come.
        """
        return

    def close(self) -> None:
        """End what was kept for more tasks."""
        return

    def run(self, tasks: Sequence[Task]) -> Generator[Event, None, None]:
        """Do all tasks, in an order of the executor's choice; closing the iterator ends what still runs.

        A task whose process dies is given out again, a few times.

        Raises:
            StoreError: No task can go on: the disk is full.
        """
        ...
