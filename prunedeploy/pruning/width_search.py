"""How many units of each coupling group give a number of weights.

A path says how many units every group wants, from none to all: usually the same fraction of every group, see
`width_paths` for others. The point on it is found by bisection, and single groups are then moved by one step
until the number of weights fits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import gcd, lcm, prod

import numpy as np
from numpy.typing import NDArray

from prunedeploy.models.darknet_cfg import DarknetCfg
from prunedeploy.models.sections import Convolutional
from prunedeploy.models.sections.channels import IntArray
from prunedeploy.pruning.coupling import Coupling

_BISECTIONS = 40
_MOST_COMBINATIONS = 50_000

Wanted = Callable[[float], NDArray[np.float64]]
"""Units that each group wants as a function of a number from 0 (fewest) to 1 (all); never falls."""
WidthPath = Callable[[Sequence[IntArray]], Wanted]
"""Makes it for the levels, the numbers of units that each group may have."""


def even_path(levels: Sequence[IntArray]) -> Wanted:
    """The `WidthPath` of uniform allocation: every group wants the same fraction of its units."""
    full = np.array([level[-1] for level in levels])
    return lambda fraction: fraction * full


class WeightCount:
    """Convolution weights of the shrunk network as a function of the living units of each group."""

    def __init__(self, layers: Sequence[Convolutional], coupling: Coupling) -> None:
        groups = len(coupling.groups)
        self.filters = np.zeros((len(layers), groups))
        self.inputs = np.zeros((len(layers), groups))
        self.fixed_inputs = np.zeros(len(layers))
        self.area = np.array([layer.size**2 for layer in layers], dtype=float)
        for row, layer in enumerate(layers):
            self.filters[row] = coupling.channels_per_unit[layer.index]
            if layer.loses_whole_groups:
                self.fixed_inputs[row] = layer.weight_shape[1]
            else:
                self.inputs[row] = coupling.channels_per_unit[layer.inputs[0]] / layer.groups

    def per_layer(self, counts: IntArray) -> np.ndarray:
        """Weights of each convolution.

        Args:
            counts: ``(candidates, groups)`` living units.

        Returns:
            ``(candidates, convolutions)``.
        """
        return np.rint((counts @ self.filters.T) * (counts @ self.inputs.T + self.fixed_inputs) * self.area)

    def __call__(self, counts: IntArray) -> np.ndarray:
        """Weights of all convolutions: ``(candidates, groups)`` -> ``(candidates,)``."""
        return self.per_layer(counts).sum(axis=1)


def allowed_counts(cfg: DarknetCfg, coupling: Coupling, index: int, minimum: int, multiple: int) -> IntArray:
    """Numbers of living units that a coupling group may have, ascending; the last is all of them.

    A convolution whose filters are all in this group may keep any multiple, or all. One that is spread
    over several groups keeps a multiple in all if each group *removes* a multiple.
    """
    group = coupling.groups[index]
    everything = np.array([group.channels], dtype=np.int64)
    if not group.prunable:
        return everything
    step, fewest, spread = 1, 1, []
    for member in group.members:
        per_unit = member.filters.shape[1]
        filters = cfg.layers[member.layer].out_channels
        step = lcm(step, multiple // gcd(multiple, per_unit))
        # Every group keeps its share of the minimum, so that the convolution keeps all of it.
        fewest = max(fewest, -(-group.channels * min(minimum, filters) // filters))
        spread.append(per_unit * group.channels != filters)
    remainder = group.channels % step
    if remainder and any(spread):
        if not all(spread):
            return everything
        start = remainder
    else:
        start = step
    levels = np.arange(start, group.channels + 1, step, dtype=np.int64)
    return np.union1d(levels[levels >= fewest], everything)


def nearest_counts(
    weights: WeightCount,
    levels: Sequence[IntArray],
    target: float,
    tolerance: float,
    path: WidthPath = even_path,
) -> IntArray:
    """Living units per group such that ``target`` weights remain, as nearly as it gets.

    Args:
        weights: Weights remaining as a function of the counts.
        levels: Per group the counts it may have.
        target: Weights that shall remain.
        tolerance: Weights; while the result is farther away, groups may move by more than one step.
        path: What the groups want.
    """
    wanted = path(levels)

    def on_path(fraction: float) -> IntArray:
        return np.array([np.abs(level - value).argmin() for level, value in zip(levels, wanted(fraction), strict=True)])

    def counts_at(at: IntArray) -> IntArray:
        return np.array([level[step] for level, step in zip(levels, at, strict=True)])

    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if weights(counts_at(on_path(middle))[None])[0] > target:
            high = middle
        else:
            low = middle
    ends = [on_path(low), on_path(high)]
    errors = [abs(weights(counts_at(at)[None])[0] - target) for at in ends]
    start = ends[int(np.argmin(errors))]
    at = _move_groups(weights, levels, start, target, within_one_of=start)
    if abs(weights(counts_at(at)[None])[0] - target) > tolerance:
        at = _move_groups(weights, levels, at, target)
    counts = counts_at(at)
    if (
        abs(weights(counts[None])[0] - target) > tolerance
        and prod(len(level) for level in levels) <= _MOST_COMBINATIONS
    ):
        return _nearest_of_all(weights, levels, counts_at(start), target, tolerance)
    return counts


def _nearest_of_all(
    weights: WeightCount, levels: Sequence[IntArray], wanted: IntArray, target: float, tolerance: float
) -> IntArray:
    """Try every combination: where groups are few and steps large, moving one at a time gets stuck.

    Returns:
        Of the counts within ``tolerance`` those nearest to ``wanted``; if there are none, those nearest
        to the target.
    """
    counts = np.stack([axis.ravel() for axis in np.meshgrid(*levels, indexing="ij")], axis=1)
    errors = np.abs(weights(counts) - target)
    fits = errors <= tolerance
    if not fits.any():
        return counts[errors.argmin()]
    full = np.array([level[-1] for level in levels])
    unevenness = np.abs((counts[fits] - wanted) / full).sum(axis=1)
    return counts[fits][unevenness.argmin()]


def _move_groups(
    weights: WeightCount,
    levels: Sequence[IntArray],
    at: IntArray,
    target: float,
    within_one_of: IntArray | None = None,
) -> IntArray:
    """Move one group at a time by one level, always the one that helps most, until none helps."""
    last = np.array([len(level) - 1 for level in levels])
    lower = np.zeros_like(last) if within_one_of is None else np.maximum(within_one_of - 1, 0)
    upper = last if within_one_of is None else np.minimum(within_one_of + 1, last)
    error = np.inf
    while True:
        moves = np.concatenate([np.eye(len(at), dtype=np.int64), -np.eye(len(at), dtype=np.int64)])
        moved = at + np.concatenate([np.zeros_like(moves[:1]), moves])
        moved = moved[((moved >= lower) & (moved <= upper)).all(axis=1)]
        counts = np.stack([level[moved[:, index]] for index, level in enumerate(levels)], axis=1)
        errors = np.abs(weights(counts) - target)
        best = int(errors.argmin())
        if errors[best] >= error:
            return at
        at, error = moved[best], errors[best]
