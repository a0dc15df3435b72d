"""What ``sam`` and ``scale_channels`` share: the product of two layers, then an activation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from prunedeploy.models.sections.activations import activate, alive_at_zero, read_activation
from prunedeploy.models.sections.channels import Sources
from prunedeploy.models.sections.layer import Layer
from prunedeploy.models.sections.reading import LayerReader


@dataclass(frozen=True)
class Product(Layer):
    """The previous layer times the one that ``from`` names, then an activation."""

    options: ClassVar[Mapping[str, str]] = {
        "from": "layer that the one before is multiplied by; negative: counted back from here",
        "activation": "function of each value of the product",
        "leaky_slope": "slope of activation=leaky below 0, where it is not Darknet's 0.1; not for Darknet",
    }

    activation: str

    def run(self, inputs: list[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        """See `Layer.run`."""
        return activate(inputs[0] * inputs[1], self.activation)

    def sources(self) -> Sources:
        """Each channel is the product of the inputs' channels at its place, and zero as soon as one of them is."""
        channels = np.arange(self.out_channels)
        alive = alive_at_zero(self.index, self.activation)
        return Sources((channels, self.out_channels + channels), alive_at_zero=alive, product=True)

    def constants(self, values: list[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        """See `Layer.constants`: the product of constants, and zero times anything."""
        product = values[0] * values[1]
        zero = (values[0] == 0) | (values[1] == 0)
        return activate(torch.where(zero, 0.0, product), self.activation)


def single_source(reader: LayerReader) -> int:
    """The layer that ``from`` names.

    Raises:
        DarknetFormatError: It names none, or several.
    """
    sources = reader.references("from")
    if len(sources) != 1:
        raise reader.error("from= names more than one layer", "from")
    return sources[0]


def activation_of(reader: LayerReader) -> str:
    """The activation of a product."""
    return read_activation(reader, "linear")
