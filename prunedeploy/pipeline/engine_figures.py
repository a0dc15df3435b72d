"""What figures of an engine are called, and which of them is the lowest: what `evaluate` and a build's rows share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunedeploy.evaluation import Evaluation, figure_name


def named_figures(found: Evaluation) -> tuple[dict[str, float | None], dict[str, list[float] | None]]:
    """Figures of one runner and their intervals; names of those made with another model end in ``_transfer``."""
    own = ("clean", *map(figure_name, found.queries))  # no figures of transfer

    def named(key: str) -> str:
        return f"{key}_transfer" if found.transfer and not any(one in key for one in own) else key

    figures = {named(key): value for key, value in found.metrics().items()}
    return figures, {named(key): None if one is None else [one.low, one.high] for key, one in found.intervals().items()}


def lowest_of(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """Which attack leaves an engine least.

    Args:
        row: mAPs of the same images by their names (other keys do not matter), and ``intervals``.

    Returns:
        ``map``; ``attack``, the name that it has among the figures, such as ``pgd_adaptive``; ``interval``. Where an
        ensemble's is that of one of its attacks, the ensemble. None if there is no mAP of attacked images.
    """
    maps = {
        key.removeprefix("map_"): float(value)
        for key, value in row.items()
        if key.startswith("map_") and "clean" not in key and "_conf50" not in key and value is not None
    }
    if not maps:
        return None
    attack = min(maps, key=lambda name: (maps[name], not name.startswith("ensemble")))
    ends = row.get("intervals") or {}
    # Rows of engines have the intervals of transfer under the network's own names.
    interval = ends.get(f"map_{attack}", ends.get(f"map_{attack.removesuffix('_transfer')}"))
    return {"map": maps[attack], "attack": attack, "interval": interval}
