"""Distances as distributions, against numbers worked by hand and finite differences."""

from __future__ import annotations

import math

import pytest
import torch

from prunedeploy.models.distribution_focal import boxes_around, distribution_focal_loss, expected_distances


def logits_of(*probabilities: float) -> torch.Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


def test_the_expected_distance_is_the_mean_of_the_bins() -> None:
    assert float(expected_distances(logits_of(0.1, 0.2, 0.3, 0.4))) == pytest.approx(0.2 + 2 * 0.3 + 3 * 0.4)
    # Adding to all logits changes nothing.
    assert float(expected_distances(logits_of(0.1, 0.2, 0.3, 0.4) + 70)) == pytest.approx(2.0)


def test_boxes_lie_around_their_points() -> None:
    # All mass on one bin: 1 cell to the left, 0 up, 2 to the right, 3 down, of 8 pixels each, from (20, 12).
    sides = torch.full((1, 4, 4), -1e3, dtype=torch.float64)
    for side, distance in enumerate((1, 0, 2, 3)):
        sides[0, side, distance] = 0
    boxes = boxes_around(sides, sides.new_tensor([[20, 12]]), sides.new_tensor([[8]]))
    assert boxes.tolist() == [[24, 24, 24, 24]]  # 12 to 36 and 12 to 36


def test_a_box_without_extent_has_a_finite_gradient() -> None:
    sides = torch.zeros(1, 4, 16)
    sides[..., 0] = 1e3
    sides.requires_grad_()
    boxes = boxes_around(sides, torch.zeros(1, 2), torch.ones(1, 1))
    (gradient,) = torch.autograd.grad((boxes[:, 2] / boxes[:, 3]).atan().sum(), sides)
    assert (boxes[:, 2:] > 0).all()
    assert gradient.isfinite().all()


def test_distribution_focal_loss_worked_by_hand() -> None:
    p = (0.1, 0.2, 0.3, 0.4)
    # 1.25: three quarters of bin 1 and a quarter of bin 2; 2 is bin 2 alone.
    expected = {1.25: -(0.75 * math.log(0.2) + 0.25 * math.log(0.3)), 2.0: -math.log(0.3), 0.0: -math.log(0.1)}
    # Beyond the last bin, 3, 2.99 is wanted; below the first, 0.
    expected |= {8.0: -(0.01 * math.log(0.3) + 0.99 * math.log(0.4)), -2.0: -math.log(0.1)}
    found = distribution_focal_loss(logits_of(*p).expand(5, 4), torch.tensor(list(expected), dtype=torch.float64))
    torch.testing.assert_close(found, torch.tensor(list(expected.values()), dtype=torch.float64))


def test_distribution_focal_loss_is_least_at_the_two_nearest_bins() -> None:
    # Li et al., section 3.2: the optimum puts (right - y) and (y - left) on the two.
    best = logits_of(1e-12, 0.75, 0.25, 1e-12)
    wanted = best.new_tensor(1.25)
    least = float(distribution_focal_loss(best, wanted))
    assert least == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        other = best + torch.randn(4, generator=generator, dtype=torch.float64)
        assert float(distribution_focal_loss(other, wanted)) > least
    assert float(expected_distances(best)) == pytest.approx(1.25)


def test_gradients_are_those_of_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    sides = torch.randn(3, 4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    wanted = torch.tensor([[0.0, 0.3, 1.7, 2.2], [3.9, 9, -1, 1], [2.5, 2.5, 0.1, 3]], dtype=torch.float64)
    points, stride = wanted[:, :2] * 8, wanted.new_full((3, 1), 8.0)
    assert torch.autograd.gradcheck(lambda s: distribution_focal_loss(s, wanted), sides)
    assert torch.autograd.gradcheck(lambda s: boxes_around(s, points, stride), sides)
