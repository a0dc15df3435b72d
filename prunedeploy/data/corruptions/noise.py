"""Noise of sensors and of transmission. Each severity's parameter is the number of that place in the table."""

from __future__ import annotations

import numpy as np

from prunedeploy.data.corruptions.pixels import Pixels, pixels, unit

GAUSSIAN_SIGMA = (0.08, 0.12, 0.18, 0.26, 0.38)
SHOT_PHOTONS = (60, 25, 12, 5, 3)
IMPULSE_SHARE = (0.03, 0.06, 0.09, 0.17, 0.27)


def gaussian_noise(image: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    """Add to each value a normal draw of standard deviation `GAUSSIAN_SIGMA`: too little light."""
    return pixels(unit(image) + rng.normal(scale=GAUSSIAN_SIGMA[severity - 1], size=image.shape))


def shot_noise(image: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    """Replace each value by a Poisson count, where white expects `SHOT_PHOTONS`: light comes in quanta."""
    photons = SHOT_PHOTONS[severity - 1]
    return pixels(rng.poisson(unit(image) * photons) / photons)


def impulse_noise(image: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    """Replace a share `IMPULSE_SHARE` of all values by 0 or 255, each as likely: salt and pepper, by channel."""
    hit = rng.random(image.shape) <= IMPULSE_SHARE[severity - 1]
    salt = rng.random(image.shape) <= 0.5
    return np.where(hit, np.where(salt, np.uint8(255), np.uint8(0)), image)
