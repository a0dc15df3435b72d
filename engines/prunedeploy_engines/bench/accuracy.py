"""Which of a bundle's recorded accuracies belongs to a row of a benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def accuracy_of(metrics: Mapping[str, Any], *, precision: str, runtime: str, file: str | None) -> dict[str, Any]:
    """Clean and robust mAP of a model file of a bundle.

    What was measured with this very file comes first, then with another file of the same precision; on the same
    runtime before another one. An fp32 model without an entry has the accuracy of the PyTorch network that it was
    exported from. Attacked images are in all cases those that PGD made against the fp32 parent.

    Args:
        metrics: ``metrics`` of ``bundle.json``; keys may be missing.
        precision: Precision of the row.
        runtime: Runtime of the row.
        file: Name of the model in the bundle.

    Returns:
        ``map_clean``, ``map_pgd``, ``map_pgd_interval`` (95 %, [low, high]) and ``map_source`` in words; None where
        the bundle does not say.
    """
    entries = [
        entry
        for entry in _list(metrics.get("engines"))
        if entry.get("precision") == precision and _number(entry.get("map_clean")) is not None
    ]
    if entries:
        best = max(entries, key=lambda one: (_same_file(one.get("file"), file), one.get("runtime") == runtime))
        return {
            "map_clean": _number(best.get("map_clean")),
            "map_pgd": _number(best.get("map_pgd_transfer")),
            "map_pgd_interval": _interval(best, "map_pgd_transfer") or _interval(best, "map_pgd"),
            "map_source": f"{best.get('runtime')} {precision}, images attacked on the fp32 network",
        }
    if precision != "fp32" or _number(metrics.get("map_clean")) is None:
        return {"map_clean": None, "map_pgd": None, "map_pgd_interval": None, "map_source": None}
    return {
        "map_clean": _number(metrics.get("map_clean")),
        "map_pgd": _number(metrics.get("map_pgd")),
        "map_pgd_interval": _interval(metrics, "map_pgd"),
        "map_source": "the fp32 network in PyTorch",
    }


def _list(value: Any) -> list[Mapping[str, Any]]:
    return [entry for entry in value if isinstance(entry, Mapping)] if isinstance(value, list) else []


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _same_file(entry: Any, file: str | None) -> bool:
    return file is not None and isinstance(entry, str) and entry.rpartition("/")[2] == file.rpartition("/")[2]


def _interval(entry: Mapping[str, Any], key: str) -> list[float] | None:
    intervals = entry.get("intervals")
    interval = intervals.get(key) if isinstance(intervals, Mapping) else None
    numbers = [_number(value) for value in interval] if isinstance(interval, list) else []
    return [value for value in numbers if value is not None] if len(numbers) == 2 and None not in numbers else None
