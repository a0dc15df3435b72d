"""Section ``shortcut``: the sum of two layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from prunedeploy.models.sections.activations import ACTIVATIONS, activate, alive_at_zero
from prunedeploy.models.sections.channels import Sources
from prunedeploy.models.sections.layer import Layer
from prunedeploy.models.sections.reading import LayerReader


@dataclass(frozen=True)
class Shortcut(Layer):
    """Sum of two inputs, then an activation."""

    options: ClassVar[frozenset[str]] = frozenset("from activation".split())

    activation: str

    @classmethod
    def read(cls, reader: LayerReader) -> Shortcut:
        """See `Layer.read`."""
        sources = reader.references("from")
        if len(sources) != 1:
            raise reader.error("from= names more than one layer", "from")
        shape, other = reader.shape, reader.layers[sources[0]].out_shape
        if other != shape:
            raise reader.error(f"adds shapes {shape} and {other}", "from", "point it at a layer of the same shape")
        activation = reader.choice("activation", "linear", ACTIVATIONS)
        return cls(*reader.wiring(shape, (reader.previous, *sources), shape[:1] * 2), activation)

    def run(self, inputs: list[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        """See `Layer.run`."""
        return activate(inputs[0] + inputs[1], self.activation)

    def sources(self) -> Sources:
        """Each channel is the sum of the inputs' channels at its place."""
        channels = np.arange(self.out_channels)
        return Sources(
            (channels, self.out_channels + channels), alive_at_zero=alive_at_zero(self.index, self.activation)
        )

    def constants(self, values: list[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        """See `Layer.constants`: the sum of constants, NaN if one of them is none."""
        return self.run(values, weights)
