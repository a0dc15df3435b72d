"""Random noise, and FGSM against its formula."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attacks.test_pgd import SECTIONS, TARGETS
from prunedeploy.attacks import Noise, Pgd
from prunedeploy.attacks.norms import lengths
from prunedeploy.models import yolo_loss
from pruning.darknets import network, random_network


@pytest.fixture(scope="module")
def images() -> Tensor:
    return 0.3 + 0.4 * torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_noise_in_linf_is_uniform(images):
    moved = Noise(0.05)(images) - images
    assert float(moved.abs().max()) == pytest.approx(0.05, rel=0.01)
    # 3072 draws: mean 0, standard deviation eps / sqrt(3)
    assert abs(float(moved.mean())) < 0.0015
    assert float(moved.std()) == pytest.approx(0.05 / 3**0.5, rel=0.03)


def test_noise_in_l2_has_the_radius_as_its_length_and_any_direction(images):
    moved = Noise(0.8, "l2")(images) - images
    assert lengths(moved).flatten().tolist() == pytest.approx([0.8] * 4, rel=1e-4)
    directions = moved.flatten(1) / 0.8
    assert float((directions @ directions.T - torch.eye(4)).abs().max()) < 0.15  # 768 dimensions: about 1 / sqrt(768)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_an_images_noise_depends_on_its_pixels_and_the_seed_alone(images, norm):
    noise = Noise(0.1, norm, seed=3)
    assert torch.equal(noise(images.flip(0)).flip(0), noise(images))
    assert torch.equal(noise(images[2:3], TARGETS), noise(images)[2:3])
    assert not torch.equal(Noise(0.1, norm, seed=4)(images), noise(images))


def test_noise_stays_in_the_pixel_range(images):
    white = torch.ones_like(images)
    moved = Noise(0.2)(white)
    assert float(moved.max()) == 1.0
    assert float((moved == 1).float().mean()) == pytest.approx(0.5, abs=0.05)  # half of the pixels would go up


def test_fgsm_is_one_signed_step_of_the_whole_radius(images):
    model = random_network(network(*SECTIONS), seed=1)
    x = images.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(yolo_loss(model(x), TARGETS, model.cfg).total, x)
    expected = (images + 0.03 * gradient.sign()).clamp(0, 1)
    found = Pgd.fgsm(model, 0.03)(images, TARGETS)
    # The folded network rounds differently: the sign of a gradient that is all but zero may differ.
    assert float(((found - expected).abs() > 1e-6).float().mean()) < 0.01
    assert torch.equal(Pgd.fgsm(model, 0.03).of_model(model, images, TARGETS), found)
