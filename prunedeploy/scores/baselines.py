"""Importance scores that follow from the weights alone: one float per weight.

Every function maps a network to scores by layer index, one for each convolution; a score's absolute value is
the importance.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from prunedeploy.models.darknet import Darknet
from prunedeploy.scores.interface import Scores


def scaled_scores(model: Darknet) -> Scores:
    """HYDRA's scaled initialisation: ``sqrt(6 / fan_in) * w / max|w|`` per layer.

    Args:
        model: The network; fan_in is input channels per group times kernel area.

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


def magnitude_scores(model: Darknet) -> Scores:
    """The weights themselves: the smallest go first.

    Args:
        model: The network.

    Returns:
        By layer index: a copy of the weight.

    Reference: Han et al., Learning both Weights and Connections for Efficient Neural Networks, 2015,
    section 3.
    """
    return {layer.index: model.conv(layer.index).weight.detach().clone() for layer in model.cfg.convolutions}


def random_scores(model: Darknet, seed: int) -> Scores:
    """Uniform scores in [0, 1), the baseline that any score must beat.

    Args:
        model: Gives the shapes.
        seed: Each layer draws from (seed, layer index).
    """
    scores = {}
    for layer in model.cfg.convolutions:
        rng = np.random.default_rng((seed, layer.index))
        scores[layer.index] = torch.from_numpy(rng.random(layer.weight_shape, dtype=np.float32))
    return scores
