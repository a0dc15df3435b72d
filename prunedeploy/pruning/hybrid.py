"""Hybrid pruning: filters go first, then single weights of what remains; one ratio counts both.

A weight is **connected** if its filter and its input channel live. Only connected weights are ranked, so a dead
filter's high scores take no place.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from prunedeploy.models.darknet_cfg import DarknetCfg
from prunedeploy.pruning.allocation import allocate_pieces, check_counts, weight_pieces
from prunedeploy.pruning.coupling import prunable_convolutions
from prunedeploy.pruning.importance import highest, straight_through, weight_magnitude
from prunedeploy.pruning.masks import live_channels
from prunedeploy.pruning.shrink import shrink_cfg, shrink_weights


def connected_counts(
    cfg: DarknetCfg,
    keep: Mapping[int, Tensor],
    ratio: float,
    allocation: str = "uniform",
    scores: Mapping[int, Tensor] | None = None,
) -> dict[int, int]:
    """Number of connected weights that live in each prunable convolution, at least one.

    Args:
        cfg: The unpruned network.
        keep: By layer index: ``(filters,)`` bool, the filters that live.
        ratio: Fraction of the unpruned network's prunable weights to remove, those that go with filters included.
            If the filters alone remove as many or more, no weight is zeroed.
        allocation: How the living weights are shared out over layers: ``uniform``, ``global`` or ``erk``, in the shapes
            of the network that the filters leave.
        scores: For ``global``: by layer index, in the shapes of ``cfg``.

    Raises:
        PruningError: One weight per layer is too many.
        ValueError: ``global`` without scores; or as `weight_magnitude`.
    """
    live = live_channels(cfg, keep)
    small = shrink_cfg(cfg, live)
    pieces = weight_pieces(small)
    total = sum(layer.weight_count for layer in prunable_convolutions(cfg))
    connected = sum(piece.count for piece in pieces)
    density = 1.0 - ratio if connected == total else min(1.0, (1.0 - ratio) * total / connected)
    importance = None
    if allocation == "global" and scores is not None:
        cut = shrink_weights(cfg, live, scores)
        importance = {layer.index: weight_magnitude(cut, layer).flatten() for layer in prunable_convolutions(small)}
    counts = allocate_pieces(small, pieces, allocation, density, importance)
    if density < 1.0:
        check_counts(cfg, pieces, counts, ratio, "weight", total)
    return counts


def straight_through_connected_mask(scores: Tensor, connected: Tensor, keep_count: int) -> Tensor:
    """Mask of the connected weights with the highest |score| of one layer.

    Weights that are not connected are measured against the lowest |score| that lives, though nothing of them
    reaches the output: so a dead filter's gradient tells what the filter would do with the weights it would have.

    Args:
        scores: Weight-shaped float.
        connected: ``(filters, input channels / groups)`` bool.
        keep_count: Number of connected weights that live, at least 1.

    Returns:
        Same shape as the scores, exactly 0.0 or 1.0; its gradient is handed on to |score| of every weight.

    Reference: HYDRA, 2020, section 4.
    """
    magnitude, connected = scores.abs(), connected.to(scores.device)
    # (filters, in / groups, k, k)[(filters, in / groups) bool] -> (connected kernels, k, k)
    ranked = magnitude.detach()[connected]
    lives = highest(ranked.flatten(), keep_count).view_as(ranked)
    mask = magnitude.detach() >= ranked[lives].min()
    mask[connected] = lives
    return straight_through(magnitude, mask.to(scores.dtype))
