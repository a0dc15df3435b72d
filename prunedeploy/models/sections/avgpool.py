"""Section ``avgpool``: the mean over the whole map."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from prunedeploy.models.sections.layer import Layer
from prunedeploy.models.sections.reading import LayerReader


@dataclass(frozen=True)
class Avgpool(Layer):
    """The mean over the whole map, whatever its size."""

    linear: ClassVar[bool] = True

    @classmethod
    def read(cls, reader: LayerReader) -> Avgpool:
        """See `Layer.read`."""
        return cls(*reader.wiring((reader.shape[0], 1, 1)))

    def run(self, inputs: list[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        """See `Layer.run`."""
        return inputs[0].mean((2, 3), keepdim=True)
