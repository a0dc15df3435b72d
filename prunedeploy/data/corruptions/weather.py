"""Weather: snow, fog and glare; frost has a file of its own, because its texture is ours."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from prunedeploy.data.corruptions.blur import smeared
from prunedeploy.data.corruptions.pixels import Pixels, luma, pixels, unit, zoomed

SNOW = (
    (0.1, 0.3, 3.0, 0.5, 10, 4, 0.8),
    (0.2, 0.3, 2.0, 0.5, 12, 4, 0.7),
    (0.55, 0.3, 4.0, 0.9, 12, 8, 0.7),
    (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
    (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
)
"""Mean and standard deviation of flakes, their size, from which value on they are seen, half the length and standard
deviation of their fall (`prunedeploy.data.corruptions.blur.smeared`), and what the image keeps of its own colour."""
FOG = ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))
"""Thickness, and by how much a halved scale weakens the clouds (squared: their draws too have that range)."""
BRIGHTNESS = (0.1, 0.2, 0.3, 0.4, 0.5)


def snow(image: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    """Whiten the image, and let flakes fall on it in a direction drawn from -135 to -45 degrees and in the opposite."""
    mean, spread, size, seen_from, radius, sigma, kept = SNOW[severity - 1]
    values = unit(image).astype(np.float32)
    height, width = image.shape[:2]
    flakes = zoomed(rng.normal(mean, spread, (height, width, 1)), size)
    flakes = np.where(flakes < seen_from, 0, np.minimum(flakes, 1)).astype(np.float32)
    flakes = unit(np.rint(smeared(flakes, radius, sigma, angle=rng.uniform(-135, -45)) * 255))[:height, :width]
    whitened = kept * values + (1 - kept) * np.maximum(values, luma(values) * 1.5 + 0.5)
    return pixels(whitened + flakes + flakes[::-1, ::-1])


def fog(image: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    """Lay clouds (`plasma`) over the image, and darken both together so that nothing gets brighter than before."""
    thickness, decay = FOG[severity - 1]
    values = unit(image)
    height, width = image.shape[:2]
    side = 1 << max(1, (max(height, width) - 1).bit_length())
    brightest = values.max()
    clouds = plasma(side, decay, rng)[:height, :width, None]
    return pixels((values + thickness * clouds) * brightest / (brightest + thickness))


def plasma(side: int, decay: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """A fractal by diamonds and squares, which continues across its borders.

    Args:
        side: A power of two, at least 2.
        decay: From scale to scale the range of the draws falls by the square of this.
        rng: Draws.

    Returns:
        ``(side, side)``, from exactly 0 to exactly 1.

    Reference: Fournier, Fussell and Carpenter, Computer Rendering of Stochastic Models, 1982.
    """
    field = np.zeros((side, side))
    step, rough = side, 100.0

    def displaced(sums_of_four: NDArray[np.float64]) -> NDArray[np.float64]:
        return sums_of_four / 4 + rough * rng.uniform(-rough, rough, sums_of_four.shape)

    while step >= 2:
        half = step // 2
        corners = field[::step, ::step]  # (n, n), as are the others
        top = corners + np.roll(corners, -1, axis=1)
        field[half::step, half::step] = displaced(top + np.roll(top, -1, axis=0))
        middles = field[half::step, half::step]
        field[::step, half::step] = displaced(top + middles + np.roll(middles, 1, axis=0))
        left = corners + np.roll(corners, -1, axis=0)
        field[half::step, ::step] = displaced(left + middles + np.roll(middles, 1, axis=1))
        step, rough = half, rough / decay
    field -= field.min()
    return field / field.max()


def brightness(image: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    """Raise the value (the largest channel) by `BRIGHTNESS`, at most to 1, with hue and saturation kept."""
    values = unit(image)
    largest = values.max(axis=2, keepdims=True)
    raised = np.minimum(largest + BRIGHTNESS[severity - 1], 1)
    # Of one hue and saturation, channels are proportional to the value. Black has neither, and becomes grey.
    return pixels(np.where(largest > 0, values * raised / np.where(largest > 0, largest, 1), raised))
