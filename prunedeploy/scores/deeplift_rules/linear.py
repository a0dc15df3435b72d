"""What is linear in its inputs has its gradient for a multiplier, whatever it computes."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from prunedeploy.models.sections import Layer
from prunedeploy.scores.deeplift_rules.interface import LayerRule, Trace, Visit


class LinearRule(LayerRule[Layer]):
    """Shrikumar et al. 2017, section 3.5.1, for layers without weights that are scored."""

    def forward(self, found: Trace, layer: Layer, inputs: list[Tensor], rule: str) -> Tensor:
        """See `LayerRule.forward`."""
        found.kept[layer.index] = [(found.images, *x.shape[1:]) for x in inputs]
        return layer.run(inputs, found.weights_of(layer))

    def backward(self, found: Trace, layer: Layer, output: Tensor, visit: Visit) -> Iterable[tuple[int, Tensor]]:
        """See `LayerRule.backward`."""
        shapes: list[tuple[int, ...]] = found.kept.pop(layer.index)
        with torch.enable_grad():
            # The gradient of a linear function is the same everywhere, so also at zero.
            zeros = [output.new_zeros(()).expand(shape).requires_grad_() for shape in shapes]
            gradients = torch.autograd.grad(layer.run(zeros, found.weights_of(layer)), zeros, output)
        return zip(layer.inputs, gradients, strict=True)
