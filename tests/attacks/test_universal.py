"""One perturbation for all images: it stays in its ball, does what it is for, and repeats itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from prunedeploy.attacks import AttackInvariantError, perturbed, universal_perturbation
from prunedeploy.attacks.objectives import objective_for
from prunedeploy.models.darknet import FoldedDarknet

EPS = 0.05
NO_OBJECTS = torch.zeros(0, 6)


def total(model, images: Tensor, objective: str = "flood") -> float:
    with torch.no_grad():
        network = FoldedDarknet(model)
        value = objective_for(objective, lambda: network(images), NO_OBJECTS, model.cfg)
        return float(value(network(images)).sum())


@pytest.fixture(scope="module")
def found(model, images) -> Tensor:
    return universal_perturbation(model, [(images[:2], NO_OBJECTS), (images[2:], NO_OBJECTS)], EPS, passes=6)


def test_it_stays_in_the_ball_and_images_in_theirs(found, images):
    assert found.shape == (1, 3, 16, 16)
    assert float(found.abs().max()) <= np.float32(EPS)
    moved = perturbed(images, found, EPS)
    assert float((moved - images).abs().max()) <= EPS + 1e-6
    assert 0 <= float(moved.min()) <= float(moved.max()) <= 1
    # Where no pixel range is in the way every image is moved alike.
    inside = (images > EPS) & (images < 1 - EPS)
    assert torch.allclose((moved - images)[inside], found.expand_as(images)[inside], atol=1e-6)


def test_one_perturbation_floods_all_images_more_than_noise_does(found, model, images):
    clean, flooded = total(model, images), total(model, perturbed(images, found, EPS))
    assert flooded > clean
    for seed in range(5):
        signs = np.sign(np.random.default_rng(seed).standard_normal((1, 3, 16, 16))).astype(np.float32)
        assert total(model, perturbed(images, torch.from_numpy(EPS * signs), EPS)) < flooded


def test_the_best_of_all_passes_is_given_even_where_a_pass_loses(model, images):
    batch = [(images, NO_OBJECTS)]
    values = [
        total(model, perturbed(images, universal_perturbation(model, batch, EPS, passes=passes), EPS))
        for passes in (1, 3)
    ]
    assert min(values) >= total(model, images)


def test_it_repeats_itself_and_leaves_the_network_alone(model, images):
    before = [value.clone() for value in (*model.parameters(), *model.buffers())]
    first, second = (universal_perturbation(model, [(images, NO_OBJECTS)], EPS, passes=2) for _ in range(2))
    assert torch.equal(first, second)
    assert all(map(torch.equal, before, (*model.parameters(), *model.buffers())))


def test_perturbation_that_is_too_large_is_cut_to_the_ball(images):
    moved = perturbed(images, torch.full((1, 3, 16, 16), 0.3), EPS)
    assert float((moved - images).abs().max()) <= EPS + 1e-6


def test_no_images_is_a_mistake(model):
    with pytest.raises(ValueError, match="needs images"):
        universal_perturbation(model, [], EPS)


def test_images_that_are_none_are_noticed(images):
    with pytest.raises(AttackInvariantError):
        perturbed(images + 2, torch.zeros(1, 3, 16, 16), EPS)
