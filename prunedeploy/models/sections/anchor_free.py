"""What heads without anchors share: one prediction per cell, read from several convolutions that a route joins.

The route names the convolution of the boxes first and that of the classes last, so that the classes' filters can
change without the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from prunedeploy.models.reduction import Reduce
from prunedeploy.models.sections.head import Head, Truth
from prunedeploy.models.sections.layer import Layer
from prunedeploy.models.sections.reading import LayerReader
from prunedeploy.models.sections.route import Route

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class AnchorFree(Head):
    """A head of one prediction per cell: A is 1, and the one anchor is a pixel that nothing asks for."""

    options: ClassVar[Mapping[str, str]] = {"classes": "number of classes"}
    has_anchors: ClassVar[bool] = False

    @classmethod
    def read(cls, reader: LayerReader) -> Self:
        """See `Layer.read`."""
        head = cls(*reader.wiring(reader.shape), (0,), ((1.0, 1.0),), reader.integer("classes"))
        head.check_channels(reader)
        return head

    def class_layer(self, layers: Sequence[Layer]) -> Layer | None:
        """See `Head.class_layer`: the last of those that the route joins."""
        return self.prior_layers(layers)[-1][0]

    def prior_layers(self, layers: Sequence[Layer]) -> Sequence[tuple[Layer | None, int]]:
        """See `Head.prior_layers`: those that the route joins."""
        source = super().class_layer(layers)
        if not isinstance(source, Route) or source.groups > 1 or min(source.inputs) < 0:
            return [(source, 0)]
        joined = [layers[index] for index in source.inputs]
        return list(zip(joined, accumulate((layer.out_channels for layer in joined), initial=0), strict=False))

    def loss_terms(self, raw: Tensor, truth: Truth, reduce: Reduce) -> tuple[Tensor, Tensor, Tensor]:
        """See `Head.loss_terms`; of a network with this head alone, since objects choose among the cells of all."""
        return self.terms_of_all([raw], [self], truth, reduce)

    def stride(self, predictions: Tensor, input_size: tuple[int, int]) -> Tensor:
        """``(2,)``: width and height of a cell of ``predictions (B, A, H, W, V)`` in input pixels."""
        _, _, height, width, _ = predictions.shape
        return predictions.new_tensor([input_size[1] / width, input_size[0] / height])

    def set_prior(self, weight: Tensor, bias: Tensor, first: int) -> None:
        """See `Head.set_prior`."""
        with torch.no_grad():
            weight.mul_(0.1)
            bias[max(self.box_values - first, 0) :] = -4.0
