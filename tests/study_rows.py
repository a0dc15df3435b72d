"""Rows of made-up studies for the tests of `prunedeploy.study`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from prunedeploy.resources import asset_path
from prunedeploy.study.rows.rows import Row

HASH = "c" * 64


def row(configuration: str = "structured-scaled", ratio: float = 0.5, run: int = 0, **values: Any) -> Row:
    """A row of machine m1 with a mAP of .3, unless values say something else."""
    if "error" not in values:
        values = {"map_pgd": 0.3, **values}
    if values.get("time_ms") is not None:
        values = {"machine": "m1", "runtime": "onnxruntime", **values}
    return Row(configuration=configuration, ratio=ratio, run=run, **{"configuration_hash": HASH, **values})


def grid(cells: Mapping[tuple[str, float], Sequence[float]], field: str = "map_pgd", **more: Any) -> list[Row]:
    """A row per value: ``{(configuration, ratio): values of runs 0, 1, ...}``."""
    return [
        row(name, ratio, run, **{"map_pgd": None, field: value, **more})
        for (name, ratio), values in cells.items()
        for run, value in enumerate(values)
    ]


def printed_p_values() -> dict[str, dict[str, list[float]]]:
    """Those that the paper prints, by table (I to IV) and label of the pair, one per ratio, ascending."""
    tables: dict[str, dict[str, list[float]]] = json.loads(asset_path("paper-appendix.json").read_text())["anova"]
    return tables
