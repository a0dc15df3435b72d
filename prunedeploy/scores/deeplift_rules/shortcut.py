"""A shortcut: each side has the slope of the activation behind the sum."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from prunedeploy.models.sections import Shortcut
from prunedeploy.models.sections.activations import activate
from prunedeploy.scores.deeplift_rules.interface import LayerRule, Trace, Visit, by_sign
from prunedeploy.scores.deeplift_rules.slopes import keep_slopes


class ShortcutRule(LayerRule[Shortcut]):
    """The linear rule for the sum, then the activation's."""

    def deltas(self, layer: Shortcut, rule: str) -> Iterable[int]:
        """See `LayerRule.deltas`."""
        return layer.inputs if rule == "reveal-cancel" else ()

    def forward(self, found: Trace, layer: Shortcut, inputs: list[Tensor], rule: str) -> Tensor:
        """See `LayerRule.forward`."""
        total = inputs[0] + inputs[1]

        def parts() -> tuple[Tensor, Tensor]:
            one, other = (found.deltas[source] for source in layer.inputs)
            return one.clamp(min=0) + other.clamp(min=0), one.clamp(max=0) + other.clamp(max=0)

        keep_slopes(found, layer.index, layer.activation, total, rule, parts)
        return activate(total, layer.activation)

    def backward(self, found: Trace, layer: Shortcut, output: Tensor, visit: Visit) -> Iterable[tuple[int, Tensor]]:
        """See `LayerRule.backward`."""
        slopes = found.slopes.pop(layer.index, None)
        for source in layer.inputs:
            if slopes is None:
                yield source, output
            elif slopes.equal:
                yield source, output * slopes.positive
            else:
                yield source, output * by_sign(found.deltas[source], slopes.positive, slopes.negative)
