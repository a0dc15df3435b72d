"""n:m pruning: of every m weights in a row n live, which is the pattern that sparse tensor cores compute.

A block is m consecutive **input channels** of one filter at one position of its kernel, which is what TensorRT
asks of 2:4: "for each output channel and for each spatial pixel in the kernel weights, every four input
channels must have at least two zeros", in its notation K, C, R, S along C.

Reference: NVIDIA TensorRT, Best Practices, Structured Sparsity; Mishra et al., Accelerating Sparse Deep Neural
Networks, 2021.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prunedeploy.models.darknet_cfg import DarknetCfg
from prunedeploy.models.sections import Convolutional
from prunedeploy.pruning.coupling import prunable_convolutions
from prunedeploy.pruning.importance import straight_through
from prunedeploy.pruning.ratio import ratio_tolerance
from prunedeploy_engines.errors import ConfigError, GateError, PruningError


@dataclass(frozen=True)
class NmPattern:
    """At most ``n`` of every ``m`` weights are not zero; written ``n:m``.

    Raises:
        ValueError: Not 1 <= n < m.
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        if not 1 <= self.n < self.m:
            raise ValueError(f"{self.n}:{self.m} is no pattern: n is from 1 to below m")

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"


def patterned_convolutions(cfg: DarknetCfg, pattern: NmPattern) -> tuple[Convolutional, ...]:
    """The prunable convolutions whose input channels (per group) are whole blocks."""
    return tuple(layer for layer in prunable_convolutions(cfg) if layer.weight_shape[1] % pattern.m == 0)


def dense_convolutions(cfg: DarknetCfg, pattern: NmPattern) -> dict[int, str]:
    """The convolutions that the pattern leaves as they are: by layer index, why."""
    heads, patterned = cfg.head_outputs, {layer.index for layer in patterned_convolutions(cfg, pattern)}
    return {
        layer.index: "output of a detection head"
        if layer.index in heads
        else f"reads {layer.weight_shape[1]} input channels, not a multiple of {pattern.m}"
        for layer in cfg.convolutions
        if layer.index not in patterned
    }


def nm_ratio(cfg: DarknetCfg, pattern: NmPattern) -> float:
    """The pruning ratio that a pattern gives: removed weights / weights, of all prunable convolutions.

    Raises:
        PruningError: No convolution has whole blocks of input channels.
    """
    patterned = sum(layer.weight_count for layer in patterned_convolutions(cfg, pattern))
    if patterned == 0:
        what = f"no prunable convolution reads a multiple of {pattern.m} input channels, so {pattern} removes nothing"
        raise PruningError(what, cfg.where, "use another pattern or method")
    total = sum(layer.weight_count for layer in prunable_convolutions(cfg))
    return patterned * (pattern.m - pattern.n) / pattern.m / total


def check_nm_ratio(cfg: DarknetCfg, pattern: NmPattern, ratio: float) -> None:
    """Refuse a ratio that is not the one the pattern gives.

    Args:
        cfg: The network.
        pattern: What it is pruned to.
        ratio: What was asked for.

    Raises:
        ConfigError: They differ by more than `ratio_tolerance`; names the ratio that fits.
        PruningError: As `nm_ratio`.
    """
    reached, usual = nm_ratio(cfg, pattern), 1.0 - pattern.n / pattern.m
    if abs(reached - ratio) > ratio_tolerance(ratio):
        fix = f"give --ratio {usual:g}"
        if abs(reached - usual) > ratio_tolerance(usual):
            dense = sum(layer.weight_shape[1] % pattern.m != 0 for layer in prunable_convolutions(cfg))
            fix = f"give --ratio {reached:.4f}, or a pattern that does not leave {dense} convolutions dense"
        what = f"{pattern} removes {reached:.4f} of this network's prunable weights, not {ratio:g}"
        raise ConfigError(what, "ratio", fix)


def highest_of_blocks(values: Tensor, pattern: NmPattern) -> Tensor:
    """Mark the ``n`` highest values of each block; of equal ones those of the lower channels.

    Args:
        values: ``(filters, channels, height, width)``, channels a multiple of ``m``; no NaN.
        pattern: How many of how many.

    Returns:
        Same shape, bool; True for exactly ``n`` of each block.

    Raises:
        ValueError: The channels are not a multiple of ``m``.
    """
    # m tensors (filters, channels / m, height, width). Counting for each value the ones before it takes a tenth of
    # the time of sorting blocks of four, and score optimisation does this to every layer in every step.
    positions = _blocks(values, pattern).unbind(2)
    before = [torch.zeros_like(position, dtype=torch.int32) for position in positions]
    for later in range(pattern.m):
        for earlier in range(later):
            first = positions[earlier] >= positions[later]
            before[later] += first
            before[earlier] += ~first
    return torch.stack([count < pattern.n for count in before], dim=2).flatten(1, 2)


def straight_through_nm_mask(scores: Tensor, pattern: NmPattern) -> Tensor:
    """Mask of the weights with the highest |score| of each block of one layer.

    Args:
        scores: Weight-shaped float, channels a multiple of ``m``.
        pattern: How many of how many live.

    Returns:
        Same shape, exactly 0.0 or 1.0; its gradient is handed on to |score| of every weight, living or dead.

    Raises:
        ValueError: The channels are not a multiple of ``m``, or a score is NaN.

    Reference: HYDRA, 2020, section 4, with blocks in the place of the layer.
    """
    magnitude = scores.abs()
    if bool(magnitude.detach().isnan().any()):
        raise ValueError("cannot rank scores that hold a NaN")
    return straight_through(magnitude, highest_of_blocks(magnitude.detach(), pattern).to(scores.dtype))


def check_pattern(weight: Tensor, pattern: NmPattern, where: object = None) -> int:
    """Make sure that a weight has the pattern.

    Args:
        weight: ``(filters, channels, height, width)``.
        pattern: What it must have.
        where: What to call it in the error.

    Returns:
        Number of blocks that were looked at.

    Raises:
        GateError: A block has more than ``n`` weights that are not zero; says how many such blocks there are.
        ValueError: The channels are not a multiple of ``m``.
    """
    living = _blocks(weight.detach() != 0, pattern).sum(2)
    broken = int((living > pattern.n).sum())
    if broken:
        blocks = f"{broken} of {living.numel()} blocks of {pattern.m} weights"
        raise GateError(f"{blocks} have more than {pattern.n} that are not zero", where)
    return living.numel()


def _blocks(values: Tensor, pattern: NmPattern) -> Tensor:
    """``(filters, channels, height, width)`` -> ``(filters, channels / m, m, height, width)``."""
    if values.dim() != 4 or values.shape[1] % pattern.m:
        raise ValueError(f"{pattern} needs (filters, k * {pattern.m}, height, width), got {tuple(values.shape)}")
    return values.unflatten(1, (-1, pattern.m))
