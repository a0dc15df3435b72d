"""Section ``convolutional``: convolution, optional batch normalisation, activation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from prunedeploy.models.sections.activations import ACTIVATIONS, activate, alive_at_zero
from prunedeploy.models.sections.channels import Sources
from prunedeploy.models.sections.layer import Layer, Weight
from prunedeploy.models.sections.reading import LayerReader


@dataclass(frozen=True)
class Convolutional(Layer):
    """Convolution, optional batch normalisation, activation."""

    options: ClassVar[frozenset[str]] = frozenset(
        "batch_normalize filters size stride pad padding groups activation dilation".split()
    )
    training_only: ClassVar[frozenset[str]] = frozenset({"stopbackward"})
    refused: ClassVar[Mapping[str, str]] = {
        "xnor": "binary weights cannot be pruned",
        "bin": "binary weights cannot be pruned",
        "binary": "binary weights cannot be pruned",
    }

    size: int
    stride: int
    padding: int
    groups: int
    dilation: int
    batch_normalize: bool
    activation: str

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """``(filters, input channels per group, size, size)``."""
        return (self.out_channels, self.in_channels[0] // self.groups, self.size, self.size)

    @property
    def weight_count(self) -> int:
        """Number of weights."""
        return math.prod(self.weight_shape)

    @property
    def macs(self) -> int:
        """Multiply-accumulate operations for one image at the cfg's input size."""
        return self.weight_count * math.prod(self.out_shape[1:])

    @property
    def loses_whole_groups(self) -> bool:
        """Whether a grouped convolution is pruned by whole groups instead of by offsets within each group."""
        return self.groups > 1 and self.groups > self.weight_shape[1]

    @classmethod
    def read(cls, reader: LayerReader) -> Convolutional:
        """See `Layer.read`."""
        size, stride, groups = reader.integer("size", 1), reader.integer("stride", 1), reader.integer("groups", 1)
        dilation = reader.integer("dilation", 1)
        padding = size // 2 * dilation if reader.integer("pad", 0, 0) else reader.integer("padding", 0, 0)
        channels, filters = reader.shape[0], reader.integer("filters", 1)
        if channels % groups or filters % groups:
            what = f"groups={groups} does not divide {channels} input channels and {filters} filters"
            raise reader.error(what, "groups")
        out = reader.windows(filters, dilation * (size - 1) + 1, stride, 2 * padding)
        normalised = bool(reader.integer("batch_normalize", 0, 0))
        activation = reader.choice("activation", "logistic", ACTIVATIONS)
        return cls(*reader.wiring(out), size, stride, padding, groups, dilation, normalised, activation)

    def run(self, inputs: list[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        """See `Layer.run`; normalisation is folded into ``weight`` and ``bias``."""
        return activate(conv2d(inputs[0], weights["weight"], weights["bias"], self), self.activation, inplace=True)

    def weights_in_file(self) -> dict[str, Weight]:
        """See `Layer.weights_in_file`; ``variance`` is Darknet's own, without any epsilon."""
        names = ("bias", "scale", "mean", "variance") if self.batch_normalize else ("bias",)
        return {**dict.fromkeys(names, Weight((self.out_channels,))), "weight": Weight(self.weight_shape)}

    def sources(self) -> Sources:
        """Filters of its own, tied where the convolution is grouped.

        With more groups than input channels per group (depthwise in the limit) it loses whole groups: the inputs and
        the filters of a group are tied, and ``groups=`` shrinks. Any other grouped convolution keeps its ``groups=``
        and loses the same offsets in every group: inputs at one offset are tied across groups, and so are filters.
        """
        alive = alive_at_zero(self.index, self.activation)
        if self.groups == 1:
            return Sources(alive_at_zero=alive)
        channels = self.in_channels[0]
        inputs = np.arange(channels).reshape(self.groups, -1)
        filters = channels + np.arange(self.out_channels).reshape(self.groups, -1)
        if self.loses_whole_groups:
            return Sources(ties=(np.concatenate([inputs, filters], axis=1).T,), alive_at_zero=alive)
        return Sources(ties=(inputs, filters), alive_at_zero=alive)

    def smaller(self, inputs: Sequence[Tensor], output: Tensor) -> dict[str, object]:
        """See `Layer.smaller`."""
        changed: dict[str, object] = {}
        kept = int(output.sum())
        if kept == 0:
            raise ValueError(f"layer {self.index} would lose all of its {self.out_channels} filters")
        if kept != self.out_channels:
            changed["filters"] = kept
        if self.groups > 1:
            per_filter = spread_by_group(self, inputs[0])[output].sum(1).unique()
            total = int(inputs[0].sum())
            if len(per_filter) > 1 or per_filter[0] == 0 or total % int(per_filter[0]):
                raise ValueError(f"layer {self.index}: its groups would keep {per_filter.tolist()} input channels")
            groups = total // int(per_filter[0])
            by_group = output.view(self.groups, -1).sum(1)
            if len(by_group[by_group > 0].unique()) > 1 or int((by_group > 0).sum()) != groups:
                raise ValueError(f"layer {self.index}: its groups would keep {by_group.tolist()} filters")
            if groups != self.groups:
                changed["groups"] = groups
        return changed

    def pixels_per_cell(self, inputs: Sequence[Fraction]) -> Fraction:
        """See `Layer.pixels_per_cell`."""
        return inputs[0] * self.stride


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, layer: Convolutional) -> Tensor:
    """The bare convolution of ``layer``."""
    return F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)


def spread_by_group(layer: Convolutional, channels: Tensor) -> Tensor:
    """What each filter reads of a value per input channel: ``(in,)`` -> ``(filters, in / groups)``."""
    return channels.view(layer.groups, -1).repeat_interleave(layer.out_channels // layer.groups, dim=0)
