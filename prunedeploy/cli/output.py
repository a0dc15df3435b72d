"""What a command prints: one JSON document on stdout and nothing else, or text for people."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TextIO

import click

MISSING = "-"


@contextlib.contextmanager
def quiet_stdout() -> Iterator[TextIO]:
    """Send whatever is printed meanwhile, also by C libraries and child processes, to stderr.

    Yields:
        What still leads to stdout.
    """
    saved, stdout = None, sys.stdout
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        if sys.stdout.fileno() == 1:  # not so under a test runner, which has put something else there
            saved = os.dup(1)
            os.dup2(2, 1)
            stdout = os.fdopen(saved, "w", encoding=stdout.encoding, errors=stdout.errors, closefd=False)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield stdout
    finally:
        if saved is not None:
            os.dup2(saved, 1)
            os.close(saved)


def print_json(document: object, *, indent: int | None = 2, file: TextIO | None = None) -> None:
    """Print a document on stdout or another file; what JSON does not have, such as NaN, becomes null.

    JSON is UTF-8 (RFC 8259): where stdout has another encoding, as on Windows, or a name is not text at all, everything
    that is not ASCII is escaped.
    """
    from prunedeploy.report.format import without_nan

    plain = without_nan(document)
    text = json.dumps(plain, indent=indent, ensure_ascii=False, allow_nan=False)
    encoding = (getattr(file or sys.stdout, "encoding", None) or "utf-8").lower()
    try:
        text.encode("utf-8" if encoding in ("utf-8", "utf8") else "ascii")
    except UnicodeEncodeError:
        text = json.dumps(plain, indent=indent, allow_nan=False)
    click.echo(text, file=file)


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1, file: TextIO | None = None
) -> None:
    """Print an aligned table.

    Args:
        columns: Headings.
        rows: Cells, as many as there are headings.
        left: So many columns are aligned on the left; the others, numbers, on the right.
        file: Where to; None is stdout.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for number, name in enumerate(columns):
        text = number < left
        table.add_column(Text(name), justify="left" if text else "right", no_wrap=not text, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console = Console(file=file or sys.stdout, highlight=False)
    if not console.is_terminal:  # a file or a pipe has no width: nothing is folded
        console.width = 400
    with console.capture() as captured:
        console.print(table)
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()), file=file)


def number(value: object, digits: int = 3) -> str:
    """Return a number with this many decimals, ``-`` for None."""
    return f"{value:.{digits}f}" if isinstance(value, (int, float)) and math.isfinite(value) else MISSING


def amount(value: object) -> str:
    """Return a count with a decimal prefix, e.g. ``2.3 M``; ``-`` for None."""
    if not isinstance(value, (int, float)):
        return MISSING
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.3g} {prefix}"
    return f"{value:g}"


def size(value: float) -> str:
    """Return bytes with a decimal prefix, e.g. ``9.2 MB``."""
    for factor, prefix in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= factor:
            return f"{value / factor:.1f} {prefix}"
    return f"{value:.0f} B"


def comma_list(text: str, name: str, allowed: Sequence[str] | None = None) -> list[str]:
    """Split ``a,b`` and check each part.

    Args:
        text: What was given.
        name: Name of the option, for the message.
        allowed: What a part may be; None: anything.

    Raises:
        click.UsageError: Nothing is left, or a part is not allowed.
    """
    parts = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    wrong = [part for part in parts if allowed is not None and part not in allowed]
    if wrong or not parts:
        what = f"{wrong[0]!r} is not known" if wrong else "is empty"
        choices = f"; choose from {', '.join(allowed)}" if allowed is not None else ""
        raise click.UsageError(f"{name} {what}{choices}")
    return parts


def whole_numbers(text: str, name: str) -> list[int]:
    """Split ``1,8`` into whole numbers of at least 1.

    Raises:
        click.UsageError: A part is none.
    """
    parts = comma_list(text, name)
    for part in parts:
        if not part.isdecimal() or int(part) < 1:
            raise click.UsageError(f"{name} {part!r} is not a whole number of at least 1")
    return [int(part) for part in parts]
