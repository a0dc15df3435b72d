"""Unstructured pruning: which single weights live, the same fraction in every layer."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from prunedeploy.models.darknet_cfg import DarknetCfg
from prunedeploy.pruning.coupling import prunable_convolutions
from prunedeploy.pruning.importance import highest, weight_magnitude
from prunedeploy.pruning.ratio import check_ratio, ratio_tolerance
from prunedeploy_engines.errors import PruningError


def keep_counts(cfg: DarknetCfg, ratio: float) -> dict[int, int]:
    """Number of weights that live in each prunable convolution, at least one.

    The running total is rounded, not each layer, so that the total is right to half a weight.

    Args:
        cfg: The network.
        ratio: Fraction of the weights of all prunable convolutions to remove, in [0, 1).

    Raises:
        PruningError: The ratio is outside [0, 1), or one weight per layer is too many.
    """
    check_ratio(ratio)
    counts: dict[int, int] = {}
    total = kept = 0
    for layer in prunable_convolutions(cfg):
        filters, per_group, height, width = layer.weight_shape
        total += filters * per_group * height * width
        counts[layer.index] = max(1, round((1.0 - ratio) * total) - kept)
        kept += counts[layer.index]
    if total and abs(1.0 - kept / total - ratio) > ratio_tolerance(ratio):
        raise PruningError(
            f"pruning ratio {ratio:g} cannot be reached: the highest is {1.0 - len(counts) / total:.4f}, "
            "one weight per layer",
            cfg.where,
            "ask for a lower one",
        )
    return counts


def solve_unstructured(scores: Mapping[int, Tensor], cfg: DarknetCfg, ratio: float) -> dict[int, Tensor]:
    """Keep the weights with the highest |score| of each layer.

    Args:
        scores: By layer index: float, weight-shaped; needed for every prunable convolution.
        cfg: The network.
        ratio: Fraction of the weights of all prunable convolutions to remove, in [0, 1).

    Returns:
        For every prunable convolution: bool, weight-shaped, True = keep. The outputs of the detection
        heads are not in it: they keep all.

    Raises:
        PruningError: As `keep_counts`.
        ValueError: Scores are missing, have another shape than the weights, or hold a NaN.

    Reference: Sehwag et al., HYDRA, 2020, section 4: one pruning ratio for all layers.
    """
    layers = {layer.index: layer for layer in cfg.convolutions}
    masks = {}
    for index, count in keep_counts(cfg, ratio).items():
        magnitude = weight_magnitude(scores, layers[index])
        masks[index] = highest(magnitude.flatten(), count).view_as(magnitude)
    return masks
