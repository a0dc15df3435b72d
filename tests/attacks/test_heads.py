"""Every kind of head can be attacked: objectives and margins have the gradients that finite differences have."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from head_networks import SECTIONS, head_cfg, random_head
from models.sections.test_anchor_free import anchor_free_cfg
from prunedeploy.attacks.found_objects import Counting, Objects
from prunedeploy.attacks.objectives import OBJECTIVES, objective_for
from prunedeploy.attacks.pgd import Pgd
from prunedeploy.attacks.threat_model import ThreatModel
from prunedeploy.models import load_darknet
from prunedeploy.models.darknet_cfg import DarknetCfg
from pruning.darknets import randomise

TARGETS = torch.tensor(
    [
        [0, 0, 0.30, 0.40, 0.26, 0.50],
        [0, 1, 0.72, 0.61, 0.16, 0.17],
        [0, 0, 0.61, 0.18, 0.14, 0.15],
        [1, 2, 0.47, 0.55, 0.24, 0.60],
        [2, 1, 0.20, 0.80, 0.15, 0.14],
    ],
    dtype=torch.float64,
)
"""Objects of three images, of the anchors' sizes, some alike."""


WITHOUT_ANCHORS = ("dfl", "yolox")
WANTING_OVERLAPS = ("total", "classes", "class-wise", "untargeted", "mislabel-most", "mislabel-least")
"""In yolox heads what classes are to score is an overlap, which is a constant to the gradient."""


def network_cfg(kind: str) -> DarknetCfg:
    return anchor_free_cfg(kind) if kind in WITHOUT_ANCHORS else head_cfg(kind)


def yolox_heads(batch: int, seed: int) -> list[Tensor]:
    """Of `network_cfg`: boxes of about a cell around their points, scores of all sizes."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, *head.out_shape) for head in network_cfg("yolox").heads]
    heads = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    for raw in heads:
        raw[:, :4] = 0.4 + 0.3 * raw[:, :4]
        raw[:, 4:] *= 5
    return heads


def slopes(kind: str, function: Callable[[Tensor], Tensor], raw: Tensor, still: int = 0) -> tuple[Tensor, Tensor]:
    """Derivative along a random direction, by gradient and by differences; before the logistic where there is one.

    Of the channels the first, ``still`` many, do not move.
    """
    start = torch.logit(raw) if kind == "new_coords" else raw

    def value(at: Tensor) -> Tensor:
        return function(torch.sigmoid(at) if kind == "new_coords" else at)

    at = start.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(value(at).sum(), at)
    direction = torch.randn(raw.shape, dtype=raw.dtype, generator=torch.Generator().manual_seed(5))
    direction[:, :still] = 0
    with torch.no_grad():
        ahead, behind = (value(start + sign * 1e-6 * direction) for sign in (1, -1))
    return (gradient * direction).flatten(1).sum(1), (ahead - behind) / 2e-6


@pytest.mark.parametrize("kind", SECTIONS)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_of_objectives_are_finite_differences(kind: str, name: str) -> None:
    cfg, clean = head_cfg(kind), random_head(kind, 3, seed=4, certainty=5.0)
    objective = objective_for(name, lambda: [clean], TARGETS, cfg)
    by_gradient, by_difference = slopes(kind, lambda raw: objective([raw]), 0.98 * clean)
    assert by_gradient.shape == (3,)
    assert by_gradient.abs().max() > 1e-3
    torch.testing.assert_close(by_difference, by_gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_of_objectives_of_yolox_are_finite_differences(name: str) -> None:
    cfg, (fine, coarse) = network_cfg("yolox"), yolox_heads(3, seed=8)
    objective = objective_for(name, lambda: [fine, coarse], TARGETS, cfg)
    still = 4 if name in WANTING_OVERLAPS else 0
    by_gradient, by_difference = slopes("yolox", lambda raw: objective([raw, coarse]), 0.98 * fine, still)
    assert by_gradient.abs().max() > 1e-3
    torch.testing.assert_close(by_difference, by_gradient, rtol=1e-4, atol=1e-5)
    if still:
        at = (0.98 * fine).requires_grad_(True)
        (gradient,) = torch.autograd.grad(objective([at, coarse]).sum(), at)
        assert bool((gradient[:, :4] != 0).any()) == (name != "classes")


@pytest.mark.parametrize("kind", SECTIONS)
def test_gradients_of_margins_are_finite_differences(kind: str) -> None:
    raw = random_head(kind, 3)
    objects = Objects.of(head_cfg(kind), TARGETS, None, 3, Counting(score=0.05))
    wanted = torch.ones(len(TARGETS), dtype=torch.bool)
    by_gradient, by_difference = slopes(kind, lambda at: objects.margins_and_lost([at], wanted)[0], raw)
    assert by_gradient.abs().max() > 1e-3
    torch.testing.assert_close(by_difference, by_gradient, rtol=1e-4, atol=1e-5)


def test_gradients_of_margins_of_yolox_are_finite_differences() -> None:
    fine, coarse = yolox_heads(3, seed=8)
    objects = Objects.of(network_cfg("yolox"), TARGETS, None, 3, Counting(score=0.05))
    wanted = torch.ones(len(TARGETS), dtype=torch.bool)
    by_gradient, by_difference = slopes("yolox", lambda at: objects.margins_and_lost([at, coarse], wanted)[0], fine)
    assert by_gradient.abs().max() > 1e-3
    torch.testing.assert_close(by_difference, by_gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [*SECTIONS, *WITHOUT_ANCHORS])
def test_an_attack_on_images_raises_the_loss(kind: str) -> None:
    model = randomise(load_darknet(network_cfg(kind)), seed=1)
    images = torch.rand(3, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    targets = TARGETS.float()
    total = objective_for("total", lambda: model(images), targets, model.cfg)
    before = total(model(images)).detach()
    attacked = Pgd.against(model, ThreatModel(steps=3))(images, targets)
    after = total(model(attacked)).detach()
    assert torch.isfinite(after).all()
    assert (after > before).all()
