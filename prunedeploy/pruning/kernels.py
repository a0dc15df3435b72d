"""Kernel pruning: which k x k slices live. A kernel is the part of a filter that reads one input channel."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from prunedeploy.models.darknet_cfg import Convolutional, DarknetCfg
from prunedeploy.pruning.allocation import allocate_pieces, check_counts, kernel_pieces
from prunedeploy.pruning.coupling import prunable_convolutions
from prunedeploy.pruning.importance import highest, straight_through, weight_magnitude
from prunedeploy.pruning.ratio import check_ratio


def kernel_importance(scores: Mapping[int, Tensor], layer: Convolutional) -> Tensor:
    """Mean of |score| over each kernel.

    Args:
        scores: By layer index: float, weight-shaped.
        layer: The convolution.

    Returns:
        ``(filters, input channels / groups)``, detached.

    Raises:
        ValueError: As `weight_magnitude`.
    """
    return weight_magnitude(scores, layer).mean((2, 3))


def kernel_counts(
    cfg: DarknetCfg, ratio: float, allocation: str = "uniform", scores: Mapping[int, Tensor] | None = None
) -> dict[int, int]:
    """Number of kernels that live in each prunable convolution, at least one.

    Args:
        cfg: The network.
        ratio: Fraction of the *weights* of all prunable convolutions to remove, in [0, 1).
        allocation: How it is shared out over layers: ``uniform``, ``global`` or ``erk``.
        scores: For ``global``: by layer index, weight-shaped.

    Raises:
        PruningError: The ratio is outside [0, 1), or one kernel per layer is too many.
        ValueError: ``global`` without scores; or as `weight_magnitude`.
    """
    check_ratio(ratio)
    importance = None
    if allocation == "global" and scores is not None:
        layers = prunable_convolutions(cfg)
        importance = {layer.index: kernel_importance(scores, layer).flatten() for layer in layers}
    pieces = kernel_pieces(cfg)
    counts = allocate_pieces(cfg, pieces, allocation, 1.0 - ratio, importance)
    check_counts(cfg, pieces, counts, ratio, "kernel")
    return counts


def straight_through_kernel_mask(scores: Tensor, keep_count: int) -> Tensor:
    """Mask of the kernels with the highest mean |score| of one layer.

    Args:
        scores: Weight-shaped float.
        keep_count: Number of kernels that live.

    Returns:
        Same shape, exactly 0.0 or 1.0. The gradient of a kernel's entries, summed, is handed on to the kernel's
        importance, living or dead, and from there to all its scores.

    Reference: HYDRA, 2020, section 4, with kernels in the place of weights.
    """
    importance = scores.abs().mean((2, 3))
    lives = highest(importance.detach().flatten(), keep_count).view_as(importance)
    return straight_through(importance, lives.to(scores.dtype))[:, :, None, None].expand_as(scores)
