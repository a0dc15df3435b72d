"""`prunedeploy detect` on images: one after the other, drawn into a folder, printed as tables."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prunedeploy.cli.output import print_table
from prunedeploy_engines.errors import DataError

if TYPE_CHECKING:
    from prunedeploy_engines.detection.detections import Detections

Detect = Callable[[Any], "Detections"]
"""Pixels, ``(H, W, 3)`` uint8 RGB, to what is in them."""


def image_paths(given: Sequence[Path]) -> list[Path]:
    """Files to read: those that were given, and of a folder its images by name.

    Raises:
        DataError: A folder has no images.
    """
    from prunedeploy_engines.detection.images import image_files

    return [file for path in given for file in (image_files(path) if path.is_dir() else [path])]


def detect_images(images: Sequence[Path], detect: Detect, out: Path | None, *, say_speed: bool) -> list[dict[str, Any]]:
    """Find objects in images.

    Args:
        images: Files.
        detect: Finds them in one.
        out: Folder for the images with boxes drawn; None draws none.
        say_speed: Say in the end how fast it went.

    Returns:
        A row for each; one that cannot be read has ``error``.
    """
    names = _drawn_names(images)
    begun = time.monotonic()
    with progress(len(images), "images") as advance:
        rows = []
        for image in images:
            rows.append(_detect(image, detect, None if out is None else out / names[image]))
            advance()
    if say_speed:
        click.echo(speed(len(images), "image", time.monotonic() - begun), err=True)
    return rows


def speed(count: int, what: str, seconds: float) -> str:
    """How fast it went, in words."""
    per_s = count / seconds if seconds else 0.0
    return f"{count} {what}{'s' * (count != 1)} in {seconds:.1f} s, {per_s:.1f} per second end to end"


@contextmanager
def progress(total: int | None, label: str, *, hidden: bool = False) -> Iterator[Callable[[], None]]:
    """Show a bar on a terminal while the ``with`` block runs; nothing elsewhere, or for a single step.

    Args:
        total: Steps; None if nobody knows.
        label: What they are.
        hidden: Show nothing, since lines are printed on the same terminal.

    Yields:
        Call it after each step.
    """
    if hidden or not sys.stderr.isatty() or total == 1:
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as bars:
        task = bars.add_task(label, total=total)
        yield lambda: bars.advance(task)


def _detect(image: Path, detect: Detect, drawn: Path | None) -> dict[str, Any]:
    from prunedeploy_engines.detection.images import read_image

    try:
        pixels = read_image(image)
    except DataError as error:
        return {"image": str(image), "error": str(error)}
    found = detect(pixels)
    row: dict[str, Any] = {
        "image": str(image),
        "width": pixels.shape[1],
        "height": pixels.shape[0],
        "detections": found.to_rows(),
    }
    if drawn is not None:
        import io

        from PIL import Image

        from prunedeploy_engines.detection.drawing import draw_detections
        from prunedeploy_engines.files import write_atomically

        png = io.BytesIO()
        Image.fromarray(draw_detections(pixels, found)).save(png, "PNG")
        write_atomically(drawn, png.getvalue())
        row["drawn"] = str(drawn)
    return row


def _drawn_names(images: Sequence[Path]) -> dict[Path, str]:
    """Name the drawn file of each image; images of the same name from several folders get numbers."""
    names: dict[Path, str] = {}
    for image in dict.fromkeys(images):
        name, number = f"{image.stem}.png", 1
        while name in names.values():
            number += 1
            name = f"{image.stem}-{number}.png"
        names[image] = name
    return names


def print_rows(rows: Sequence[dict[str, Any]]) -> None:
    """Print a table for each image that could be read."""
    for row in rows:
        if "error" in row:
            continue
        count = len(row["detections"])
        where = f" -> {row['drawn']}" if "drawn" in row else ""
        click.echo(f"{row['image']} ({row['width']} x {row['height']}): {count} detection{'s' * (count != 1)}{where}")
        if count:
            places = ("x_min", "y_min", "width", "height")
            cells = [
                [f"  {found['class_name']}", f"{found['score']:.3f}", *(f"{found[key]:.0f}" for key in places)]
                for found in row["detections"]
            ]
            print_table(["  class", "score", "x", "y", "width", "height"], cells)
