"""Which task is begun next, how often one may die, and what a worker's last word means. Shared by all executors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from prunedeploy.study.rows.rows import CellKey
from prunedeploy.study.sweep.tasks import CellDone, CellFailed, Event, StageDone, Task
from prunedeploy_engines.errors import ConfigError, StoreError

DEATHS_ALLOWED = 3


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


def order(task: Task) -> dict[str, Any]:
    """A task as a worker reads it, plain JSON."""
    return {key: value for key, value in asdict(task).items() if key != "missing"}
