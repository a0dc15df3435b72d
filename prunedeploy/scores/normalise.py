"""Bringing the scores of different layers to a common scale."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from prunedeploy.scores.interface import Scores


def normalised_scores(scores: Scores, how: str) -> Scores:
    """Scale each layer's scores; the order within a layer does not change.

    Args:
        scores: By layer index: float, weight-shaped.
        how: ``none``; ``mean``, so that the mean |score| of every layer is 1; or ``scaled``, HYDRA's
            ``sqrt(6 / fan_in) * s / max|s|`` with the score in the place of the weight.

    Returns:
        New tensors; a layer whose scores are all 0 keeps them.

    Raises:
        ValueError: ``how`` is unknown.

    Reference: Sehwag et al., HYDRA, 2020, equation 5, for ``scaled``.
    """
    if how == "none":
        return {index: value.clone() for index, value in scores.items()}
    if how == "mean":
        return {index: _divided(value, value.abs().mean()) for index, value in scores.items()}
    if how == "scaled":
        return {
            index: math.sqrt(6.0 / value[0].numel()) * _divided(value, value.abs().max())
            for index, value in scores.items()
        }
    raise ValueError(f"unknown normalisation {how!r}; there are none, mean, scaled")


def _divided(value: Tensor, by: Tensor) -> Tensor:
    return value / by if bool(by > 0) else torch.zeros_like(value)
