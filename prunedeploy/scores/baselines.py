"""Importance scores that follow from the network alone: one float per weight.

They have the shape of every score, `interface.ScoreFunction`, but read neither batches nor loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch

from prunedeploy.data.batches import Batch
from prunedeploy.models.darknet import Darknet
from prunedeploy.scores.interface import DetectionLoss, Scores
from prunedeploy_engines.errors import PruningError


def scaled_scores(model: Darknet, batches: Iterable[Batch] = (), loss: DetectionLoss | None = None) -> Scores:
    """HYDRA's scaled initialisation: ``sqrt(6 / fan_in) * w / max|w|`` per layer.

    Args:
        model: The network; fan_in is input channels per group times kernel area.
        batches: Not read.
        loss: Not used.

    Returns:
        By layer index: weight-shaped float32 in ``[-sqrt(6 / fan_in), sqrt(6 / fan_in)]``.

    Reference: Sehwag et al., HYDRA: Pruning Adversarially Robust Neural Networks, 2020, equation 5.
    """
    scores = {}
    for layer in model.cfg.convolutions:
        weight = model.conv(layer.index).weight.detach()
        largest = weight.abs().max().clamp(min=torch.finfo(weight.dtype).tiny)
        scores[layer.index] = math.sqrt(6.0 / weight[0].numel()) * weight / largest
    return scores


def magnitude_scores(model: Darknet, batches: Iterable[Batch] = (), loss: DetectionLoss | None = None) -> Scores:
    """The weights themselves: the smallest go first.

    Args:
        model: The network.
        batches: Not read.
        loss: Not used.

    Returns:
        By layer index: a copy of the weight.

    Reference: Han et al., Learning both Weights and Connections for Efficient Neural Networks, 2015,
    section 3.
    """
    return {layer.index: model.conv(layer.index).weight.detach().clone() for layer in model.cfg.convolutions}


def random_scores(
    model: Darknet, batches: Iterable[Batch] = (), loss: DetectionLoss | None = None, *, seed: int
) -> Scores:
    """Uniform scores in [0, 1), the baseline that any score must beat.

    Args:
        model: Gives the shapes.
        batches: Not read.
        loss: Not used.
        seed: Each layer draws from (seed, layer index).
    """
    drawn = {
        layer.index: np.random.default_rng((seed, layer.index)).random(layer.weight_shape, dtype=np.float32)
        for layer in model.cfg.convolutions
    }
    return {index: torch.from_numpy(values) for index, values in drawn.items()}


def bn_scale_scores(model: Darknet, batches: Iterable[Batch] = (), loss: DetectionLoss | None = None) -> Scores:
    """Network slimming: |gamma| of the filter's batch normalisation, on every weight of the filter.

    All weights of a filter share one score, so this tells filters apart and nothing smaller.

    Args:
        model: The network.
        batches: Not read.
        loss: Not used.

    Returns:
        By layer index: weight-shaped. An output of a detection head that has no batch normalisation gets 1
        everywhere: no pruning cuts heads, but scores are needed for all convolutions.

    Raises:
        PruningError: Another convolution has no batch normalisation; the first is named.

    Reference: Liu et al., Learning Efficient Convolutional Networks through Network Slimming, 2017, section 3.
    """
    heads = model.cfg.head_outputs
    scores = {}
    for layer in model.cfg.convolutions:
        conv = model.conv(layer.index)
        if conv.scale is not None:
            per_filter = conv.scale.detach().abs()
        elif layer.index in heads:
            per_filter = torch.ones_like(conv.bias.detach())
        else:
            raise PruningError(
                f"the convolution of layer {layer.index} has no batch normalisation, so bn-scale has no score for it",
                f"{model.cfg.where}:{layer.line}",
                "use another score for this network",
            )
        scores[layer.index] = per_filter.view(-1, 1, 1, 1).expand(layer.weight_shape).contiguous()
    return scores
