"""DeepLIFT's rules for single layers: one file per kind that is not linear in its inputs, and one for all that are."""

from collections.abc import Mapping
from typing import Any

from prunedeploy.models.sections import Layer
from prunedeploy.scores.deeplift_rules.convolutional import ConvolutionalRule
from prunedeploy.scores.deeplift_rules.interface import LayerRule
from prunedeploy.scores.deeplift_rules.linear import LinearRule
from prunedeploy.scores.deeplift_rules.maxpool import MaxpoolRule
from prunedeploy.scores.deeplift_rules.product import ProductRule
from prunedeploy.scores.deeplift_rules.shortcut import ShortcutRule
from prunedeploy_engines.errors import PruningError

LAYER_RULES: Mapping[str, LayerRule[Any]] = {
    "convolutional": ConvolutionalRule(),
    "maxpool": MaxpoolRule(),
    "shortcut": ShortcutRule(),
    "sam": ProductRule(),
    "scale_channels": ProductRule(),
}
"""By the section's name in a cfg; a section that is ``linear`` needs none."""

_LINEAR = LinearRule()


def rule_of(layer: Layer) -> LayerRule[Any]:
    """The rule for a layer.

    Raises:
        PruningError: There is none.
    """
    if layer.kind in LAYER_RULES:
        return LAYER_RULES[layer.kind]
    if layer.linear:
        return _LINEAR
    what, fix = f"DeepLIFT has no rule for [{layer.kind}]", "use another score for this network"
    raise PruningError(what, f"layer {layer.index}", fix)


__all__ = ["LAYER_RULES", "LayerRule", "rule_of"]
