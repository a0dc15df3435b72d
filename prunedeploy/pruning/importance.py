"""From one score per weight to one importance per unit, and masks through which gradients reach the scores.

Reference: Sehwag et al., HYDRA: Pruning Adversarially Robust Neural Networks, 2020, section 4: the
forward pass uses the top-k scores, the backward pass hands the mask's gradient straight to all scores.
As in the authors' code "straight through" ends at the score's absolute value, which is what is ranked: a
gradient that wants a weight alive raises |score|, whatever the score's sign.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from prunedeploy.models.sections import Convolutional
from prunedeploy.pruning.coupling import CouplingGroup


def unit_importance(scores: Mapping[int, Tensor], groups: Sequence[CouplingGroup]) -> list[Tensor]:
    """Mean of |score| over all weights of all filters of each unit.

    Args:
        scores: By layer index: float, weight-shaped. Needed for every convolution with a prunable filter.
        groups: From `coupling_groups`.

    Returns:
        For every group ``(units,)``, differentiable with respect to the scores; zeros where a group is not
        prunable.

    Raises:
        ValueError: A convolution has no scores, or its scores hold a NaN or infinity.
    """
    filter_sums: dict[int, Tensor] = {}
    importance = []
    for group in groups:
        if not group.prunable:
            importance.append(torch.zeros(group.channels))
            continue
        total, weights = torch.zeros(()), 0
        for member in group.members:
            layer_scores = scores.get(member.layer)
            if layer_scores is None:
                raise ValueError(f"no scores for layer {member.layer}; there are scores for {sorted(scores)}")
            if member.layer not in filter_sums:
                filter_sums[member.layer] = layer_scores.abs().flatten(1).sum(1)
            # (filters,)[(units, filters per unit)] -> (units, filters per unit) -> (units,)
            unit_sums = filter_sums[member.layer][member.filters.to(layer_scores.device)].sum(1)
            total = total + unit_sums
            weights += member.filters.shape[1] * layer_scores[0].numel()
        if not bool(torch.isfinite(total.detach()).all()):
            raise ValueError(f"scores of layers {list(group.layers)} hold a value that is not finite")
        importance.append(total / weights)
    return importance


def fitting_scores(scores: Mapping[int, Tensor], layer: Convolutional) -> Tensor:
    """The scores of a convolution, as they are.

    Args:
        scores: By layer index: float, weight-shaped.
        layer: The convolution.

    Raises:
        ValueError: They are missing, or have another shape than the weights (both printed).
    """
    found = scores.get(layer.index)
    if found is None or tuple(found.shape) != layer.weight_shape:
        given = None if found is None else tuple(found.shape)
        raise ValueError(f"layer {layer.index}: expected scores of shape {layer.weight_shape}, got {given}")
    return found


def weight_magnitude(scores: Mapping[int, Tensor], layer: Convolutional) -> Tensor:
    """|score| of every weight of a convolution, which is what weights are ranked by.

    Args:
        scores: By layer index: float, weight-shaped.
        layer: The convolution.

    Returns:
        Weight-shaped, detached.

    Raises:
        ValueError: As `fitting_scores`, or they hold a NaN.
    """
    magnitude = fitting_scores(scores, layer).detach().abs()
    if bool(magnitude.isnan().any()):
        raise ValueError(f"the scores of layer {layer.index} hold a NaN")
    return magnitude


def highest(values: Tensor, count: int) -> Tensor:
    """Mark the ``count`` highest values; of equal ones the first.

    Args:
        values: ``(n,)`` float.
        count: 0 to n.

    Returns:
        ``(n,)`` bool.

    Raises:
        ValueError: ``count`` is out of range, or a value is NaN.
    """
    if not 0 <= count <= values.numel():
        raise ValueError(f"cannot keep {count} of {values.numel()} values")
    mask = torch.zeros(values.numel(), dtype=torch.bool, device=values.device)
    if count == 0:
        return mask
    lowest = _nth_smallest(values, values.numel() - count)
    mask = values > lowest
    ties = (values == lowest).nonzero().flatten()[: count - int(mask.sum())]
    mask[ties] = True
    if int(mask.sum()) != count:
        raise ValueError("cannot rank values that hold a NaN")
    return mask


def _nth_smallest(values: Tensor, n: int) -> float:
    """Select in linear time: sorting every layer in every step of score optimisation would be slow."""
    if values.device.type == "cpu" and values.dtype == torch.float32:
        # A tenth of the time of PyTorch's selection on a CPU.
        return float(np.partition(values.numpy(), n)[n])
    return float(values.kthvalue(n + 1).values)


def straight_through_weight_mask(scores: Tensor, keep_count: int) -> Tensor:
    """Mask of the weights with the highest |score| of one layer.

    Args:
        scores: Weight-shaped float.
        keep_count: Number of weights that live.

    Returns:
        Same shape, exactly 0.0 or 1.0; its gradient is handed on to |score| of every weight, living or dead.

    Reference: HYDRA, 2020, section 4.
    """
    magnitude = scores.abs()
    mask = highest(magnitude.detach().flatten(), keep_count).view_as(scores).to(scores.dtype)
    return straight_through(magnitude, mask)


def mean_of_kernels(magnitude: Tensor) -> Tensor:
    """Mean of |score| over each kernel: weight-shaped to ``(filters * input channels / groups,)``."""
    return magnitude.mean((2, 3)).flatten()


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


def straight_through_channel_masks(
    scores: Mapping[int, Tensor], counts: Sequence[int], groups: Sequence[CouplingGroup]
) -> dict[int, Tensor]:
    """Channel masks of the units with the highest importance in each group.

    Args:
        scores: By layer index: float, weight-shaped; as `unit_importance`.
        counts: Units that live per group, e.g. ``Widths.counts``.
        groups: From `coupling_groups`.

    Returns:
        By layer index: ``(filters,)``, exactly 0.0 or 1.0, for `DarknetConv`'s ``channel_mask``; only
        convolutions with at least one filter that could be removed. The gradient of every filter's
        entry is handed on to the importance of its unit, living or dead, and from there to all its scores.

    Raises:
        ValueError: ``counts`` has another length than ``groups``; or as `unit_importance`.

    Reference: HYDRA, 2020, section 4, with units in the place of weights.
    """
    if len(counts) != len(groups):
        raise ValueError(f"{len(counts)} counts for {len(groups)} groups")
    masks: dict[int, Tensor] = {}
    for group, importance, count in zip(groups, unit_importance(scores, groups), counts, strict=True):
        if not group.prunable:
            continue
        mask = straight_through(importance, highest(importance.detach(), count).to(importance.dtype))
        for member in group.members:
            layer_scores = scores[member.layer]
            if member.layer not in masks:
                masks[member.layer] = layer_scores.new_ones(layer_scores.shape[0])
            filters = member.filters.to(layer_scores.device)
            masks[member.layer] = masks[member.layer].index_put(
                (filters,), mask[:, None].expand(filters.shape), accumulate=False
            )
    return masks


def straight_through(values: Tensor, mask: Tensor) -> Tensor:
    """The mask, whose gradient goes to ``values`` as if they had been used instead.

    Args:
        values: What the mask was made from, any shape.
        mask: Same shape and dtype.
    """
    result: Tensor = _StraightThrough.apply(values, mask)
    return result


class _StraightThrough(torch.autograd.Function):
    """Forward: the mask. Backward: the mask's gradient, as if the values had been used instead."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, values: Tensor, mask: Tensor) -> Tensor:
        """Return ``mask``."""
        return mask.clone()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        """Hand the gradient to ``values``."""
        return gradient, None
