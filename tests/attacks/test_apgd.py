"""APGD against the paper's algorithm image by image, in plain Python, and its promises."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attacks.test_pgd import TARGETS
from effort import slow_after
from prunedeploy.attacks import Apgd, AttackInvariantError, Pgd, ThreatModel
from prunedeploy.attacks.apgd import checkpoints
from prunedeploy.attacks.checks import check_invariants
from prunedeploy.attacks.norms import lengths
from prunedeploy.models import FoldedDarknet, yolo_losses


def loss_and_gradient(network_: FoldedDarknet, x: Tensor, targets: Tensor) -> tuple[float, Tensor]:
    x = x.detach().requires_grad_(True)
    loss = yolo_losses(network_(x), targets, network_.cfg).sum()
    return float(loss), torch.autograd.grad(loss, x)[0]


def algorithm_1(
    network_: FoldedDarknet, image: Tensor, targets: Tensor, eps: float, steps: int
) -> tuple[Tensor, float]:
    """Croce and Hein 2020, algorithm 1, for one image in L-inf, with every value kept in a list."""

    def into_ball(z: Tensor) -> Tensor:
        return torch.max(torch.min(z, image + eps), image - eps).clamp(0, 1)

    # p_0 = 0, p_1 = .22, p_{j+1} = p_j + max(p_j - p_{j-1} - .03, .06); lengths in whole steps.
    length, checks = int(0.22 * steps), [0, int(0.22 * steps)]
    while checks[-1] < steps:
        length = max(length - int(0.03 * steps), int(0.06 * steps))
        checks.append(checks[-1] + length)
    points = [image]
    values, gradients = ([value] for value in loss_and_gradient(network_, image, targets))
    best = 0
    rose: list[bool] = []
    size, halved, best_at_check = 2 * eps, True, values[0]
    at, before = image, image
    value, gradient = values[0], gradients[0]
    for step in range(1, steps + 1):
        z = into_ball(at + size * gradient.sign())
        moved = z if step == 1 else into_ball(at + 0.75 * (z - at) + 0.25 * (at - before))
        before, at = at, moved
        new_value, gradient = loss_and_gradient(network_, at, targets)
        rose.append(new_value > value)
        value = new_value
        points.append(at)
        values.append(value)
        gradients.append(gradient)
        if value > values[best]:
            best = len(values) - 1
        if step in checks:
            last = checks[checks.index(step) - 1]
            few = sum(rose[last:step]) <= 0.75 * (step - last)
            stuck = not halved and best_at_check == values[best]
            halved = few or stuck
            if halved:
                size, at, value, gradient = size / 2, points[best], values[best], gradients[best]
            best_at_check = values[best]
    return points[best], values[best]


@pytest.mark.parametrize("steps", slow_after(2, 34, 50, 100))
def test_apgd_is_the_papers_algorithm(model, images, steps):
    ours = Apgd(model, FoldedDarknet(model), 0.05, steps)(images, TARGETS)
    network_ = FoldedDarknet(model)
    found = yolo_losses(network_(ours), TARGETS, model.cfg)
    for index in range(4):
        own = TARGETS[TARGETS[:, 0] == index].clone()
        own[:, 0] = 0
        expected, loss = algorithm_1(network_, images[index : index + 1], own, 0.05, steps)
        # Rounding may flip the sign of a gradient that is all but zero, at single pixels.
        assert float(((ours[index] - expected[0]).abs() > 1e-6).float().mean()) < 0.01
        assert float(found[index]) == pytest.approx(loss, rel=1e-4)


def test_checkpoints_are_the_papers():
    # .22, .41, .57, .70, .80, .87, .93, .99 of 100 steps: differences of .22, .19, .16, .13, .10, .07, .06, .06
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(1) == [1]


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("schedule", [False, True])
def test_the_result_is_in_its_ball_and_never_weaker_than_the_clean_image(model, images, norm, schedule):
    eps = 0.05 if norm == "linf" else 0.8
    network_ = FoldedDarknet(model)
    attack = Apgd(model, network_, eps, 20, norm=norm, starts=2, schedule=schedule, seed=1)
    found = attack(images, TARGETS)
    check_invariants(found, images, eps, norm)
    clean, attacked = (yolo_losses(network_(x), TARGETS, model.cfg) for x in (images, found))
    assert bool((attacked >= clean).all())
    assert float(attacked[0]) > float(clean[0])
    # The ball is used: the best point of a loss lies far from its centre.
    moved = (found - images).abs().amax((1, 2, 3)) if norm == "linf" else lengths(found - images).flatten()
    assert float(moved[0]) > 0.9 * eps
    assert torch.equal(found, attack(images, TARGETS))


def test_more_starts_are_never_weaker(model, images):
    network_ = FoldedDarknet(model)
    one, three = (Apgd(model, network_, 0.05, 10, starts=starts)(images, TARGETS) for starts in (1, 3))
    few, many = (yolo_losses(network_(x), TARGETS, model.cfg) for x in (one, three))
    assert bool((many >= few).all())
    assert bool((many > few).any())


def test_apgd_is_not_weaker_than_pgd_with_as_many_steps(model, images):
    network_ = FoldedDarknet(model)
    pgd = Pgd.against(model, ThreatModel(steps=40, iterate="best"))(images, TARGETS)
    apgd = Apgd(model, network_, 0.05, 40)(images, TARGETS)
    ours, theirs = (yolo_losses(network_(x), TARGETS, model.cfg) for x in (apgd, pgd))
    assert bool((ours >= theirs * (1 - 1e-3)).all())


def test_a_changed_network_is_noticed(model, images, monkeypatch):
    network_ = FoldedDarknet(model)
    forward = network_.forward

    def meddling(x: Tensor) -> list[Tensor]:
        with torch.no_grad():
            model.conv(0).weight.mul_(1.0)
        return forward(x)

    monkeypatch.setattr(network_, "forward", meddling)
    with pytest.raises(AttackInvariantError, match="changed during the attack"):
        Apgd(model, network_, 0.05, 2)(images, TARGETS)
