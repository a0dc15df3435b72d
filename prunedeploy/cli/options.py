"""What the options of several commands have in common."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

PATH = click.Path(path_type=Path)
FILE = click.Path(path_type=Path, dir_okay=False)
AT_LEAST_ONE = click.IntRange(1)
POSITIVE = click.FloatRange(0, min_open=True)
FRACTION = click.FloatRange(0, 1)
PRECISIONS = ("fp32", "fp16", "int8")
RESUMED_FROM = ("results/*", "checkpoints/*/*")
"""Where a store has what an interrupted command goes on with."""
RUNTIMES = ("onnxruntime", "openvino", "tensorrt")

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def count_option(
    name: str, text: str, *, default: int | None = None, least: int = 1, most: int | None = None
) -> Decorator:
    """Add an option whose value is a whole number ``N``."""
    return click.option(name, type=click.IntRange(least, most), default=default, metavar="N", help=text)


def store_option(text: str, name: str = "store") -> Decorator:
    """Add ``--store``, passed under a name."""
    return click.option("--store", name, type=PATH, default=Path("runs/.store"), metavar="DIR", help=text)
