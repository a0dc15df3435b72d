"""What a TensorRT library says while it works.

Neither library raises: a failed call returns None, False or -1 and tells its logger why. So the logger here
collects, and what it collected becomes one line.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

Progress = Callable[[str, int, int], None]


class LogMessages(list[str]):
    """Errors that a library logged, in order.

    Attributes:
        warnings: Its warnings. They need no line of their own, but some of them announce a wrong engine.
    """

    def __init__(self) -> None:
        super().__init__()
        self.warnings: list[str] = []


@lru_cache(maxsize=2)
def library_logger(name: str) -> Any:
    """One logger per library and process: TensorRT keeps the first and ignores others while it lives."""
    trt = importlib.import_module(name)

    class CollectingLogger(trt.ILogger):  # type: ignore[misc, name-defined]
        """Hands errors and warnings to whoever collects; what is less is not worth a line."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._sinks: list[LogMessages] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                for sink in self._sinks:
                    sink.append(message)
            elif severity == trt.ILogger.Severity.WARNING:
                for sink in self._sinks:
                    sink.warnings.append(message)

        @contextmanager
        def collect(self) -> Iterator[LogMessages]:
            """Errors and warnings that arrive inside the block, in order; of all threads."""
            sink = LogMessages()
            self._sinks = [*self._sinks, sink]
            try:
                yield sink
            finally:
                self._sinks = [other for other in self._sinks if other is not sink]

    return CollectingLogger()


def progress_monitor(trt: Any, progress: Progress) -> Any:
    """A library's progress monitor that reports the outermost phase.

    Args:
        trt: The library's module.
        progress: Called with (phase, steps done, steps in all). If it raises, the build stops and the
            exception waits in the monitor's ``failure``: it must not pass through the C++ that called us.
    """

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        """See `progress_monitor`."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.failure: BaseException | None = None
            self._totals: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self._totals[phase_name] = num_steps
                self._report(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name in self._totals and step + 1 < self._totals[phase_name]:
                self._report(phase_name, step + 1)
            return self.failure is None

        def phase_finish(self, phase_name: str) -> None:
            if phase_name in self._totals:
                self._report(phase_name, self._totals[phase_name])

        def _report(self, phase: str, done: int) -> None:
            try:
                if self.failure is None:
                    progress(phase, done, self._totals[phase])
            except BaseException as error:  # noqa: BLE001
                self.failure = error

    return Monitor()


def summarise(messages: list[str], limit: int = 600) -> str:
    """Collected messages as one line: no duplicates, no frames around nodes, no echo of the missing driver.

    Without a GPU every error is followed by a second one from ``catchCudaError`` that only says so; it is
    left out unless nothing else was said.

    Args:
        messages: What `CollectingLogger.collect` gathered.
        limit: Longest result, in characters.
    """
    unique = list(dict.fromkeys(" ".join(message.split()) for message in messages))
    unique = [message for message in unique if "--- Begin node" not in message and "--- End node" not in message]
    said = [message for message in unique if "catchCudaError" not in message] or unique
    line = " | ".join(said) or "it gave no reason"
    return line if len(line) <= limit else line[: limit - 3] + "..."
