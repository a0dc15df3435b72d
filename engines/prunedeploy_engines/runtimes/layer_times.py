"""What a runtime's own profiler says about single layers, in one form for all runtimes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

LayerExecution = tuple[str, str, str | None, float]
"""Name, kind, precision and milliseconds of one execution of a layer."""


@dataclass(frozen=True)
class LayerTime:
    """One row of a profile.

    Attributes:
        name: Name of the layer, as the runtime calls it after its own fusions.
        kind: Operator or kernel, e.g. ``"QLinearConv"``.
        precision: What the layer computes in, e.g. ``"int8"``; None where the runtime does not tell.
        mean_ms: Milliseconds per run of the model.
        share: Share of the time of all layers, in [0, 1].
        runs: Over how many runs of the model the mean is.
    """

    name: str
    kind: str
    precision: str | None
    mean_ms: float
    share: float
    runs: int = 1


def ranked_layers(times: Iterable[LayerExecution], runs: int, top: int | None = None) -> list[LayerTime]:
    """Add up the times of every layer and sort, the one that costs most first.

    Args:
        times: Every execution of every layer. What shares name, kind and precision is one layer.
        runs: How often the model ran meanwhile.
        top: How many rows to return; None is all. A row's share is of all layers, whatever is returned.

    Raises:
        ValueError: ``runs`` is not at least 1.
    """
    if runs < 1:
        raise ValueError(f"runs must be at least 1, got {runs}")
    totals: dict[tuple[str, str, str | None], float] = defaultdict(float)
    for name, kind, precision, milliseconds in times:
        totals[name, kind, precision] += milliseconds
    total = sum(totals.values()) or 1.0
    rows = [LayerTime(*layer, time / runs, time / total, runs) for layer, time in totals.items()]
    return sorted(rows, key=lambda row: -row.mean_ms)[:top]


def convolution_shares(precisions: Iterable[str | None]) -> dict[str, float] | None:
    """Share of convolutions by precision, each convolution counting the same; None without convolutions."""
    counts = Counter("unknown" if precision is None else precision for precision in precisions)
    total = sum(counts.values())
    return {name: count / total for name, count in counts.most_common()} if total else None
