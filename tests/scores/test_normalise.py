"""Layers on a common scale."""

from __future__ import annotations

import math

import pytest
import torch

from prunedeploy.scores import magnitude_scores, normalised_scores, scaled_scores
from scores.examples import mixed_network

SCORES = {0: torch.tensor([1.0, -3.0]).view(1, 2, 1, 1), 4: torch.tensor([0.0, 0.0]).view(2, 1, 1, 1)}


def test_none_copies() -> None:
    found = normalised_scores(SCORES, "none")
    assert all(torch.equal(found[index], value) for index, value in SCORES.items())
    assert found[0] is not SCORES[0]


def test_mean_makes_the_mean_absolute_score_one() -> None:
    # The mean of 1 and 3 is 2.
    assert normalised_scores(SCORES, "mean")[0].flatten().tolist() == [0.5, -1.5]


def test_scaled_divides_by_the_largest_and_multiplies_by_the_fan_in_s_bound() -> None:
    # fan_in 2: sqrt(6 / 2) times 1 / 3 and -1.
    expected = [math.sqrt(3) / 3, -math.sqrt(3)]
    assert normalised_scores(SCORES, "scaled")[0].flatten().tolist() == pytest.approx(expected)


def test_scaled_magnitude_is_hydra_s_scaled_score() -> None:
    model = mixed_network()
    found = normalised_scores(magnitude_scores(model), "scaled")
    for index, value in scaled_scores(model).items():
        assert torch.allclose(found[index], value, rtol=1e-12)


@pytest.mark.parametrize("how", ["none", "mean", "scaled"])
def test_a_layer_of_zeros_stays_one(how: str) -> None:
    assert normalised_scores(SCORES, how)[4].flatten().tolist() == [0.0, 0.0]


def test_an_unknown_way_is_named() -> None:
    with pytest.raises(ValueError, match="unknown normalisation 'max'; there are none, mean, scaled"):
        normalised_scores(SCORES, "max")
