"""Section ``upsample``: nearest-neighbour upsampling."""

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
class Upsample(Layer):
    """Nearest-neighbour upsampling by ``stride``."""

    options: ClassVar[frozenset[str]] = frozenset({"stride"})
    linear: ClassVar[bool] = True

    stride: int

    @classmethod
    def read(cls, reader: LayerReader) -> Upsample:
        """See `Layer.read`."""
        stride = reader.integer("stride", 2)
        channels, height, width = reader.shape
        return cls(*reader.wiring((channels, height * stride, width * stride)), stride)

    def run(self, inputs: list[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        """See `Layer.run`."""
        return F.interpolate(inputs[0], scale_factor=float(self.stride), mode="nearest")

    def pixels_per_cell(self, inputs: Sequence[Fraction]) -> Fraction:
        """See `Layer.pixels_per_cell`."""
        return inputs[0] / self.stride
