"""The ball, its projection, and random starts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from prunedeploy.attacks import ThreatModel, project_linf
from prunedeploy.attacks.checks import check_invariants
from prunedeploy.attacks.threat_model import start_noise

SHAPE = (2, 3, 3, 2)
pixels = arrays(np.float32, SHAPE, elements=st.floats(0, 1, width=32))
candidates = arrays(np.float32, SHAPE, elements=st.floats(-3, 4, width=32))


def test_defaults_are_the_papers() -> None:
    attack = ThreatModel()
    assert (attack.eps, attack.step_size, attack.steps) == (0.05, 0.02, 5)
    assert not attack.random_start
    assert attack.restarts == 1
    assert attack.iterate == "last"


@given(x_adv=candidates, x=pixels, eps=st.floats(0, 1))
def test_projection_ends_in_the_ball_and_the_pixel_range(x_adv: np.ndarray, x: np.ndarray, eps: float) -> None:
    before = x_adv.copy()
    projected = project_linf(torch.from_numpy(x_adv), torch.from_numpy(x), eps)
    check_invariants(projected, torch.from_numpy(x), eps)
    # The nearest point of an interval is the clipped value; float64, so independent of float32's rounding.
    low, high = np.maximum(x.astype(np.float64) - eps, 0), np.minimum(x.astype(np.float64) + eps, 1)
    np.testing.assert_allclose(projected.numpy(), np.clip(x_adv, low, high), atol=2.4e-7)
    np.testing.assert_array_equal(x_adv, before)
    again = project_linf(projected, torch.from_numpy(x), eps)
    assert torch.equal(again, projected)


def test_projection_refuses_other_shapes_and_a_negative_radius() -> None:
    with pytest.raises(ValueError, match=r"\(1, 3, 2, 2\) and \(1, 3, 2, 3\)"):
        project_linf(torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 3), 0.1)
    with pytest.raises(ValueError, match="negative"):
        project_linf(torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2), -0.1)


@pytest.mark.parametrize(
    "wrong",
    [{"eps": -0.1}, {"eps": 1.5}, {"eps": float("nan")}, {"step_size": 0.0}, {"steps": 0}, {"restarts": 0},
     {"restarts": 2}, {"iterate": "first"}],
)  # fmt: skip
def test_a_threat_model_out_of_range_is_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ThreatModel(**wrong)


def test_noise_depends_on_an_images_key_alone_and_fills_the_ball() -> None:
    keys = [(1, 0, 7, 0), (1, 0, 8, 0), (1, 1, 7, 0), (1, 0, 7, 1), (2, 0, 7, 0)]
    noise = start_noise((5, 3, 20, 20), 0.05, keys)
    assert noise.dtype == torch.float32
    assert float(noise.abs().max()) <= 0.05
    assert float(noise.abs().max()) > 0.049
    # Uniform: mean 0, standard deviation eps / sqrt(3); 6000 draws.
    assert abs(float(noise.mean())) < 0.0015
    assert float(noise.std()) == pytest.approx(0.05 / 3**0.5, rel=0.03)
    for first in range(5):
        for second in range(first):
            assert not torch.equal(noise[first], noise[second])
    backwards = start_noise((5, 3, 20, 20), 0.05, keys[::-1])
    assert torch.equal(backwards.flip(0), noise)


def test_noise_needs_a_key_for_every_image() -> None:
    with pytest.raises(ValueError, match="expected 2 keys, got 1"):
        start_noise((2, 3, 4, 4), 0.1, [(0, 0, 0, 0)])
