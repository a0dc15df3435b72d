"""Noise against the published parameters: what it draws, and how often."""

from __future__ import annotations

import math

import numpy as np
import pytest

from prunedeploy.data.corruptions import corrupt

PUBLISHED = {
    "gaussian_noise": [0.08, 0.12, 0.18, 0.26, 0.38],
    "shot_noise": [60, 25, 12, 5, 3],
    "impulse_noise": [0.03, 0.06, 0.09, 0.17, 0.27],
}
SEVERITIES = range(1, 6)


def flat(value: int) -> np.ndarray:
    return np.full((150, 160, 3), value, np.uint8)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_gaussian_noise_has_the_published_spread_before_it_is_clipped(severity: int) -> None:
    scale = PUBLISHED["gaussian_noise"][severity - 1]
    found = corrupt(flat(128), "gaussian_noise", severity).ravel() / 255
    # Quantiles survive clipping: one standard deviation below and above the middle.
    low, middle, high = np.quantile(found, [0.158655, 0.5, 0.841345])
    assert middle == pytest.approx(128 / 255, abs=0.006)
    assert min(high, 1) - middle == pytest.approx(min(scale, 127 / 255), rel=0.03, abs=0.004)
    assert middle - max(low, 0) == pytest.approx(min(scale, 128 / 255), rel=0.03, abs=0.004)


def test_gaussian_noise_is_the_image_plus_its_draws(speckled: np.ndarray, draws) -> None:
    noise = draws("gaussian_noise", 4).normal(0, 0.26, speckled.shape)
    expected = np.floor(255 * np.clip(speckled / 255 + noise, 0, 1))
    found = corrupt(speckled, "gaussian_noise", 4, seed=3, image_id=7)
    assert np.abs(found - expected).max() <= 1
    assert (found == expected).mean() > 0.99


@pytest.mark.parametrize("severity", SEVERITIES)
def test_shot_noise_counts_photons(severity: int) -> None:
    photons = PUBLISHED["shot_noise"][severity - 1]
    found = corrupt(flat(60), "shot_noise", severity).ravel().astype(int)
    levels = np.floor(255 * np.arange(photons + 1) / photons + 1e-6)
    assert set(found) <= set(levels.astype(int))
    counts = np.rint(found * photons / 255)
    rate = 60 / 255 * photons
    # Poisson's probabilities; what is brighter than white is cut to it.
    shares = [math.exp(-rate) * rate**k / math.factorial(k) for k in range(photons)]
    shares.append(1 - sum(shares))
    mean = sum(k * share for k, share in enumerate(shares))
    assert counts.mean() == pytest.approx(mean, rel=0.02)
    assert counts.var() == pytest.approx(sum((k - mean) ** 2 * share for k, share in enumerate(shares)), rel=0.04)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_impulse_noise_hits_the_published_share_by_channel(severity: int) -> None:
    share = PUBLISHED["impulse_noise"][severity - 1]
    found = corrupt(flat(100), "impulse_noise", severity)
    assert set(np.unique(found)) == {0, 100, 255}
    assert (found == 0).mean() == pytest.approx(share / 2, rel=0.05)
    assert (found == 255).mean() == pytest.approx(share / 2, rel=0.05)
    all_three = (found != 100).all(axis=2).mean()
    assert all_three == pytest.approx(share**3, rel=0.5, abs=2e-4)
