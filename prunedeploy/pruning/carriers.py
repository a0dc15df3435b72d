"""Constant channels that padded convolutions go on reading, one for all.

What constant channels contribute to a convolution by taps that may lie on zero padding is smaller at the border, so it
cannot move into the bias. But all constant channels together contribute one kernel, sum_j v_j w[o, j], and any single
one of them, the **carrier** u, can contribute it alone: w[o, u] = sum_j v_j w[o, j] / v_u. That is exact at every
position. Each convolution has its carrier among the channels of its own input, by their values there; as few units as
possible serve all convolutions.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prunedeploy.models.sections import Convolutional
from prunedeploy.models.sections.channels import IntArray
from prunedeploy.pruning.constants import FoldedConstants

# A carrier's weights are at most 1 / this times as large as if the largest constant carried.
LEAST_SHARE = 0.1

BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class CarrierDemand:
    """One group of a convolution's filters that needs a carrier among its input channels.

    Attributes:
        layer: The convolution.
        filters: Those of the group.
        channels: Input channels that can carry, counted within the group, the largest constant first.
        values: Their constants.
        units: Their units.
    """

    layer: Convolutional
    filters: slice
    channels: IntArray
    values: NDArray[np.float64]
    units: IntArray


def carrier_demands(folded: FoldedConstants, units: dict[int, IntArray], live: BoolArray) -> list[CarrierDemand]:
    """Where living filters get something from constants that no bias can stand for.

    Args:
        folded: The network without its constants.
        units: By layer index: ``(channels,)``, from `channel_units`.
        live: ``(units,)``, those that live whether they carry or not.
    """
    found = []
    for index, kernels in folded.carried.items():
        layer = folded.model.conv(index).layer
        values = folded.values[layer.inputs[0]]
        by_group = values.view(layer.groups, -1).numpy()
        size = np.abs(np.nan_to_num(by_group))
        # Constants other than zero, none of them tiny beside the largest of its group
        candidates = (size > 0) & (size >= LEAST_SHARE * size.max(1, keepdims=True))
        units_by_group = units[layer.inputs[0]].reshape(layer.groups, -1)
        per_group = layer.out_channels // layer.groups
        wanted = (kernels != 0).flatten(1).any(1).cpu().numpy() & live[units[index]]
        for group in range(layer.groups):
            filters = slice(group * per_group, (group + 1) * per_group)
            if wanted[filters].any():
                channels = np.flatnonzero(candidates[group])
                order = np.argsort(-np.abs(by_group[group, channels]), kind="stable")
                channels = channels[order]
                found.append(
                    CarrierDemand(layer, filters, channels, by_group[group, channels], units_by_group[group, channels])
                )
    return found


def choose_carriers(demands: list[CarrierDemand], live: BoolArray) -> list[int]:
    """Units to keep so that every demand has a living candidate: the most useful first, then none without need.

    Of equally useful ones, those with the larger constants.
    """
    unmet = [demand.units.tolist() for demand in demands if not live[demand.units].any()]
    chosen: list[int] = []
    left = unmet
    while left:
        useful: Counter[int] = Counter()
        rank: Counter[int] = Counter()
        for candidates in left:
            useful.update(set(candidates))
            rank.update({unit: candidates.index(unit) for unit in candidates})
        chosen.append(max(useful, key=lambda unit: (useful[unit], -rank[unit], -unit)))
        left = [candidates for candidates in left if chosen[-1] not in candidates]
    for unit in list(chosen):
        others = set(chosen) - {unit}
        if all(others.intersection(candidates) for candidates in unmet):
            chosen.remove(unit)
    return chosen


def carry(folded: FoldedConstants, demand: CarrierDemand, live: BoolArray) -> None:
    """Give what the constants contribute to the living candidate with the largest value: exact at every position."""
    weight = folded.model.conv(demand.layer.index).weight
    at = int(np.flatnonzero(live[demand.units])[0])
    kernels = folded.carried[demand.layer.index][demand.filters] / demand.values[at]
    weight[demand.filters, int(demand.channels[at])] = kernels.to(weight)
