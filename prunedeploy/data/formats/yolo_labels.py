"""One label file of YOLO: where it is, and the boxes in it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from prunedeploy.data.formats.labels import LabelledBox, read_text
from prunedeploy.data.records import Problem
from prunedeploy_engines.errors import DataError

NORMALISED_AT_MOST = 1.5
"""A number above this is no share of an image that somebody rounded, but a number of pixels."""


def label_files(image: Path) -> Iterator[Path]:
    """Where an image's labels may be: ``labels`` in the place of ``images`` or ``JPEGImages``, then beside it."""
    parts = image.parts
    for name in ("images", "JPEGImages"):
        if name in parts[:-1]:
            last = len(parts) - 1 - parts[::-1].index(name)
            yield Path(*parts[:last], "labels", *parts[last + 1 :]).with_suffix(".txt")
    yield image.with_suffix(".txt")


def read_label_file(
    path: Path, height: int, width: int, classes: int, problems: list[Problem], keypoints: bool = False
) -> Iterator[LabelledBox]:
    """Read the objects of one image.

    Args:
        path: Its label file.
        height: Height of the image in pixels.
        width: The same.
        classes: Number of classes.
        problems: Lines that cannot be read are added.
        keypoints: See `YoloLayout`.

    Raises:
        DataError: The file cannot be read.
    """
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            class_id, *numbers = [float(word) for word in line.split()]
            box = _box(numbers[:4] if keypoints else numbers, height, width)
            if not (class_id.is_integer() and 0 <= class_id < classes):
                raise DataError(
                    f"has class {class_id:g}, of {classes}",
                    fix=f"give 0 to {classes - 1}, or add the name of the class",
                )
        except ValueError:
            problems.append(
                Problem(
                    path,
                    f"line {number} holds something that is not a number: {line[:60]}",
                    "correct or remove it",
                    "box",
                    "line that holds something that is not a number",
                )
            )
        except DataError as error:
            problems.append(Problem(path, f"line {number} {error.what}", str(error.fix), "box"))
        else:
            yield LabelledBox(path, f"line {number}", int(class_id), box)


def _box(numbers: Sequence[float], height: int, width: int) -> tuple[float, float, float, float]:
    """The box in pixels of ``cx cy w h``, or around a polygon."""
    polygon = len(numbers) >= 6 and len(numbers) % 2 == 0
    if len(numbers) != 4 and not polygon:
        what = f"has {len(numbers) + 1} numbers"
        raise DataError(what, fix="give class, cx, cy, w, h, or the class and three points or more")
    if not all(math.isfinite(number) for number in numbers):
        raise DataError("has NaN or infinity", fix="correct or remove it")
    if max(map(abs, numbers)) > NORMALISED_AT_MOST:
        raise DataError(f"has {max(numbers, key=abs):g}", fix="divide by the image's width and height: 0 to 1")
    if polygon:
        xs, ys = numbers[::2], numbers[1::2]
        left, top, right, bottom = min(xs), min(ys), max(xs), max(ys)
        return left * width, top * height, (right - left) * width, (bottom - top) * height
    cx, cy, w, h = numbers
    return (cx - w / 2) * width, (cy - h / 2) * height, w * width, h * height
