"""Attacked images as 8 bits hold them: of 255ths, in the ball, as near as can be."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from prunedeploy.attacks.norms import Norm, on_lattice, project


def images(seed: int, count: int = 3) -> torch.Tensor:
    levels = torch.randint(0, 256, (count, 3, 8, 10), generator=torch.Generator().manual_seed(seed))
    levels[0, 0, 0, :4] = torch.tensor([0, 1, 254, 255])
    return levels.float() / 255


def attacked(clean: torch.Tensor, eps: float, norm: Norm, seed: int = 1) -> torch.Tensor:
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
    return project(clean + 3 * eps * noise, clean, eps, norm)


@pytest.mark.parametrize("eps", [0.05, 8 / 255, 2 / 255, 1 / 255, 0.0039, 0.3])
def test_linf_result_is_the_nearest_level_in_the_ball(eps: float) -> None:
    clean = images(0)
    moved = attacked(clean, eps, "linf")
    found = on_lattice(moved, clean, eps, "linf")
    assert found.dtype == torch.float32
    levels = np.arange(256)
    start = np.rint(clean.numpy().astype(np.float64) * 255)
    allowed = np.abs(levels - start[..., None]) <= np.floor(255 * eps + 1e-4)  # every level of every pixel
    distance = np.where(allowed, np.abs(levels - moved.numpy().astype(np.float64)[..., None] * 255), np.inf)
    assert np.array_equal(found.numpy(), (distance.argmin(-1) / np.float32(255)).astype(np.float32))
    assert float((found - clean).abs().max()) <= eps + 2.4e-7


def test_rounding_alone_would_have_left_the_ball() -> None:
    """0.05 is 12.75 levels: 100 + 12.75 rounds to 113, which is 13 away."""
    clean = torch.full((1, 3, 2, 2), 100 / 255)
    moved = clean + 0.05
    assert float((moved * 255).round().max()) == 113
    assert float(on_lattice(moved, clean, 0.05, "linf").max()) == pytest.approx(112 / 255, abs=1e-7)


@pytest.mark.parametrize("eps", [0.01, 0.05, 0.5, 3.0])
def test_l2_result_is_in_the_ball(eps: float) -> None:
    clean = images(2)
    moved = attacked(clean, eps, "l2")
    found = on_lattice(moved, clean, eps, "l2")
    levels = found.double() * 255
    assert float((levels - levels.round()).abs().max()) < 1e-4
    assert float((found.double() - clean.double()).flatten(1).norm(dim=1).max()) <= eps * (1 + 1e-5)
    # No pixel went farther from where the attack left it than the level next to it.
    assert float((found - moved).abs().max()) <= 1 / 255 + 1e-6


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_an_image_of_levels_stays_as_it_is(norm: Norm) -> None:
    clean = images(3)
    assert torch.equal(on_lattice(clean, clean, 0.05, norm), clean)
    moved = (clean * 255 + 1).clamp(0, 255).round() / 255
    assert torch.equal(on_lattice(moved, clean, 1.0, norm), moved)
