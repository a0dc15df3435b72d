"""Remove, exactly, the filters that zeros have made useless: what unstructured pruning really saves.

A filter can go if nothing that reaches a detection head reads it. Two kinds of filters are, or become, like that:

- those whose every reader has zero weights for them, through route, shortcut, maxpool and upsample;
- those that compute a constant, because `constants.fold_constants` moves constants into the biases of their readers,
  or, where padding forbids that, `carriers` has one of them contribute what all did.

The filters of a unit (see `coupling`) go together or not at all. Which units live is the smallest set that contains
what the heads read and, with each living filter, what it reads: so a chain of filters that only feeds something
dead goes in one pass, and so does a residual stage's channel that is read by nothing but itself. No layer loses all of
its filters: a cfg cannot say ``filters=0``. Dead filters may also stay to make widths multiples of what a runtime is
fast with.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from prunedeploy.models.darknet import Darknet
from prunedeploy.models.darknet_cfg import DarknetCfg
from prunedeploy.models.sections.channels import IntArray
from prunedeploy.pruning.carriers import BoolArray, carrier_demands, carry, choose_carriers
from prunedeploy.pruning.constants import FoldedConstants, fold_constants
from prunedeploy.pruning.coupling import IMAGE, channel_sums, channel_units
from prunedeploy.pruning.deviation import largest_deviation
from prunedeploy.pruning.shrink import shrink
from prunedeploy.pruning.subnet import count_parameters


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
        idle: Filters that do nothing and stay for the layer's width.
    """

    layer: int
    filters_before: int
    filters_after: int
    constant: int
    unread: int
    carriers: int
    idle: int


