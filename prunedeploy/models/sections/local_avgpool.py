"""Section ``local_avgpool``: the mean of each window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from prunedeploy.models.sections.blur import read_strides
from prunedeploy.models.sections.layer import Layer
from prunedeploy.models.sections.maxpool import pool_border
from prunedeploy.models.sections.reading import LayerReader


@dataclass(frozen=True)
class LocalAvgpool(Layer):
    """Average pooling; ``padding`` cells in all, ``padding // 2`` of them left and top.

    Cells of the padding do not count: at the border the sum is divided by the number of cells inside the map.

    Attributes:
        size: Side of a window.
        strides: Its steps down and across.
        padding: Cells of padding, of both sides together.

    Reference: AlexeyAB's Darknet, ``forward_local_avgpool_layer``.
    """

    options: ClassVar[Mapping[str, str]] = {
        "size": "side of the window, in cells",
        "stride": "cells from one window to the next",
        "stride_x": "the same across only",
        "stride_y": "the same down only",
        "padding": "cells on both sides together",
    }
    linear: ClassVar[bool] = True

    size: int
    strides: tuple[int, int]
    padding: int

    @classmethod
    def read(cls, reader: LayerReader) -> LocalAvgpool:
        """See `Layer.read`."""
        size, strides = reader.integer("size", reader.integer("stride", 1)), read_strides(reader)
        padding = reader.integer("padding", size - 1, 0)
        if padding - padding // 2 >= size:
            raise reader.error(f"padding={padding} is so wide that windows of {size} lie on it alone", "padding")
        out = reader.windows(reader.shape[0], size, strides, padding)
        return cls(*reader.wiring(out), size, strides, padding)

    def run(self, inputs: list[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        """See `Layer.run`."""
        x = inputs[0]
        border = pool_border(self, x.shape[-2:])
        covered = F.avg_pool2d(F.pad(x.new_ones(1, 1, *x.shape[-2:]), border), self.size, self.strides)
        return F.avg_pool2d(F.pad(x, border), self.size, self.strides) / covered

    def pixels_per_cell(self, inputs: Sequence[Fraction]) -> Fraction:
        """See `Layer.pixels_per_cell`."""
        return inputs[0] * max(self.strides)
