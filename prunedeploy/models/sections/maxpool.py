"""Section ``maxpool``: max pooling over windows, or over channels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from prunedeploy.models.sections.blur import Blur, read_blur, read_strides
from prunedeploy.models.sections.channels import Sources
from prunedeploy.models.sections.layer import Layer
from prunedeploy.models.sections.reading import LayerReader


@dataclass(frozen=True)
class Maxpool(Layer):
    """Max pooling; ``padding`` cells in all, ``padding // 2`` of them left and top, filled with -inf.

    Attributes:
        size: Side of a window.
        stride: Step across; 1 with a blur.
        stride_y: Step down; 1 with a blur.
        padding: Cells of padding, of both sides together.
        depth: Whether the maximum is over channels instead (``maxpool_depth``): output channel g of C is the largest
            of the input channels g, g + C, g + 2 C and so on, cell by cell. The rest does not count then.
        blur: What ``antialiasing`` puts behind it.

    Reference: Darknet, ``forward_maxpool_layer``.
    """

    options: ClassVar[Mapping[str, str]] = {
        "size": "side of the window, in cells",
        "stride": "cells from one window to the next",
        "stride_x": "the same across only",
        "stride_y": "the same down only",
        "padding": "cells on both sides together",
        "maxpool_depth": "1: the largest of several channels instead of a window's",
        "out_channels": "channels that are left with maxpool_depth=1",
        "antialiasing": "1 or 2: moves in steps of 1, and a fixed blur has the stride",
    }
    refused: ClassVar[Mapping[str, str]] = {"maxpool_zero_nonmax": "Darknet does it on a GPU only"}

    size: int
    stride: int
    stride_y: int
    padding: int
    depth: bool
    blur: Blur | None

    @property
    def strides(self) -> tuple[int, int]:
        """Steps of the windows down and across."""
        return self.stride_y, self.stride

    @classmethod
    def read(cls, reader: LayerReader) -> Maxpool:
        """See `Layer.read`."""
        strides = read_strides(reader)
        size = reader.integer("size", reader.integer("stride", 1))
        padding = reader.integer("padding", size - 1, 0)
        blur = read_blur(reader, strides)
        if reader.integer("maxpool_depth", 0, 0):
            channels, wanted = reader.shape[0], reader.integer("out_channels", 1)
            if wanted > channels:
                raise reader.error(f"out_channels={wanted}, but it reads {channels} channels", "out_channels")
            if blur is not None:
                raise reader.error("maxpool_depth= and antialiasing= exclude each other", "antialiasing")
            return cls(*reader.wiring((wanted, *reader.shape[1:])), 1, 1, 1, 0, True, None)
        out = reader.windows(reader.shape[0], size, (1, 1) if blur else strides, padding)
        if blur is None:
            return cls(*reader.wiring(out), size, strides[1], strides[0], padding, False, None)
        out = reader.not_empty((out[0], *blur.out_size(*out[1:])))
        return cls(*reader.wiring(out), size, 1, 1, padding, False, blur)

    def run(self, inputs: list[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        """See `Layer.run`."""
        x = inputs[0]
        if self.depth:
            return self.by_turns(x).amax(1)
        before, after = self.padding // 2, self.padding - self.padding // 2
        if before == after and before <= self.size // 2:
            x = F.max_pool2d(x, self.size, self.strides, before)
        else:
            border = pool_border(self, x.shape[-2:])
            x = F.max_pool2d(F.pad(x, border, value=-math.inf) if any(border) else x, self.size, self.strides)
        return x if self.blur is None else self.blur.run(x)

    def by_turns(self, x: Tensor) -> Tensor:
        """``(B, channels, H, W)`` -> ``(B, turns, out_channels, H, W)``, what is missing of the last turn is -inf."""
        missing = -x.shape[1] % self.out_channels
        return F.pad(x, (0, 0, 0, 0, 0, missing), value=-math.inf).unflatten(1, (-1, self.out_channels))

    def sources(self) -> Sources:
        """The channel itself; over channels, one of every turn.

        When a channel leaves, every turn loses one at the same place, so what is left is still taken in turns.
        """
        if not self.depth:
            return super().sources()
        turns = range(0, self.in_channels[0], self.out_channels)
        channels = [start + np.arange(self.out_channels) for start in turns]
        return Sources(tuple(np.where(term < self.in_channels[0], term, -1) for term in channels))

    def smaller(self, inputs: Sequence[Tensor], output: Tensor) -> dict[str, object]:
        """See `Layer.smaller`."""
        kept = int(output.sum())
        return {"out_channels": kept} if self.depth and kept != self.out_channels else {}

    def constants(self, values: list[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        """See `Layer.constants`."""
        if self.depth:
            return self.run([values[0].view(1, -1, 1, 1)], weights).flatten()
        if self.padding - self.padding // 2 >= self.size:
            # Some windows lie on the padding alone and give -inf.
            return torch.full_like(values[0], torch.nan)
        return values[0] if self.blur is None else self.blur.constants(values[0])

    def pixels_per_cell(self, inputs: Sequence[Fraction]) -> Fraction:
        """See `Layer.pixels_per_cell`."""
        return inputs[0] * max(self.strides if self.blur is None else self.blur.strides)


class Pooling(Protocol):
    """What moves windows over a map; see `Maxpool`."""

    @property
    def size(self) -> int:
        """Side of a window."""

    @property
    def strides(self) -> tuple[int, int]:
        """Steps of the windows down and across."""

    @property
    def padding(self) -> int:
        """Cells of padding, of both sides together."""


def pool_border(layer: Pooling, size: Sequence[int]) -> tuple[int, int, int, int]:
    """The padding that a pooling reads of a map of ``(height, width)``: left, right, top, bottom.

    Cells beyond the last window that fits are never read, so an even map at 2/2 needs no padding.
    """
    before = layer.padding // 2
    bottom, right = (
        max(0, (side + layer.padding - layer.size) // stride * stride + layer.size - side - before)
        for side, stride in zip(size, layer.strides, strict=True)
    )
    return before, right, before, bottom
