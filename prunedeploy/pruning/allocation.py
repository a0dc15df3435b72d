"""How a pruning ratio is shared out over layers, for methods that zero pieces of layers: single weights or kernels.

- **uniform**: the same fraction of every layer, as HYDRA does.
- **global**: the pieces of the lowest importance in the whole network go. Importances are compared across layers as
  they are given.
- **erk**: the density of a layer follows its shape.

Every layer keeps at least one piece. How filters are shared out is in `width_paths`.

Reference: Evci et al., Rigging the Lottery: Making All Tickets Winners, 2020, section 3.1; Mocanu et al., Scalable
Training of Artificial Neural Networks with Adaptive Sparse Connectivity, 2018, equation 2.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod

import numpy as np
import torch
from torch import Tensor

from prunedeploy.models.darknet_cfg import DarknetCfg
from prunedeploy.models.sections import Convolutional
from prunedeploy.pruning.coupling import prunable_convolutions
from prunedeploy.pruning.importance import highest
from prunedeploy.pruning.ratio import ratio_tolerance
from prunedeploy_engines.errors import PruningError


@dataclass(frozen=True)
class Pieces:
    """What can be removed from one layer.

    Attributes:
        layer: Index in the cfg.
        count: Number of pieces.
        weights: Weights of each piece.
    """

    layer: int
    count: int
    weights: int

    @property
    def total(self) -> int:
        """Weights of all pieces."""
        return self.count * self.weights


def weight_pieces(cfg: DarknetCfg) -> tuple[Pieces, ...]:
    """Single weights of every prunable convolution."""
    return tuple(Pieces(layer.index, layer.weight_count, 1) for layer in prunable_convolutions(cfg))


def kernel_pieces(cfg: DarknetCfg) -> tuple[Pieces, ...]:
    """Kernels of every prunable convolution; of a 1 x 1 convolution a kernel is one weight."""
    return tuple(
        Pieces(layer.index, prod(layer.weight_shape[:2]), layer.size**2) for layer in prunable_convolutions(cfg)
    )


def uniform_counts(pieces: Sequence[Pieces], density: float) -> dict[int, int]:
    """The same fraction of every layer.

    Args:
        pieces: Pieces of every layer.
        density: Fraction of the weights that lives, in (0, 1].

    Returns:
        By layer index, the number of pieces that live.
    """
    return _rounded(pieces, [density * total for total in accumulate(layer.total for layer in pieces)])


def erk_counts(cfg: DarknetCfg, pieces: Sequence[Pieces], density: float) -> dict[int, int]:
    """The fractions of `erk_densities`.

    Args:
        cfg: The network that the pieces are of.
        pieces: Pieces of every prunable convolution.
        density: Fraction of the weights that lives, in (0, 1].

    Returns:
        By layer index, the number of pieces that live.
    """
    densities = erk_densities(prunable_convolutions(cfg), density)
    wanted = [densities[layer.layer] * layer.count * layer.weights for layer in pieces]
    return _rounded(pieces, np.cumsum(wanted).tolist())


def erk_densities(layers: Iterable[Convolutional], density: float) -> dict[int, float]:
    """Density of every layer, proportional to `erk_factor`, where that is above 1 capped and the rest rescaled.

    Args:
        layers: The convolutions.
        density: Fraction of all their weights that lives, in (0, 1].

    Returns:
        By layer index, in (0, 1]; weighted by the layers' weights their mean is ``density``.
    """
    layers = list(layers)
    factors = {layer.index: erk_factor(layer) for layer in layers}
    weights = {layer.index: layer.weight_count for layer in layers}
    total = sum(weights.values())
    dense: set[int] = set()
    while len(dense) < len(layers):
        left = density * total - sum(weights[index] for index in dense)
        scale = left / sum(factors[index] * weights[index] for index in weights if index not in dense)
        above = {index for index in weights if index not in dense and scale * factors[index] > 1.0}
        if not above:
            return {index: 1.0 if index in dense else scale * factors[index] for index in weights}
        # What these cannot take goes to the others, so none of them comes back below 1.
        dense |= above
    return dict.fromkeys(weights, 1.0)


def erk_factor(layer: Convolutional) -> float:
    """(n_in + n_out + k_w + k_h) / (n_in n_out k_w k_h), n_in being the input channels that a filter reads.

    Reference: Evci et al., 2020, section 3.1, Erdos-Renyi-Kernel.
    """
    shape = layer.weight_shape
    return sum(shape) / prod(shape)


def global_counts(importance: Mapping[int, Tensor], pieces: Sequence[Pieces], density: float) -> dict[int, int]:
    """The most important pieces of the whole network live, of every layer at least the most important one.

    Args:
        importance: By layer index: ``(pieces,)`` float, comparable across layers; no NaN.
        pieces: Pieces of every layer.
        density: Fraction of the weights that lives, in (0, 1].

    Returns:
        By layer index, the number of pieces that live. Of equally important pieces those of earlier layers live.
    """
    values = []
    for layer in pieces:
        own = importance[layer.layer].detach().cpu().float().clone()
        own[own.argmax()] = torch.inf
        values.append(own)
    if not values:
        return {}
    ranked = torch.cat(values)
    weights = {layer.weights for layer in pieces}
    target = round(density * sum(layer.total for layer in pieces))
    if len(weights) == 1:
        # Selecting is faster than sorting, and a large network has 60 million weights.
        number = max(len(pieces), round(target / weights.pop()))
        lives = highest(ranked, number)
    else:
        order = np.argsort(-ranked.numpy(), kind="stable")
        sizes = np.concatenate([np.full(layer.count, layer.weights) for layer in pieces])
        kept = np.cumsum(sizes[order])
        number = max(len(pieces), int(np.abs(kept - target).argmin()) + 1)
        lives = torch.zeros(len(ranked), dtype=torch.bool)
        lives[torch.from_numpy(order[:number])] = True
    parts = lives.split([layer.count for layer in pieces])
    return {layer.layer: int(part.sum()) for layer, part in zip(pieces, parts, strict=True)}


def allocate_pieces(
    cfg: DarknetCfg,
    pieces: Sequence[Pieces],
    allocation: str,
    density: float,
    importance: Mapping[int, Tensor] | None = None,
) -> dict[int, int]:
    """Number of pieces that live in every prunable convolution.

    Args:
        cfg: The network.
        pieces: From `weight_pieces` or `kernel_pieces`.
        allocation: ``uniform``, ``global`` or ``erk``.
        density: Fraction of the weights that lives, in (0, 1].
        importance: For ``global``, as `global_counts`.

    Raises:
        ValueError: The allocation is unknown, or its importance is missing.
    """
    if allocation == "uniform":
        return uniform_counts(pieces, density)
    if allocation == "erk":
        return erk_counts(cfg, pieces, density)
    if allocation == "global" and importance is not None:
        return global_counts(importance, pieces, density)
    raise ValueError(f"cannot allocate pieces by {allocation!r}" + " without importances" * (allocation == "global"))


def check_counts(
    cfg: DarknetCfg,
    pieces: Sequence[Pieces],
    counts: Mapping[int, int],
    ratio: float,
    kind: str,
    total: int | None = None,
) -> None:
    """Refuse counts that miss the ratio, as they do where one piece per layer is too many.

    Args:
        cfg: The network, for the message.
        pieces: Pieces of every layer.
        counts: By layer index, how many live.
        ratio: What was asked for.
        kind: What a piece is called.
        total: Weights that the ratio is a fraction of; None: those of all pieces.

    Raises:
        PruningError: The ratio that the counts give is not within `ratio_tolerance`.
    """
    if total is None:
        total = sum(layer.total for layer in pieces)
    kept = sum(counts[layer.layer] * layer.weights for layer in pieces)
    if total and abs(1.0 - kept / total - ratio) > ratio_tolerance(ratio):
        least = sum(layer.weights for layer in pieces)
        raise PruningError(
            f"pruning ratio {ratio:g} cannot be reached: the highest is {1.0 - least / total:.4f}, "
            f"one {kind} per layer",
            cfg.where,
            "ask for a lower one",
        )


def _rounded(pieces: Sequence[Pieces], running: Sequence[float]) -> dict[int, int]:
    """Round the running total of living weights, not each layer, so that the total is right to half a piece."""
    counts: dict[int, int] = {}
    kept = 0
    for layer, wanted in zip(pieces, running, strict=True):
        count = round((round(wanted) - kept) / layer.weights)
        counts[layer.layer] = min(layer.count, max(1, count))
        kept += counts[layer.layer] * layer.weights
    return counts
