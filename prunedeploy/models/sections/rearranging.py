"""What ``reorg`` and ``reorg3d`` share: space to depth and back, in two orders.

Both sections move the cells of blocks of s x s, s the stride, into channels or, with ``reverse``, out of them. With
channels c and cells (a, b) of a block, channel (a * s + b) * C + c of the deeper side is cell (a, b) of channel c.

One direction of each goes by Darknet's **odd order** instead. There the C function is told the shape of the less deep
side where it expects the deeper one's. So it takes that side's memory for maps of s times the side, a map for every
s^2 neighbouring channels, rearranges those, and the result is taken for the shape it should have. Each channel of the
deeper side comes from s^2 neighbouring ones of the other: from one of them where s^2 divides the height, else from
several.

Reference: ``reorg_cpu`` in blas.c of Darknet; pjreddie's reorg_layer.c, AlexeyAB's reorg_old_layer.c and reorg_layer.c.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from prunedeploy.models.sections.channels import IntArray, Sources
from prunedeploy.models.sections.layer import Layer
from prunedeploy.models.sections.reading import LayerReader, Shape


@dataclass(frozen=True)
class Rearranging(Layer):
    """Space to depth, or depth to space.

    Attributes:
        stride: Side of the blocks.
        reverse: Depth to space.
    """

    options: ClassVar[Mapping[str, str]] = {
        "stride": "side of the blocks that are moved between the map and the channels",
        "reverse": "1: from channels into the map",
    }
    linear: ClassVar[bool] = True
    odd_if_reversed: ClassVar[bool]
    """Which of the two directions has the odd order."""

    stride: int
    reverse: bool

    @property
    def odd(self) -> bool:
        """Whether it goes by Darknet's odd order."""
        return self.reverse == self.odd_if_reversed

    @classmethod
    def read(cls, reader: LayerReader) -> Self:
        """See `Layer.read`."""
        stride, reverse = reader.integer("stride", 1), bool(reader.integer("reverse", 0, 0))
        channels, height, width = reader.shape
        block = stride * stride
        if not reverse and (height % stride or width % stride):
            what = f"stride={stride} does not divide a map of {width}x{height} (width x height)"
            raise reader.error(what, "stride", "choose an input size for which it does")
        divisor = (block if reverse else 1) * (block if reverse == cls.odd_if_reversed else 1)
        if channels % divisor:
            raise reader.error(f"reads {channels} channels, which {divisor} does not divide", fix="give it others")
        return cls(*reader.wiring(_rearranged(reader.shape, stride, reverse)), stride, reverse)

    def run(self, inputs: list[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        """See `Layer.run`."""
        x, block = inputs[0], self.stride * self.stride
        batch, channels, height, width = x.shape
        out = _rearranged((channels, height, width), self.stride, self.reverse)
        if self.odd:
            x = x.reshape(batch, channels // block, height * self.stride, width * self.stride)
        x = depth_to_space(x, self.stride) if self.reverse else space_to_depth(x, self.stride)
        return x.reshape(batch, *out)

    def sources(self) -> Sources:
        """Output channels by input channels; in the odd order s^2 neighbouring channels go together.

        So what stays, counted anew, is rearranged as before, whatever the size of the map: Darknet computes the same
        of the smaller network.
        """
        block = self.stride * self.stride
        together = block if self.odd else 1
        # The same rearrangement with one channel for each set that goes together
        sets = _set_terms(self.out_channels // together, block, self.reverse)
        channels = np.arange(self.out_channels)
        return Sources(
            tuple(term[channels // together] * together + place for term in sets for place in range(together))
        )

    def constants(self, values: list[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        """See `Layer.constants`: what all input channels of an output channel are."""
        read = torch.stack([values[0][torch.from_numpy(term)] for term in self.sources().terms])
        return torch.where((read == read[0]).all(0), read[0], torch.nan)

    def pixels_per_cell(self, inputs: Sequence[Fraction]) -> Fraction:
        """See `Layer.pixels_per_cell`."""
        return inputs[0] / self.stride if self.reverse else inputs[0] * self.stride


def space_to_depth(x: Tensor, stride: int) -> Tensor:
    """``(B, C, H * s, W * s)`` -> ``(B, s * s * C, H, W)``, the cell's place in its block before the channel."""
    batch, channels, height, width = x.shape
    blocks = x.reshape(batch, channels, height // stride, stride, width // stride, stride)
    return blocks.permute(0, 3, 5, 1, 2, 4).reshape(batch, *_rearranged((channels, height, width), stride, False))


def depth_to_space(x: Tensor, stride: int) -> Tensor:
    """``(B, s * s * C, H, W)`` -> ``(B, C, H * s, W * s)``: `space_to_depth` undone."""
    batch, channels, height, width = x.shape
    blocks = x.reshape(batch, stride, stride, channels // (stride * stride), height, width)
    return blocks.permute(0, 3, 4, 1, 5, 2).reshape(batch, *_rearranged((channels, height, width), stride, True))


def _rearranged(shape: Shape, stride: int, reverse: bool) -> Shape:
    channels, height, width = shape
    if reverse:
        return channels // (stride * stride), height * stride, width * stride
    return channels * stride * stride, height // stride, width // stride


def _set_terms(out: int, block: int, reverse: bool) -> tuple[IntArray, ...]:
    """Per term ``(out,)``: the input channels that each of ``out`` output channels is made of in the even order."""
    if reverse:
        return tuple(np.arange(out) + place * out for place in range(block))
    return (np.arange(out) % (out // block),)
