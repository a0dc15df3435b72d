"""Section ``scale_channels``: a map times a value per channel, as squeeze and excitation has it.

Reference: AlexeyAB's Darknet, ``forward_scale_channels_layer``; Hu et al., Squeeze-and-Excitation Networks, 2018,
equation 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from prunedeploy.models.sections.channels import Sources
from prunedeploy.models.sections.product import Product, activation_of, single_source
from prunedeploy.models.sections.reading import LayerReader


@dataclass(frozen=True)
class ScaleChannels(Product):
    """The map that ``from`` names, times the previous layer: one cell of all channels, or all cells of one channel.

    Attributes:
        scale_wh: The latter.
    """

    options: ClassVar[Mapping[str, str]] = {
        **Product.options,
        "scale_wh": "1: one map for all channels instead of one value for each channel",
    }

    scale_wh: bool

    @classmethod
    def read(cls, reader: LayerReader) -> ScaleChannels:
        """See `Layer.read`."""
        source, scale_wh = single_source(reader), bool(reader.integer("scale_wh", 0, 0))
        shape = channels, height, width = reader.layers[source].out_shape
        needed = (1, height, width) if scale_wh else (channels, 1, 1)
        if reader.shape != needed:
            what = f"scales a map of {shape} with one of {reader.shape}, where it needs {needed}"
            raise reader.error(what, "from", "point it at another layer")
        wiring = reader.wiring(shape, (reader.previous, source), (reader.shape[0], channels))
        return cls(*wiring, activation_of(reader), scale_wh)

    def sources(self) -> Sources:
        """As any product; but one channel that scales all of them lives for all of them, and they for it."""
        found = super().sources()
        if not self.scale_wh:
            return found
        channels = np.arange(self.out_channels)
        reason = f"is scaled at layer {self.index} by one channel for all"
        return replace(found, terms=(1 + channels, 0 * channels), frozen=reason)

    def constants(self, values: list[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        """See `Layer.constants`."""
        return super().constants([torch.broadcast_to(value, (self.out_channels,)) for value in values], weights)

    def pixels_per_cell(self, inputs: Sequence[Fraction]) -> Fraction:
        """See `Layer.pixels_per_cell`."""
        return inputs[1]
