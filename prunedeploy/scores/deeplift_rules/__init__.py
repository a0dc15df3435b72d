"""DeepLIFT's rules for single layers: one file per kind that is not linear in its inputs, and one for all that are."""

from collections.abc import Mapping
from typing import Any

from prunedeploy.models.darknet_cfg import DarknetCfg
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
    rule = LAYER_RULES.get(layer.kind, _LINEAR if layer.linear else None)
    lacking = f"[{layer.kind}]" if rule is None else rule.lacking(layer)
    if rule is None or lacking is not None:
        fix = "use another score for this network"
        raise PruningError(f"DeepLIFT has no rule for {lacking}", f"layer {layer.index}", fix)
    return rule


def check_rules(cfg: DarknetCfg) -> None:
    """Refuse a network that DeepLIFT has no rules for.

    Raises:
        PruningError: Names the first layer without one.
    """
    for layer in cfg.layers:
        if not layer.is_head:
            rule_of(layer)


__all__ = ["LAYER_RULES", "LayerRule", "check_rules", "rule_of"]
