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
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

Advance = Callable[..., None]
"""``advance(n, **values)``: ``n`` more units are done; ``values``, such as a loss, are shown beside the bar."""


class Progress:
    """Where long work says how far it is: bars if the stream is a terminal, lines if not.

    A bar has the time left, and goes when its task ends. Lines say that a task starts, and every few seconds how far it
    is. Either way a line stays that says what a finished task took.

    Args:
        stream: Standard error if None.
        quiet: No tasks, only messages.
        seconds_between_lines: Seconds between the lines of one task.
    """

    def __init__(
        self, stream: TextIO | None = None, *, quiet: bool = False, seconds_between_lines: float = 5.0
    ) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._quiet = quiet
        self._interval = seconds_between_lines
        self._on_terminal = not quiet and self._stream.isatty()
        self._bars: Bars | None = None

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Advance]:
        """Show a task while the ``with`` block runs.

        Args:
            description: Two or three words.
            total: Units in all; 0 if there is nothing to do, of which nothing is shown.
        """
        if total == 0 or self._quiet:
            yield lambda n=1, /, **values: None
            return
        started, now = time.monotonic(), 0
        with self._bar(description, total) if self._on_terminal else self._lines(description, total) as show:

            def advance(n: int = 1, /, **values: float) -> None:
                nonlocal now
                now += n
                show(now, [f"{name} {value:.4g}" for name, value in values.items()])

            yield advance
        self.message(f"{description}: {now}/{total} in {duration(time.monotonic() - started)}")

    def message(self, text: str) -> None:
        """Show one line that stays."""
        if self._bars is not None:
            self._bars.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=self._stream, flush=True)

    @contextmanager
    def _lines(self, description: str, total: int) -> Iterator[Callable[[int, list[str]], None]]:
        started = last = time.monotonic()
        self.message(f"{description}: {total} to do")

        def show(now: int, values: list[str]) -> None:
            nonlocal last
            time_now = time.monotonic()
            if time_now - last < self._interval or now >= total:
                return
            last = time_now
            left = duration((time_now - started) / max(1, now) * (total - now))
            self.message(", ".join([f"{description}: {now}/{total} ({100 * now // total} %)", f"{left} left", *values]))

        yield show

    @contextmanager
    def _bar(self, description: str, total: int) -> Iterator[Callable[[int, list[str]], None]]:
        outermost = self._bars is None
        bars = self._bars = self._bars or _bars(self._stream)
        if outermost:
            bars.start()
        task = bars.add_task(description, total=total, values="")

        def show(now: int, values: list[str]) -> None:
            if values:
                bars.update(task, values=" ".join(values))
            bars.update(task, completed=now)

        try:
            yield show
        finally:
            bars.remove_task(task)
            if outermost:
                bars.stop()
                self._bars = None


def _bars(stream: TextIO) -> Bars:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[values]}", markup=False),
        console=Console(file=stream),
        transient=True,
        # With rich's redirection, what is printed on stdout (the document of --json) would go to the bars.
        redirect_stdout=False,
    )


def duration(seconds: float) -> str:
    """Return seconds as ``m:ss`` or ``h:mm:ss``."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"
