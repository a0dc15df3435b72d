"""What sections share that hand on what they read: they mean something to Darknet's training only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

from torch import Tensor

from prunedeploy.models.sections.layer import Layer
from prunedeploy.models.sections.reading import LayerReader


@dataclass(frozen=True)
class PassingOn(Layer):
    """The output is the input."""

    linear: ClassVar[bool] = True

    @classmethod
    def read(cls, reader: LayerReader) -> Self:
        """See `Layer.read`."""
        return cls(*reader.wiring(reader.shape))

    def run(self, inputs: list[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        """See `Layer.run`."""
        return inputs[0]