@dataclass(frozen=True)
class DeadChannelRecord:
    """What `remove_dead_channels` did.

    Attributes:
        layers: One entry per convolution, in cfg order.
        multiple: What widths were kept a multiple of where the layer's own width allows it.
        params_before: `count_parameters` of the given network.
        params_after: The same of the smaller one.
        macs_before: Multiply-accumulate operations of the given network for one image.
        macs_after: The same of the smaller one.
        deviation: What `largest_deviation` measured between them; 0.0 if nothing was removed.
    """

    layers: tuple[DeadFilters, ...]
    multiple: int
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

    @property
    def idle(self) -> int:
        """How many filters do nothing and stay for their layers' widths."""
        return sum(row.idle for row in self.layers)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, the sums among them."""
        sums = {name: getattr(self, name) for name in ("filters_removed", "constants_folded", "carriers", "idle")}
        return {**sums, **asdict(self)}


@torch.no_grad()
def remove_dead_channels(model: Darknet, multiple: int = 1) -> tuple[Darknet, DeadChannelRecord]:
    """Build the network without the filters that zeros have made useless.

    In evaluation mode it computes what ``model`` computes, at the borders too. Nothing is removed for being small:
    only exact zeros count.

    Args:
        model: A pruned network; not modified.
        multiple: Keep so many dead filters that widths are multiples of it, or what they were; at least 1.

    Returns:
        The smaller network, on the same device, of the same type and in the same training mode, or ``model`` itself if
        nothing is dead; and the record.
    """
    small, passes = model, []
    # One pass finds all that is dead, but a grouped convolution that has lost filters may fall into smaller units.
    while True:
        before = small
        small, found = _without_dead_units(before, multiple)
        passes.append(found)
        if small is before:
            break
    rows = tuple(
        replace(
            of_layer[-1],
            filters_before=of_layer[0].filters_before,
            constant=sum(row.constant for row in of_layer),
            unread=sum(row.unread for row in of_layer),
        )
        for of_layer in zip(*passes, strict=True)
    )
    return small, DeadChannelRecord(
        layers=rows,
        multiple=multiple,
        params_before=count_parameters(model),
        params_after=count_parameters(small),
        macs_before=model.cfg.macs,
        macs_after=small.cfg.macs,
        deviation=0.0 if small is model else largest_deviation(model, small),
    )


def _without_dead_units(model: Darknet, multiple: int) -> tuple[Darknet, list[DeadFilters]]:
    """Remove all units that nothing reads once constants are folded.

    Returns:
        The smaller network, the very same one if there are no such units; and one entry per convolution.
    """
    cfg = model.cfg
    folded = fold_constants(model)
    units, sums = channel_units(cfg), channel_sums(cfg)
    read_sums = _read_by_heads(folded, sums)
    read = np.zeros(1 + max(int(numbers.max()) for numbers in units.values()), dtype=bool)
    for index, own in units.items():
        read[own[read_sums[sums[index]]]] = True
    _silence(folded, sums, ~read_sums)
    demands = carrier_demands(folded, units, read)
    carriers = np.zeros_like(read)
    carriers[choose_carriers(demands, read)] = True
    idle = _idle(cfg, units, read | carriers, multiple)
    live = read | carriers | idle
    keep = {layer.index: torch.from_numpy(live[units[layer.index]]) for layer in cfg.convolutions}
    found = []
    for index, mask in keep.items():
        own, gone, constant = units[index], ~mask, ~folded.values[index].isnan()
        found.append(
            DeadFilters(
                index,
                filters_before=len(mask),
                filters_after=int(mask.sum()),
                constant=int((gone & constant).sum()),
                unread=int((gone & ~constant).sum()),
                carriers=int(carriers[own].sum()),
                idle=int(idle[own].sum()),
            )
        )
    if all(bool(mask.all()) for mask in keep.values()):
        return model, found
    for demand in demands:
        carry(folded, demand, live)
    return shrink(folded.model, keep), found


def _read_by_heads(folded: FoldedConstants, sums: dict[int, IntArray]) -> BoolArray:
    """Which sums of filters a detection head, or a filter that is read itself, reads; and the image's channels."""
    cfg = folded.model.cfg
    live = np.zeros(1 + max(int(numbers.max()) for numbers in sums.values()), dtype=bool)
    live[sums[IMAGE]] = True
    for head in cfg.heads:
        live[sums[head.index]] = True
    for layer in cfg.layers:
        if (mixed := layer.sources().mixed) is not None:
            live[np.concatenate([sums[source] for source in layer.inputs])[mixed]] = True
    reads = {}
    for layer in cfg.all_convolutions:
        weight = folded.model.conv(layer.index).weight
        # (filters, in / groups, size, size) -> (groups, filters / groups, in / groups)
        nonzero = (weight != 0).flatten(2).any(2).view(layer.groups, -1, layer.weight_shape[1])
        reads[layer.index] = nonzero.cpu().numpy()
    before = -1
    while before != (before := int(live.sum())):
        for layer in reversed(cfg.all_convolutions):
            living = live[sums[layer.index]].reshape(layer.groups, -1, 1)
            read = (reads[layer.index] & living).any(1).reshape(-1)
            live[sums[layer.inputs[0]][read]] = True
    return live


def _idle(cfg: DarknetCfg, units: dict[int, IntArray], live: BoolArray, multiple: int) -> BoolArray:
    """Dead units that stay: a convolution would have no filters without them, or no multiple."""
    alive = live.copy()
    for layer in cfg.convolutions:
        own = units[layer.index]
        wanted = min(len(own), -(-max(1, int(alive[own].sum())) // multiple) * multiple)
        for unit in own:
            if alive[own].sum() >= wanted:
                break
            alive[unit] = True
    return alive & ~live


def _silence(folded: FoldedConstants, sums: dict[int, IntArray], silent: BoolArray) -> None:
    """Zero the weights of filters that nothing reads, so that what they would read may go.

    Such filters may have to stay: with others of their unit, for a layer's width, or as carriers. A carrier is read
    where it is constant, and nowhere else, or it would live by itself. So filters of its unit that are not constant, at
    other depths of a residual stage, are not read.
    """
    for layer in folded.model.cfg.convolutions:
        weight = folded.model.conv(layer.index).weight
        unread = torch.from_numpy(silent[sums[layer.index]]).to(weight.device)
        weight[unread] = 0.0
        if layer.index in folded.carried:
            folded.carried[layer.index][unread] = 0.0
