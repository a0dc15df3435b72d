"""Remove, exactly, the filters that zeros have made useless: what unstructured pruning really saves.

A filter can go if nothing that reaches a detection head reads it. Two kinds of filters are, or become, like that:

- those whose every reader has zero weights for them, through route, shortcut, maxpool and upsample;
- those that compute a constant, because `constants.fold_constants` moves constants into the biases of their readers,
  or, where padding forbids that, onto one carrier channel.

The filters of a unit (see `coupling`) go together or not at all. Which units live is the smallest set that contains
what the heads read and, with each living filter, what it reads: so a chain of filters that only feeds something
dead goes in one pass, and so does a residual stage's channel that is read by nothing but itself. No layer loses all of
its filters: a cfg cannot say ``filters=0``.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from prunedeploy.models.darknet import Darknet
from prunedeploy.models.darknet_cfg import Convolutional, DarknetCfg
from prunedeploy.pruning.constants import FoldedConstants, carrier_candidates, fold_constants
from prunedeploy.pruning.coupling import IMAGE, IntArray, channel_units
from prunedeploy.pruning.deviation import largest_deviation
from prunedeploy.pruning.shrink import shrink
from prunedeploy.pruning.subnet import count_parameters

BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class DeadFilters:
    """What one convolution lost.

    Attributes:
        layer: Index of the convolution in the cfg.
        filters_before: Number of filters.
        filters_after: Number that live.
        constant: Removed filters that computed a constant.
        unread: Removed filters that computed something else, which nothing read.
        carriers: Filters that live only to carry constants for a padded convolution.
    """

    layer: int
    filters_before: int
    filters_after: int
    constant: int
    unread: int
    carriers: int


@dataclass(frozen=True)
class DeadChannelRecord:
    """What `remove_dead_channels` did.

    Attributes:
        layers: One entry per convolution, in cfg order.
        params_before: `count_parameters` of the given network.
        params_after: The same of the smaller one.
        macs_before: Multiply-accumulate operations of the given network for one image.
        macs_after: The same of the smaller one.
        deviation: What `largest_deviation` measured between them; 0.0 if nothing was removed.
    """

    layers: tuple[DeadFilters, ...]
    params_before: int
    params_after: int
    macs_before: int
    macs_after: int
    deviation: float

    @property
    def filters_removed(self) -> int:
        """How many filters are gone, of all convolutions."""
        return self.constants_folded + sum(row.unread for row in self.layers)

    @property
    def constants_folded(self) -> int:
        """How many of them computed a constant, which now stands in biases or comes from a carrier."""
        return sum(row.constant for row in self.layers)

    @property
    def carriers(self) -> int:
        """How many filters live only to carry constants."""
        return sum(row.carriers for row in self.layers)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, the sums among them."""
        sums = {name: getattr(self, name) for name in ("filters_removed", "constants_folded", "carriers")}
        return {**sums, **asdict(self)}


@dataclass(frozen=True, eq=False)
class _Cut:
    """One pass: the network after it, and by convolution how many filters are constant, unread and carriers."""

    model: Darknet
    constant: dict[int, int]
    unread: dict[int, int]
    carriers: dict[int, int]


@torch.no_grad()
def remove_dead_channels(model: Darknet) -> tuple[Darknet, DeadChannelRecord]:
    """Build the network without the filters that zeros have made useless.

    In evaluation mode it computes what ``model`` computes, at the borders too. Nothing is removed for being small:
    only exact zeros count.

    Args:
        model: A pruned network; not modified.

    Returns:
        The smaller network, on the same device, of the same type and in the same training mode, or ``model`` itself if
        nothing is dead; and the record.
    """
    constant: Counter[int] = Counter()
    unread: Counter[int] = Counter()
    # One pass finds all that is dead, but a grouped convolution that has lost filters may fall into smaller units.
    cut = _cut(model)
    small = model
    while cut.model is not small:
        small = cut.model
        constant.update(cut.constant)
        unread.update(cut.unread)
        cut = _cut(small)
    after = {layer.index: layer.out_channels for layer in small.cfg.convolutions}
    rows = tuple(
        DeadFilters(
            layer.index,
            layer.out_channels,
            after[layer.index],
            constant[layer.index],
            unread[layer.index],
            cut.carriers[layer.index],
        )
        for layer in model.cfg.convolutions
    )
    return small, DeadChannelRecord(
        layers=rows,
        params_before=count_parameters(model),
        params_after=count_parameters(small),
        macs_before=model.cfg.macs,
        macs_after=small.cfg.macs,
        deviation=0.0 if small is model else largest_deviation(model, small),
    )


