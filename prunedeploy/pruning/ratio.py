"""How many filters live so that a pruning ratio is met.

The pruning ratio counts weights, filters are what can be removed, and a filter that leaves takes
weights of the next convolution with it. So the number of filters per coupling group is solved for
(`width_search`); which ones they are the scores say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prunedeploy.models.darknet_cfg import DarknetCfg
from prunedeploy.pruning.coupling import Coupling, couple, prunable_convolutions
from prunedeploy.pruning.width_search import WeightCount, WidthPath, allowed_counts, even_path, nearest_counts
from prunedeploy_engines.errors import PruningError


@dataclass(frozen=True)
class Widths:
    """A solution: how many units of each coupling group live.

    Attributes:
        counts: Living units, in the order of the coupling groups.
        ratio_requested: What was asked for.
        ratio_achieved: Removed weights / weights, of all prunable convolutions.
        multiple: What the number of kept filters of each convolution is a multiple of (or all are kept).
    """

    counts: tuple[int, ...]
    ratio_requested: float
    ratio_achieved: float
    multiple: int


@dataclass(frozen=True)
class LayerWidth:
    """One convolution before and after pruning.

    Attributes:
        layer: Index in the cfg.
        filters_before: Number of filters of the unpruned network.
        filters_after: Number that live.
        weights_before: Convolution weights of the unpruned network.
        weights_after: Weights of the shrunk network.
        counted: Whether the pruning ratio counts this convolution.
    """

    layer: int
    filters_before: int
    filters_after: int
    weights_before: int
    weights_after: int
    counted: bool


def ratio_tolerance(ratio: float) -> float:
    """How far the achieved ratio may be from the requested one, rounding of the two included."""
    return (0.1 * (1.0 - ratio) if ratio >= 0.95 else 0.01) + 1e-12


def check_ratio(ratio: float) -> None:
    """Refuse a ratio outside [0, 1).

    Raises:
        PruningError: Says what was given.
    """
    if not 0.0 <= ratio < 1.0:
        raise PruningError(f"{ratio} is not a pruning ratio", "ratio", "give a number from 0 to below 1")


def solve_widths(
    cfg: DarknetCfg,
    ratio: float,
    minimum: int | None = None,
    multiple: int = 8,
    coupling: Coupling | None = None,
    path: WidthPath = even_path,
) -> Widths:
    """Solve for the number of living units of each coupling group.

    Args:
        cfg: The unpruned network.
        ratio: Fraction of the weights of all prunable convolutions to remove, in [0, 1).
        minimum: Fewest filters that a convolution keeps (all, where it has fewer); None: the multiple in use.
        multiple: Each convolution keeps a multiple of this many filters, or all. Where that cannot reach the
            ratio, half of it is tried, and so on down to 1.
        coupling: ``couple(cfg)``, if the caller has it.
        path: How the ratio is shared out over the groups; see `width_paths`.

    Returns:
        A solution within `ratio_tolerance`.

    Raises:
        PruningError: The ratio is outside [0, 1) or cannot be reached; the message says what can.
        ValueError: ``minimum`` or ``multiple`` is below 1.
    """
    check_ratio(ratio)
    if multiple < 1 or (minimum is not None and minimum < 1):
        raise ValueError(f"minimum and multiple must be at least 1, got {minimum} and {multiple}")
    coupling = couple(cfg) if coupling is None else coupling
    weights = WeightCount(prunable_convolutions(cfg), coupling)
    full = np.array(coupling.full_counts, dtype=np.int64)
    total = float(weights(full[None])[0])
    if ratio == 0.0:
        return Widths(coupling.full_counts, ratio, 0.0, multiple)
    reached: list[float] = [0.0]
    candidate = multiple
    while total:
        fewest_filters = minimum or candidate
        levels = [allowed_counts(cfg, coupling, group, fewest_filters, candidate) for group in range(len(full))]
        counts = nearest_counts(weights, levels, (1.0 - ratio) * total, ratio_tolerance(ratio) * total, path)
        achieved = 1.0 - float(weights(counts[None])[0]) / total
        if abs(achieved - ratio) <= ratio_tolerance(ratio):
            return Widths(tuple(int(count) for count in counts), ratio, achieved, candidate)
        fewest = np.array([level[0] for level in levels])
        reached += [achieved, 1.0 - float(weights(fewest[None])[0]) / total]
        if candidate == 1:
            break
        candidate //= 2
    nearest = min(reached, key=lambda value: abs(value - ratio))
    raise PruningError(
        f"pruning ratio {ratio:g} cannot be reached within {ratio_tolerance(ratio):.2g}: "
        f"the highest reachable is {max(reached):.4f}, the nearest {nearest:.4f}",
        cfg.where,
        "ask for one of these or lower the minimum number of filters",
    )


def layer_widths(cfg: DarknetCfg, counts: Sequence[int] | None = None) -> tuple[LayerWidth, ...]:
    """Filters and weights of every convolution before and after pruning.

    Args:
        cfg: The unpruned network.
        counts: Living units per coupling group; None: all of them.
    """
    coupling, heads = couple(cfg), cfg.head_outputs
    living = np.array(coupling.full_counts if counts is None else counts)
    after = WeightCount(cfg.convolutions, coupling).per_layer(living[None])[0]
    return tuple(
        LayerWidth(
            layer.index,
            layer.out_channels,
            int(coupling.channels_per_unit[layer.index] @ living),
            layer.weight_count,
            int(new),
            layer.index not in heads,
        )
        for layer, new in zip(cfg.convolutions, after, strict=True)
    )
