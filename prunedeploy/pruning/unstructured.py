"""Unstructured pruning: which single weights live."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from prunedeploy.models.darknet_cfg import DarknetCfg
from prunedeploy.pruning.allocation import allocate_pieces, check_counts, weight_pieces
from prunedeploy.pruning.coupling import prunable_convolutions
from prunedeploy.pruning.importance import highest, weight_magnitude
from prunedeploy.pruning.ratio import check_ratio


def keep_counts(
    cfg: DarknetCfg, ratio: float, allocation: str = "uniform", scores: Mapping[int, Tensor] | None = None
) -> dict[int, int]:
    """Number of weights that live in each prunable convolution, at least one.

    Args:
        cfg: The network.
        ratio: Fraction of the weights of all prunable convolutions to remove, in [0, 1).
        allocation: How it is shared out over layers: ``uniform``, ``global`` or ``erk``.
        scores: For ``global``: by layer index, weight-shaped.

    Raises:
        PruningError: The ratio is outside [0, 1), or one weight per layer is too many.
        ValueError: ``global`` without scores; or as `weight_magnitude`.
    """
    check_ratio(ratio)
    importance = None
    if allocation == "global" and scores is not None:
        layers = prunable_convolutions(cfg)
        importance = {layer.index: weight_magnitude(scores, layer).flatten() for layer in layers}
    pieces = weight_pieces(cfg)
    counts = allocate_pieces(cfg, pieces, allocation, 1.0 - ratio, importance)
    check_counts(cfg, pieces, counts, ratio, "weight")
    return counts


def solve_unstructured(
    scores: Mapping[int, Tensor], cfg: DarknetCfg, ratio: float, allocation: str = "uniform"
) -> dict[int, Tensor]:
    """Keep the weights with the highest |score| of each layer.

    Args:
        scores: By layer index: float, weight-shaped; needed for every prunable convolution.
        cfg: The network.
        ratio: Fraction of the weights of all prunable convolutions to remove, in [0, 1).
        allocation: As `keep_counts`.

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
    for index, count in keep_counts(cfg, ratio, allocation, scores).items():
        magnitude = weight_magnitude(scores, layers[index])
        masks[index] = highest(magnitude.flatten(), count).view_as(magnitude)
    return masks
