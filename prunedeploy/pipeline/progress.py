"""How long it still takes: a bar on a terminal, now and then a line elsewhere; never on standard output.

Use it like this::

    with progress.task("fine-tune", total=steps) as advance:
        for step in range(steps):
            advance(1, loss=loss)
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import ProgressColumn

SECONDS_BETWEEN_LINES = 5.0


class Advance(Protocol):
    """What a task hands out to be called whenever something of it is done."""

    def __call__(self, n: int = 1, /, **values: float) -> None:
        """Report that ``n`` more units are done; ``values``, such as a loss, are shown beside the bar."""
        ...


class Progress(Protocol):
    """Where long work says how far it is."""

    def task(self, description: str, total: int, done: int = 0) -> AbstractContextManager[Advance]:
        """Show a task while the ``with`` block runs.

        Args:
            description: Two or three words.
            total: Units in all; 0 if there is nothing to do, of which nothing is shown.
            done: Units that an earlier run has done; they do not count for the speed.
        """
        ...

    def message(self, text: str) -> None:
        """Show one line that stays."""
        ...


def make_progress(stream: TextIO | None = None, *, quiet: bool = False) -> Progress:
    """Return what suits a stream: bars if it is a terminal, lines if not, nothing but messages if quiet.

    Args:
        stream: Standard error if None.
        quiet: No tasks, only messages.
    """
    stream = sys.stderr if stream is None else stream
    if quiet:
        return LineProgress(stream, seconds_between_lines=float("inf"), announce=False)
    return BarProgress(stream) if stream.isatty() else LineProgress(stream)


class LineProgress:
    """Log lines: one when a task starts, one when it ends, and in between at most one every few seconds.

    Args:
        stream: To write to.
        seconds_between_lines: Seconds between the lines of one task.
        announce: Write the first and the last line of a task.
        clock: Seconds, rising; replaced in tests.
    """

    def __init__(
        self,
        stream: TextIO,
        seconds_between_lines: float = SECONDS_BETWEEN_LINES,
        announce: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream
        self._interval = seconds_between_lines
        self._announce = announce
        self._clock = clock

    @contextmanager
    def task(self, description: str, total: int, done: int = 0) -> Iterator[Advance]:
        """Show a task; see `Progress.task`."""
        if total == 0:
            yield _nothing_to_report
            return
        started = last = self._clock()
        first, now = done, done
        if self._announce:
            self.message(f"{description}: {total - done} to do" + (f", {done} done before" if done else ""))

        def advance(n: int = 1, /, **values: float) -> None:
            nonlocal now, last
            now += n
            time_now = self._clock()
            if time_now - last < self._interval or now >= total:
                return
            last = time_now
            left = (time_now - started) / max(1, now - first) * (total - now)
            share = f"{now}/{total} ({100 * now // max(1, total)} %)"
            shown = "".join(f", {name} {value:.4g}" for name, value in values.items())
            self.message(f"{description}: {share}, {duration(left)} left{shown}")

        yield advance
        if self._announce:
            self.message(f"{description}: {now}/{total} in {duration(self._clock() - started)}")

    def message(self, text: str) -> None:
        """Write one line."""
        print(text, file=self._stream, flush=True)


class BarProgress:
    """Bars on a terminal, one per task that runs, with the time left.

    Args:
        stream: A terminal.
    """

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console

        self._console = Console(file=stream)
        self._bars: RichProgress | None = None

    @contextmanager
    def task(self, description: str, total: int, done: int = 0) -> Iterator[Advance]:
        """Show a task; see `Progress.task`."""
        from rich.progress import Progress as RichProgress

        if total == 0:
            yield _nothing_to_report
            return
        outermost = self._bars is None
        # With rich's redirection, what is printed on stdout (the document of --json) would go to the bars.
        bars = self._bars or RichProgress(*_columns(), console=self._console, transient=True, redirect_stdout=False)
        if outermost:
            self._bars = bars
            bars.start()
        task = bars.add_task(description, total=total, completed=done, values="")
        started, now = time.monotonic(), done

        def advance(n: int = 1, /, **values: float) -> None:
            nonlocal now
            now += n
            shown = " ".join(f"{name} {value:.4g}" for name, value in values.items())
            bars.update(task, completed=now, values=shown) if shown else bars.update(task, completed=now)

        finished = False
        try:
            yield advance
            finished = True
        finally:
            bars.remove_task(task)
            if outermost:
                bars.stop()
                self._bars = None
            if finished:
                self.message(f"{description}: {now}/{total} in {duration(time.monotonic() - started)}")

    def message(self, text: str) -> None:
        """Write one line above the bars."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def _nothing_to_report(n: int = 1, /, **values: float) -> None:
    """Be the `Advance` of a task of no units."""


def _columns() -> list[ProgressColumn]:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

    return [
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[values]}", markup=False),
    ]


def duration(seconds: float) -> str:
    """Return seconds as ``m:ss`` or ``h:mm:ss``."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"
