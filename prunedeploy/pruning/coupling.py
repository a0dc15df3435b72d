"""Which filters of a network live and die together.

A filter can leave only if every layer that its output passes through stays consistent. So each
channel of each layer is traced back to the filters it is a function of, by what each section says of its channels
(`prunedeploy.models.sections.channels.Sources`), and filters are tied into **units**, the smallest sets that must be
removed whole. For instance:

- ``shortcut`` adds two maps channel by channel: the filters on both sides are tied.
- ``route`` with ``groups`` takes one of several equal parts by position: after pruning the parts
  must still be equal, so channels at the same offset in every part are tied.
- a grouped convolution with more groups than input channels per group (depthwise in the limit)
  loses whole groups: the inputs and the filters of a group are tied, and ``groups=`` shrinks.
- any other grouped convolution keeps its ``groups=`` and loses the same offsets in every group:
  inputs at one offset are tied across groups, and so are filters.
- a convolution that shares another one's weights has the same filters: they leave together, and so do the channels
  that the two read.
- ``maxpool``, ``upsample`` and plain ``route`` hand channels on.

Units that no constraint distinguishes form a **coupling group**; from a group any units may be
chosen, only their number matters to the widths of the layers. Ties across the parts of a route or
across groups cost freedom of choice, never exactness; YOLOv3, -tiny and -SPP have none of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from prunedeploy.models.darknet_cfg import DarknetCfg
from prunedeploy.models.sections import Convolutional, Layer
from prunedeploy.models.sections.channels import IntArray

IMAGE = -1


@dataclass(frozen=True, eq=False)
class GroupMember:
    """The filters of one convolution in a coupling group.

    Attributes:
        layer: Index of the convolution in the cfg.
        filters: ``(units, filters per unit)`` int64; row ``u`` are the filters that belong to unit ``u``.
    """

    layer: int
    filters: Tensor


@dataclass(frozen=True, eq=False)
class CouplingGroup:
    """Interchangeable units.

    Attributes:
        members: One entry per convolution with filters here, in cfg order; none for the image's channels.
        channels: Number of units.
        reason: Why none of them may be removed; None if they may.
    """

    members: tuple[GroupMember, ...]
    channels: int
    reason: str | None

    @property
    def prunable(self) -> bool:
        """Whether units of this group may be removed."""
        return self.reason is None

    @property
    def layers(self) -> tuple[int, ...]:
        """Indices of the convolutions that have filters here."""
        return tuple(member.layer for member in self.members)


@dataclass(frozen=True, eq=False)
class Coupling:
    """How all channels of a network hang together.

    Attributes:
        groups: The coupling groups, in the order in which their first filter stands in the cfg.
        channels_per_unit: By layer index (-1 is the image): ``(groups,)``, how many channels of the layer's
            output every unit of each group accounts for. ``channels_per_unit[i] @ counts`` is the width of
            layer ``i`` when ``counts`` units of each group live.
    """

    groups: tuple[CouplingGroup, ...]
    channels_per_unit: dict[int, IntArray]

    @property
    def full_counts(self) -> tuple[int, ...]:
        """Units of each group in the unpruned network."""
        return tuple(group.channels for group in self.groups)


def coupling_groups(cfg: DarknetCfg) -> tuple[CouplingGroup, ...]:
    """The coupling groups of ``cfg``; see `couple`."""
    return couple(cfg).groups


def couple(cfg: DarknetCfg) -> Coupling:
    """Trace every channel of every layer to the filters it comes from and tie what must stay together.

    Args:
        cfg: Any parsed cfg.

    Returns:
        Coupling in which every filter of every convolution belongs to exactly one unit.
    """
    unit_of, reasons = _Trace(cfg).units()
    units = len(reasons)
    layers = sorted(unit_of)
    # How often each unit occurs in each layer's output: units with equal rows are interchangeable.
    occurrences = np.stack([np.bincount(unit_of[index], minlength=units) for index in layers], axis=1)
    group_of_unit = np.empty(units, dtype=np.int64)
    group_of_key: dict[tuple[bytes, str | None], int] = {}
    first_unit: list[int] = []
    for unit in range(units):
        key = (occurrences[unit].tobytes(), reasons[unit])
        if key not in group_of_key:
            group_of_key[key] = len(first_unit)
            first_unit.append(unit)
        group_of_unit[unit] = group_of_key[key]

    sizes = np.bincount(group_of_unit, minlength=len(first_unit))
    members: list[list[GroupMember]] = [[] for _ in first_unit]
    for layer in cfg.convolutions:
        own = unit_of[layer.index]
        for present in np.unique(group_of_unit[own]).tolist():
            unsorted = np.flatnonzero(group_of_unit[own] == present)
            filters = unsorted[np.argsort(own[unsorted], kind="stable")].reshape(sizes[present], -1)
            members[present].append(GroupMember(layer.index, torch.from_numpy(filters)))
    groups = tuple(
        CouplingGroup(tuple(members[number]), int(sizes[number]), reasons[unit])
        for number, unit in enumerate(first_unit)
    )
    per_unit = {index: occurrences[first_unit, at].astype(np.int64) for at, index in enumerate(layers)}
    return Coupling(groups, per_unit)


def channel_units(cfg: DarknetCfg) -> dict[int, IntArray]:
    """Which unit every channel of every layer belongs to.

    Args:
        cfg: Any parsed cfg.

    Returns:
        By layer index, -1 for the image: ``(channels,)``, numbers of units, counted from 0. Channels with the same
        number leave together or not at all, whatever layers they are in.
    """
    return _Trace(cfg).units()[0]


def channel_sums(cfg: DarknetCfg) -> dict[int, IntArray]:
    """Which sum every channel of every layer is part of: as `channel_units`, with what layers combine as the only ties.

    Channels that leave together for the sake of ``groups=`` alone have numbers of their own here.
    """
    trace = _Trace(cfg)
    return trace.numbered(trace.sums)[0]


def prunable_convolutions(cfg: DarknetCfg) -> tuple[Convolutional, ...]:
    """The convolutions whose weights a pruning ratio counts: all but the outputs of the detection heads."""
    excluded = cfg.head_outputs
    return tuple(layer for layer in cfg.convolutions if layer.index not in excluded)


def _is_absorbed(cfg: DarknetCfg, layer: Layer) -> bool:
    """Whether all that reads a layer multiplies it with something that is zero where its own channel is dead."""
    readers = [reader for reader in cfg.layers if layer.index in reader.inputs]
    return bool(readers) and all(
        reader.sources().product
        and any(index < 0 or cfg.layers[index].sources().alive_at_zero is None for index in reader.inputs)
        for reader in readers
    )


class _Trace:
    """Follows channels from layer to layer and collects ties.

    Every filter of every convolution and every channel of the image has a number. The filters
    that a channel is a function of are tied, so one of them stands for all.

    Attributes:
        channels: By layer index, for each channel of the output one of the filters it comes from.
        sums: Ties of what layers combine, which are among ``ties``.
    """

    def __init__(self, cfg: DarknetCfg) -> None:
        self.total = cfg.input_shape[0]
        self.channels: dict[int, IntArray] = {IMAGE: np.arange(self.total)}
        self.ties: list[tuple[IntArray, IntArray]] = []
        self.sums: list[tuple[IntArray, IntArray]] = []
        self.frozen: list[tuple[IntArray, str]] = [(self.channels[IMAGE], "is a channel of the image")]
        for layer in cfg.layers:
            inputs, sources = self._inputs(layer), layer.sources()
            if sources.terms:
                channels = inputs[sources.terms[0]]
            elif sources.filters_of is not None:
                channels = self.channels[sources.filters_of]
                self.ties.append((inputs, self._inputs(cfg.layers[sources.filters_of])))
            else:
                channels = np.arange(self.total, self.total + layer.out_channels)
                self.total += layer.out_channels
            for term in sources.terms[1:]:
                self.sums.append((channels[term >= 0], inputs[term[term >= 0]]))
            both = np.concatenate([inputs, channels])
            for first, *others in sources.ties:
                self.ties.extend((both[first], both[other]) for other in others)
            if sources.alive_at_zero is not None and not _is_absorbed(cfg, layer):
                self.frozen.append((channels, sources.alive_at_zero))
            if sources.frozen is not None:
                self.frozen.append((channels, sources.frozen))
            self.channels[layer.index] = channels
        self.ties += self.sums

    def _inputs(self, layer: Layer) -> IntArray:
        return np.concatenate([self.channels[index] for index in layer.inputs])

    def units(self) -> tuple[dict[int, IntArray], list[str | None]]:
        """Connected components of all ties.

        Returns:
            By layer index the unit of each channel, units numbered in cfg order; for each unit why it is frozen, or
            None.
        """
        unit_of, unit_of_filter = self.numbered(self.ties)
        reasons: list[str | None] = [None] * (1 + int(unit_of_filter.max()))
        for channels, reason in reversed(self.frozen):
            for unit in np.unique(unit_of_filter[channels]):
                reasons[unit] = reason
        return unit_of, reasons

    def numbered(self, ties: list[tuple[IntArray, IntArray]]) -> tuple[dict[int, IntArray], IntArray]:
        """Connected components of ties, numbered in cfg order: of each channel by layer index, and of each filter."""
        label = np.arange(self.total)
        left = np.concatenate([tie[0] for tie in ties] or [label[:0]])
        right = np.concatenate([tie[1] for tie in ties] or [label[:0]])
        while True:
            smallest = np.minimum(label[left], label[right])
            new = label.copy()
            np.minimum.at(new, left, smallest)
            np.minimum.at(new, right, smallest)
            new = new[new]
            if np.array_equal(new, label):
                break
            label = new
        number_of_filter = np.unique(label, return_inverse=True)[1].astype(np.int64)
        return {index: number_of_filter[channels] for index, channels in self.channels.items()}, number_of_filter