def _cut(model: Darknet) -> _Cut:
    """Remove all units that nothing reads once constants are folded; the very same network if there are none."""
    cfg = model.cfg
    folded = fold_constants(model)
    units = channel_units(cfg)
    read = _read_by_heads(folded, units)
    demands = _demands(folded, units, read)
    carriers = np.zeros_like(read)
    carriers[_choose_carriers(demands, read)] = True
    live = read | carriers
    live |= _one_per_layer(cfg, units, live)
    keep = {layer.index: torch.from_numpy(live[units[layer.index]]) for layer in cfg.convolutions}
    constant, unread, carrying = {}, {}, {}
    for index, mask in keep.items():
        is_constant = ~folded.values[index].isnan()
        constant[index] = int((~mask & is_constant).sum())
        unread[index] = int((~mask & ~is_constant).sum())
        carrying[index] = int(carriers[units[index]].sum())
    if all(bool(mask.all()) for mask in keep.values()):
        return _Cut(model, constant, unread, carrying)
    for demand in demands:
        _carry(folded, demand, live)
    _silence(folded.model, units, live & ~read)
    return _Cut(shrink(folded.model, keep), constant, unread, carrying)


def _read_by_heads(folded: FoldedConstants, units: dict[int, IntArray]) -> BoolArray:
    """Which units live because a detection head, or a living filter, reads them; and the image's."""
    cfg = folded.model.cfg
    live = np.zeros(1 + max(int(numbers.max()) for numbers in units.values()), dtype=bool)
    live[units[IMAGE]] = True
    for head in cfg.heads:
        live[units[head.index]] = True
    reads = {}
    for layer in cfg.convolutions:
        weight = folded.model.conv(layer.index).weight
        # (filters, in / groups, size, size) -> (groups, filters / groups, in / groups)
        nonzero = (weight != 0).flatten(2).any(2).view(layer.groups, -1, layer.weight_shape[1])
        reads[layer.index] = nonzero.cpu().numpy()
    before = -1
    while before != (before := int(live.sum())):
        for layer in reversed(cfg.convolutions):
            living = live[units[layer.index]].reshape(layer.groups, -1, 1)
            read = (reads[layer.index] & living).any(1).reshape(-1)
            live[units[layer.inputs[0]][read]] = True
    return live


@dataclass(frozen=True, eq=False)
class _Demand:
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


def _demands(folded: FoldedConstants, units: dict[int, IntArray], live: BoolArray) -> list[_Demand]:
    found = []
    for index, kernels in folded.carried.items():
        layer = folded.model.conv(index).layer
        values = folded.values[layer.inputs[0]]
        candidates = carrier_candidates(layer, values).numpy()
        by_group = values.view(layer.groups, -1).numpy()
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
                    _Demand(layer, filters, channels, by_group[group, channels], units_by_group[group, channels])
                )
    return found


def _choose_carriers(demands: list[_Demand], live: BoolArray) -> list[int]:
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


def _one_per_layer(cfg: DarknetCfg, units: dict[int, IntArray], live: BoolArray) -> BoolArray:
    """Units that must stay because a convolution would have no filter without them."""
    kept = np.zeros_like(live)
    for layer in cfg.convolutions:
        if not (live | kept)[units[layer.index]].any():
            kept[units[layer.index][0]] = True
    return kept


def _silence(model: Darknet, units: dict[int, IntArray], silent: BoolArray) -> None:
    """Zero the weights of filters that nothing reads, so that what they would read may go.

    A carrier is read where it is constant, and nowhere else, or it would live by itself. So filters of its unit
    that are not constant, at other depths of a residual stage, are not read.
    """
    for layer in model.cfg.convolutions:
        weight = model.conv(layer.index).weight
        weight[torch.from_numpy(silent[units[layer.index]]).to(weight.device)] = 0.0


def _carry(folded: FoldedConstants, demand: _Demand, live: BoolArray) -> None:
    """Give what the constants contribute to the living candidate with the largest value: exact at every position."""
    weight = folded.model.conv(demand.layer.index).weight
    at = int(np.flatnonzero(live[demand.units])[0])
    kernels = folded.carried[demand.layer.index][demand.filters] / demand.values[at]
    weight[demand.filters, int(demand.channels[at])] = kernels.to(weight)

