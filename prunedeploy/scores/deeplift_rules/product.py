"""A product of two layers: each side's difference counts with the mean of what the other side is.

x y - x0 y0 = (x - x0) (y + y0) / 2 + (y - y0) (x + x0) / 2 is exact, and shares what both sides do together equally:
these are the Shapley values of the two sides.

Reference: Lundberg and Lee, A Unified Approach to Interpreting Model Predictions, 2017, section 4.2, for DeepLIFT by
Shapley values of simple components.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from prunedeploy.models.sections import Product
from prunedeploy.models.sections.activations import activate
from prunedeploy.scores.deeplift_rules.interface import LayerRule, Trace, Visit, by_sign
from prunedeploy.scores.deeplift_rules.slopes import keep_slopes


class ProductRule(LayerRule[Product]):
    """The two sides' Shapley values, then the activation's rule."""

    def deltas(self, layer: Product, rule: str) -> Iterable[int]:
        """See `LayerRule.deltas`."""
        return layer.inputs if rule == "reveal-cancel" else ()

    def forward(self, found: Trace, layer: Product, inputs: list[Tensor], rule: str) -> Tensor:
        """See `LayerRule.forward`."""
        split = found.images
        means = [(x[:split] + x[split:]) / 2 for x in inputs]
        found.kept[layer.index] = means
        product = inputs[0] * inputs[1]

        def parts() -> tuple[Tensor, Tensor]:
            one, other = (found.deltas[source] for source in layer.inputs)
            one, other = one * means[1], other * means[0]
            return one.clamp(min=0) + other.clamp(min=0), one.clamp(max=0) + other.clamp(max=0)

        keep_slopes(found, layer.index, layer.activation, product, rule, parts)
        return activate(product, layer.activation)

    def backward(self, found: Trace, layer: Product, output: Tensor, visit: Visit) -> Iterable[tuple[int, Tensor]]:
        """See `LayerRule.backward`."""
        means: list[Tensor] = found.kept.pop(layer.index)
        slopes = found.slopes.pop(layer.index, None)
        for source, own, other in zip(layer.inputs, means, reversed(means), strict=True):
            if slopes is None:
                multiplier = output * other
            elif slopes.equal:
                multiplier = output * slopes.positive * other
            else:
                multiplier = output * by_sign(found.deltas[source] * other, slopes.positive, slopes.negative) * other
            # One cell, or one channel, of a side may count for many of the other's.
            yield source, multiplier.sum_to_size(own.shape)
