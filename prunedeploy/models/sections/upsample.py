"""Section ``upsample``: nearest-neighbour upsampling, or with a negative stride sums over blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from prunedeploy.models.sections.layer import Layer
from prunedeploy.models.sections.reading import LayerReader

_LARGEST = 1 << 20


@dataclass(frozen=True)
class Upsample(Layer):
    """Nearest-neighbour upsampling by ``stride``, or sums over blocks of ``stride`` x ``stride``; times ``scale``.

    Attributes:
        stride: Side of the block that a cell becomes, or that becomes a cell.
        reverse: Whether blocks become cells: Darknet's negative stride.
        scale: Factor of every value.

    Reference: Darknet, ``upsample_cpu``.
    """

    options: ClassVar[Mapping[str, str]] = {
        "stride": "times that each cell is repeated in both directions; negative: blocks of cells are summed",
        "scale": "factor of the values",
    }
    linear: ClassVar[bool] = True

    stride: int
    reverse: bool
    scale: float

    @property
    def factor(self) -> float:
        """What a value is multiplied by, or the mean of a block."""
        return self.scale * self.stride**2 if self.reverse else self.scale

    @classmethod
    def read(cls, reader: LayerReader) -> Upsample:
        """See `Layer.read`."""
        stride, scale = reader.integer("stride", 2, -_LARGEST), reader.number("scale", 1.0)
        channels, height, width = reader.shape
        if stride == 0:
            raise reader.error("stride=0 is neither up nor down", "stride")
        if stride > 0:
            return cls(*reader.wiring((channels, height * stride, width * stride)), stride, False, scale)
        if height % stride or width % stride:
            raise reader.error(f"stride={stride} does not divide the map of {width}x{height}", "stride")
        return cls(*reader.wiring((channels, height // -stride, width // -stride)), -stride, True, scale)

    def run(self, inputs: list[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        """See `Layer.run`."""
        x = inputs[0]
        if self.reverse:
            x = F.avg_pool2d(x, self.stride)
        else:
            x = F.interpolate(x, scale_factor=float(self.stride), mode="nearest")
        return x if self.factor == 1.0 else x * self.factor

    def constants(self, values: list[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        """See `Layer.constants`."""
        return values[0] * self.factor

    def pixels_per_cell(self, inputs: Sequence[Fraction]) -> Fraction:
        """See `Layer.pixels_per_cell`."""
        return inputs[0] * self.stride if self.reverse else inputs[0] / self.stride
