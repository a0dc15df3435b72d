"""How the rows of a benchmark are called and coloured in pictures and on the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prunedeploy_engines.bench.document import Row, varying
from prunedeploy_engines.markup.svg import COLOURS

SHAPES = {"fp32": "circle", "fp16": "square", "int8": "triangle"}
OTHER_SHAPE = "diamond"

_NAMED = ("device", "runtime", "provider", "precision", "batch", "threads", "kind", "flood")


@dataclass(frozen=True)
class Palette:
    """Colours by device where there are several, else by runtime.

    Attributes:
        key: ``"device"`` or ``"runtime"``.
        colours: By the value of that key.
    """

    key: str
    colours: Mapping[str, str]

    def colour(self, row: Row) -> str:
        """The colour of a row."""
        return self.colours[str(row.get(self.key))]


def palette_of(rows: Sequence[Row]) -> Palette:
    """Choose the colours."""
    key = "device" if varying(rows, ("device",)) else "runtime"
    names = dict.fromkeys(str(row.get(key)) for row in rows)
    return Palette(key, {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(names)})


def shape_of(row: Row) -> str:
    """Marker of a row's precision."""
    return SHAPES.get(str(row.get("precision")), OTHER_SHAPE)


def setting_words(row: Row, keys: Sequence[str]) -> list[str]:
    """A row's settings in words."""
    threads = row.get("threads")
    special = {
        "precision": precision_in_words(row),
        "batch": f"batch {row.get('batch')}",
        "threads": "one thread per core" if threads is None else f"{threads} thread{'s' * (threads > 1)}",
        "kind": str(row.get("kind")).replace("_", "-"),
        "flood": None if row.get("flood") is None else f"flooded by {row['flood']}",
    }
    return [str(word) for key in keys if (word := special.get(key, row.get(key))) is not None]


def row_labels(rows: Sequence[Row], *, without: Sequence[str] = ()) -> list[str]:
    """What tells the rows of a model apart; ``without`` some settings, e.g. those that a colour shows."""
    keys = [key for key in varying(rows, _NAMED) if key not in without]
    return [", ".join(setting_words(row, keys)) for row in rows]


def common_settings(rows: Sequence[Row]) -> str:
    """What all rows have in common, in words."""
    different = varying(rows, _NAMED)
    keys = [key for key in _NAMED if key not in different and (key != "provider" or rows[0].get(key) != "cpu")]
    return ", ".join(setting_words(rows[0], keys))


def precision_in_words(row: Mapping[str, Any]) -> str:
    """A precision and what it is really computed in: ``int8``, ``int8 (97 %)`` or ``fp32 (runs in bf16)``."""
    precision, shares = row.get("precision"), row.get("computes_in")
    if not precision:
        return "-"
    if not shares:
        return str(precision)
    real = max(shares, key=lambda name: float(shares[name]))
    if real != precision:
        return f"{precision} (runs in {real})"
    return str(precision) if shares[real] > 0.999 else f"{precision} ({100 * shares[real]:.0f} %)"
