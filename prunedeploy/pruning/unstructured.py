"""Unstructured pruning: how many single weights of every layer live."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from prunedeploy.models.darknet_cfg import DarknetCfg
from prunedeploy.pruning.allocation import allocate_pieces, check_counts, weight_pieces
from prunedeploy.pruning.coupling import prunable_convolutions
from prunedeploy.pruning.importance import weight_magnitude
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
