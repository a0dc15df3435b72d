"""What an executor is given, what it says, what an executor is, and what all of them share: `TaskQueue`.

A task is plain text and numbers, so that it can go to another process or machine as JSON.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

from prunedeploy.study.rows.rows import CellKey
from prunedeploy_engines.errors import ConfigError, StoreError

Phase = Literal["train", "time"]
DEATHS_ALLOWED = 3


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

    def order(self) -> dict[str, Any]:
        """The task as a worker reads it, plain JSON."""
        return {key: value for key, value in asdict(self).items() if key != "missing"}


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
            tasks: About this many will come.
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


class TaskQueue:
    """Tasks that are still to be begun; false when there are none.

    Args:
        tasks: In the order they are begun in, as far as one does not have to wait for another.
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._waiting = list(tasks)
        self._deaths = Counter[CellKey]()
        self._done: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def next(self, running: Iterable[Task]) -> Task | None:
        """Take the first task that needs nothing which is being made: another one would only wait for it.

        Args:
            running: Tasks that were taken and have not ended.
        """
        being_made = frozenset[str]().union(*(task.missing for task in running)) - self._done
        for number, task in enumerate(self._waiting):
            if not task.missing & being_made:
                return self._waiting.pop(number)
        return None

    def event(self, task: Task, message: Mapping[str, Any]) -> Event:
        """What a worker has said of its task.

        Raises:
            StoreError: No task can go on: the disk is full.
            ConfigError: No task can go on: the worker is not what the driver needs.
        """
        if "stage" in message:
            self._done.add(message["stage"]["digest"])
            return StageDone(cell=task.cell, **message["stage"])
        if "stop" in message:
            raise StoreError(message["stop"])
        if "unfit" in message:
            raise ConfigError(message["unfit"])
        if "failed" in message:
            return CellFailed(task.cell, message["failed"])
        return CellDone(task.cell, message["done"])

    def died(self, task: Task, how: str) -> CellFailed | None:
        """Put a task back whose process has ended, or give it up.

        Args:
            task: It was running.
            how: It ended, for people.
        """
        self._deaths[task.cell] += 1
        if self._deaths[task.cell] < DEATHS_ALLOWED:
            self._waiting.insert(0, task)
            return None
        return CellFailed(task.cell, f"its process ended {DEATHS_ALLOWED} times, {how}")
