"""A shortcut: each summand has the slope of the activation behind the sum, times its weight."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce

import torch
from torch import Tensor

from prunedeploy.models.sections import Shortcut
from prunedeploy.models.sections.activations import activate
from prunedeploy.models.sections.shortcut import widened
from prunedeploy.scores.deeplift_rules.interface import LayerRule, Trace, Visit, by_sign
from prunedeploy.scores.deeplift_rules.slopes import keep_slopes


class ShortcutRule(LayerRule[Shortcut]):
    """The linear rule for the sum, then the activation's."""

    def deltas(self, layer: Shortcut, rule: str) -> Iterable[int]:
        """See `LayerRule.deltas`."""
        return layer.inputs if rule == "reveal-cancel" else ()

    def forward(self, found: Trace, layer: Shortcut, inputs: list[Tensor], rule: str) -> Tensor:
        """See `LayerRule.forward`."""
        total = layer.total(inputs, found.weights_of(layer))

        def parts() -> tuple[Tensor, Tensor]:
            summands = self._deltas(found, layer)
            positive, negative = ([x.clamp(**side) for x in summands] for side in ({"min": 0}, {"max": 0}))
            return reduce(torch.add, positive), reduce(torch.add, negative)

        keep_slopes(found, layer.index, layer.activation, total, rule, parts)
        return activate(total, layer.activation)

    def backward(self, found: Trace, layer: Shortcut, output: Tensor, visit: Visit) -> Iterable[tuple[int, Tensor]]:
        """See `LayerRule.backward`."""
        slopes = found.slopes.pop(layer.index, None)
        factors = layer.factors(found.weights_of(layer))
        summands = self._deltas(found, layer) if slopes is not None and not slopes.equal else ()
        for position, (source, channels) in enumerate(zip(layer.inputs, layer.in_channels, strict=True)):
            multiplier = output
            if slopes is not None and slopes.equal:
                multiplier = output * slopes.positive
            elif slopes is not None:
                multiplier = output * by_sign(summands[position], slopes.positive, slopes.negative)
            if factors is not None:
                multiplier = multiplier * factors[position, :, None, None]
            # Channels that the output has no place for contribute nothing.
            yield source, widened(multiplier[:, :channels], channels)

    @staticmethod
    def _deltas(found: Trace, layer: Shortcut) -> Sequence[Tensor]:
        """Differences of what is added, each with all channels of the output."""
        deltas = [found.deltas[source] for source in layer.inputs]
        return [widened(x, layer.out_channels) for x in layer.summands(deltas, found.weights_of(layer))]
