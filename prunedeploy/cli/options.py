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
RUNTIMES = ("onnxruntime", "openvino", "tensorrt")


def store_option(text: str, name: str = "store") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add ``--store``, passed under a name."""
    return click.option("--store", name, type=PATH, default=Path("runs/.store"), metavar="DIR", help=text)
