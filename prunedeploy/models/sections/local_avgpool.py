"""Section ``local_avgpool``: the mean of each window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from prunedeploy.models.sections.layer import Layer
from prunedeploy.models.sections.reading import LayerReader


@dataclass(frozen=True)
class LocalAvgpool(Layer):
    """Average pooling; ``padding`` cells in all, ``padding // 2`` of them left and top.

    Cells of the padding do not count: at the border the sum is divided by the number of cells inside the map.

    Reference: AlexeyAB's Darknet, ``forward_local_avgpool_layer``.
    """

    options: ClassVar[frozenset[str]] = frozenset("size stride padding".split())
    refused: ClassVar[Mapping[str, str]] = dict.fromkeys(("stride_x", "stride_y"), "windows move by stride= both ways")
    linear: ClassVar[bool] = True

    size: int
    stride: int
    padding: int

    @classmethod
    def read(cls, reader: LayerReader) -> LocalAvgpool:
        """See `Layer.read`."""
        stride = reader.integer("stride", 1)
        size = reader.integer("size", stride)
        padding = reader.integer("padding", size - 1, 0)
        if padding - padding // 2 >= size:
            raise reader.error(f"padding={padding} is so wide that windows of {size} lie on it alone", "padding")
        out = reader.windows(reader.shape[0], size, stride, padding)
        return cls(*reader.wiring(out), size, stride, padding)

    def run(self, inputs: list[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        """See `Layer.run`."""
        x = inputs[0]
        before = self.padding // 2
        bottom, right = (
            max(0, (side + self.padding - self.size) // self.stride * self.stride + self.size - side - before)
            for side in x.shape[-2:]
        )
        border = before, right, before, bottom
        covered = F.avg_pool2d(F.pad(x.new_ones(1, 1, *x.shape[-2:]), border), self.size, self.stride)
        return F.avg_pool2d(F.pad(x, border), self.size, self.stride) / covered

    def pixels_per_cell(self, inputs: Sequence[Fraction]) -> Fraction:
        """See `Layer.pixels_per_cell`."""
        return inputs[0] * self.stride
