"""Section ``maxpool``: max pooling."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from prunedeploy.models.sections.layer import Layer
from prunedeploy.models.sections.reading import LayerReader


@dataclass(frozen=True)
class Maxpool(Layer):
    """Max pooling; ``padding`` cells in all, ``padding // 2`` of them left and top, filled with -inf."""

    options: ClassVar[frozenset[str]] = frozenset("size stride padding".split())

    size: int
    stride: int
    padding: int

    @classmethod
    def read(cls, reader: LayerReader) -> Maxpool:
        """See `Layer.read`."""
        stride = reader.integer("stride", 1)
        size = reader.integer("size", stride)
        padding = reader.integer("padding", size - 1, 0)
        out = reader.windows(reader.shape[0], size, stride, padding)
        return cls(*reader.wiring(out), size, stride, padding)

    def run(self, inputs: list[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        """See `Layer.run`."""
        x = inputs[0]
        before, after = self.padding // 2, self.padding - self.padding // 2
        if before == after and before <= self.size // 2:
            return F.max_pool2d(x, self.size, self.stride, before)
        border = pool_border(self, x.shape[-2:])
        return F.max_pool2d(F.pad(x, border, value=-math.inf) if any(border) else x, self.size, self.stride)

    def constants(self, values: list[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        """See `Layer.constants`."""
        if self.padding - self.padding // 2 >= self.size:
            # Some windows lie on the padding alone and give -inf.
            return torch.full_like(values[0], torch.nan)
        return values[0]

    def pixels_per_cell(self, inputs: Sequence[Fraction]) -> Fraction:
        """See `Layer.pixels_per_cell`."""
        return inputs[0] * self.stride


def pool_border(layer: Maxpool, size: Sequence[int]) -> tuple[int, int, int, int]:
    """The padding that a maxpool reads of a map of ``(height, width)``: left, right, top, bottom.

    Cells beyond the last window that fits are never read, so an even map at 2/2 needs no padding.
    """
    before = layer.padding // 2
    bottom, right = (
        max(0, (side + layer.padding - layer.size) // layer.stride * layer.stride + layer.size - side - before)
        for side in size
    )
    return before, right, before, bottom
