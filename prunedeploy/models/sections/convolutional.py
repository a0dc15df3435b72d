"""Section ``convolutional``: convolution, optional batch normalisation, activation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import ClassVar

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from prunedeploy.models.sections.activations import activate, alive_at_zero, read_activation
from prunedeploy.models.sections.blur import Blur, read_blur, read_strides
from prunedeploy.models.sections.channels import IntArray, Sources
from prunedeploy.models.sections.layer import Layer, Weight
from prunedeploy.models.sections.reading import LayerReader


@dataclass(frozen=True)
class Convolutional(Layer):
    """Convolution, optional batch normalisation, activation, optional blur.

    Attributes:
        size: Side of the kernel.
        stride: Step across; 1 with a blur.
        stride_y: Step down; 1 with a blur.
        padding: Zeros on each side.
        groups: Number of independent convolutions side by side.
        dilation: Distance of neighbouring kernel cells.
        conv_size: ``(height, width)`` of the map before a blur.
        batch_normalize: Whether the output is normalised before the activation.
        activation: Its name.
        blur: What ``antialiasing`` puts behind the activation.
        weights_from: Index of the convolution whose weights, normalisation included, are used: the layer itself, or
            what ``share_index`` names.
    """

    options: ClassVar[Mapping[str, str]] = {
        "batch_normalize": "1: normalised by statistics in the weights file before the activation; folded on export",
        "cbn": "1: as batch_normalize=1; its statistics over several batches mean something to training only",
        "filters": "number of output channels; what structured pruning lowers",
        "size": "side of the kernel, in cells",
        "stride": "cells from one window to the next",
        "stride_x": "the same across only",
        "stride_y": "the same down only",
        "pad": "1: size / 2 cells of zeros on each side, and padding= is not looked at",
        "padding": "cells of zeros on each side, without pad=1, in steps of the dilation",
        "groups": "parts that channels are split into, each with filters of its own",
        "activation": "function of each value of the output",
        "leaky_slope": "slope of activation=leaky below 0, where it is not Darknet's 0.1; not for Darknet",
        "dilation": "cells from one weight of the kernel to the next",
        "antialiasing": "1 or 2: moves in steps of 1, and a fixed blur has the stride",
        "share_index": "convolution whose weights this one uses; negative: counted back from here",
    }
    # The last two place work on streams of a GPU and change no result.
    training_only: ClassVar[frozenset[str]] = frozenset(
        "assisted_excitation sway rotate stretch stretch_sway angle grad_centr reverse dot stream wait_stream".split()
    )
    refused: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("xnor", "bin", "binary", "bin_output"), "binary weights cannot be pruned"),
        "flipped": "the weights stand transposed in its file",
        "coordconv": "Darknet does it on a GPU only, and otherwise ignores it",
    }

    size: int
    stride: int
    stride_y: int
    padding: int
    groups: int
    dilation: int
    conv_size: tuple[int, int]
    batch_normalize: bool
    activation: str
    blur: Blur | None
    weights_from: int

    @property
    def strides(self) -> tuple[int, int]:
        """Steps of the convolution down and across."""
        return self.stride_y, self.stride

    @property
    def shares_weights(self) -> bool:
        """Whether it uses another convolution's weights."""
        return self.weights_from != self.index

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
        """Multiply-accumulate operations for one image at the cfg's input size; a blur has none that count."""
        return self.weight_count * math.prod(self.conv_size)

    @property
    def loses_whole_groups(self) -> bool:
        """Whether a grouped convolution is pruned by whole groups instead of by offsets within each group."""
        return self.groups > 1 and self.groups > self.weight_shape[1]

    @classmethod
    def read(cls, reader: LayerReader) -> Convolutional:
        """See `Layer.read`."""
        size, groups, strides = reader.integer("size", 1), reader.integer("groups", 1), read_strides(reader)
        dilation = reader.integer("dilation", 1) if size > 1 else 1
        padding = size // 2 if reader.integer("pad", 0, 0) else reader.integer("padding", 0, 0)
        padding *= dilation  # as Darknet's im2col_cpu_ext is called
        channels, filters = reader.shape[0], reader.integer("filters", 1)
        if channels % groups or filters % groups:
            what = f"groups={groups} does not divide {channels} input channels and {filters} filters"
            raise reader.error(what, "groups")
        blur = read_blur(reader, strides)
        out = reader.windows(filters, dilation * (size - 1) + 1, (1, 1) if blur else strides, 2 * padding)
        layer = cls(
            *reader.wiring(out if blur is None else reader.not_empty((filters, *blur.out_size(*out[1:])))),
            size,
            stride=1 if blur else strides[1],
            stride_y=1 if blur else strides[0],
            padding=padding,
            groups=groups,
            dilation=dilation,
            conv_size=out[1:],
            # Normalisation across iterations differs in training only.
            batch_normalize=any(reader.integer(option, 0, 0) for option in ("batch_normalize", "cbn")),
            activation=read_activation(reader, "logistic"),
            blur=blur,
            weights_from=reader.index,
        )
        return replace(layer, weights_from=layer._owner(reader)) if "share_index" in reader.section.options else layer

    def _owner(self, reader: LayerReader) -> int:
        """The layer that owns the weights which ``share_index`` names."""
        named = reader.references("share_index")
        owner = reader.layers[named[0]]
        if len(named) > 1 or not isinstance(owner, Convolutional):
            raise reader.error(f"share_index={reader.text('share_index')} is no convolution", "share_index")
        ours, theirs = (
            f"weights {layer.weight_shape}, groups={layer.groups}, "
            + ("normalisation" if layer.batch_normalize else "no normalisation")
            for layer in (self, owner)
        )
        if ours != theirs:
            what = f"has {ours}; layer {owner.index}, whose weights it would share, has {theirs}"
            raise reader.error(what, "share_index", "make them equal")
        return owner.weights_from

    def finish(self, x: Tensor, inplace: bool = False) -> Tensor:
        """What stands behind the normalised convolution: activation and blur."""
        x = activate(x, self.activation, inplace)
        return x if self.blur is None else self.blur.run(x)

    def run(self, inputs: list[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        """See `Layer.run`; normalisation is folded into ``weight`` and ``bias``."""
        return self.finish(conv2d(inputs[0], weights["weight"], weights["bias"], self), inplace=True)

    def weights_in_file(self) -> dict[str, Weight]:
        """See `Layer.weights_in_file`; ``variance`` is Darknet's own, without any epsilon."""
        if self.shares_weights:
            return {}
        names = ("bias", "scale", "mean", "variance") if self.batch_normalize else ("bias",)
        return {**dict.fromkeys(names, Weight((self.out_channels,))), "weight": Weight(self.weight_shape)}

    def sources(self) -> Sources:
        """Filters of its own, tied where the convolution is grouped.

        With more groups than input channels per group (depthwise in the limit) it loses whole groups: the inputs and
        the filters of a group are tied, and ``groups=`` shrinks. Any other grouped convolution keeps its ``groups=``
        and loses the same offsets in every group: inputs at one offset are tied across groups, and so are filters.
        """
        alive = alive_at_zero(self.index, self.activation)
        filters_of = self.weights_from if self.shares_weights else None
        if self.groups == 1:
            return Sources(alive_at_zero=alive, filters_of=filters_of)
        channels = self.in_channels[0]
        inputs = np.arange(channels).reshape(self.groups, -1)
        filters = channels + np.arange(self.out_channels).reshape(self.groups, -1)
        if self.loses_whole_groups:
            ties: tuple[IntArray, ...] = (np.concatenate([inputs, filters], axis=1).T,)
        else:
            ties = (inputs, filters)
        return Sources(ties=ties, alive_at_zero=alive, filters_of=filters_of)

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
        return inputs[0] * max(self.strides if self.blur is None else self.blur.strides)


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, layer: Convolutional) -> Tensor:
    """The bare convolution of ``layer``."""
    return F.conv2d(x, weight, bias, layer.strides, layer.padding, layer.dilation, layer.groups)


def spread_by_group(layer: Convolutional, channels: Tensor) -> Tensor:
    """What each filter reads of a value per input channel: ``(in,)`` -> ``(filters, in / groups)``."""
    return channels.view(layer.groups, -1).repeat_interleave(layer.out_channels // layer.groups, dim=0)
