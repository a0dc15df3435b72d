"""Frost on a pane, with a texture of our own making.

The published corruption pastes parts of five photographs of frost, which this project does not have. Its five textures
here are drawn instead: fields of needles in several directions, with the mean colour and the contrast of each of those
photographs (two of which are the same). So figures under frost are comparable with each other, and **not** with
published ones; the shares of image and frost at each severity are the published ones.
"""

from __future__ import annotations

from functools import lru_cache
from math import pi

import numpy as np
from numpy.typing import NDArray

from prunedeploy.data.corruptions.pixels import Pixels, pixels, unit
from prunedeploy.data.draws import generator_for

FROST = ((1.0, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))
"""What the image is multiplied by, and the frost, before they are added."""
PANES = (
    ((78, 149, 166), (27, 17, 15), 1),
    ((201, 205, 214), (21, 22, 23), -1),
    ((201, 205, 214), (21, 22, 23), -1),
    ((138, 153, 165), (28, 28, 30), 1),
    ((112, 123, 135), (44, 43, 42), 1),
)
"""Of each texture: mean RGB and its standard deviation, 0 to 255, and the sign of its skewness: 1 is ridges above a
plain, -1 grooves in it."""
SIDE = 512
_DIRECTIONS = 5
_LUMA = np.array([0.2989, 0.5870, 0.1140])


def frost(image: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    """Add a random part of one of five textures to the darkened image."""
    of_image, of_frost = FROST[severity - 1]
    whole = unit(pane(int(rng.integers(len(PANES)))))
    top, left = rng.integers(SIDE, size=2)
    height, width = image.shape[:2]
    # The texture continues across its borders, so that it covers an image of any size.
    part = whole[np.arange(top, top + height)[:, None] % SIDE, np.arange(left, left + width) % SIDE]
    if image.shape[2] == 1:
        part = (part @ _LUMA)[..., None]
    return pixels(of_image * unit(image) + of_frost * part)


@lru_cache
def pane(number: int) -> Pixels:
    """One of the textures, ``(SIDE, SIDE, 3)`` RGB; the same in every run, and not to be written to."""
    mean, spread, sign = PANES[number]
    rng = generator_for(0, number)
    # Where each direction prevails: the softmax of smooth fields.
    weights = np.exp(3 * np.stack([_field(rng, slope=3, flat_below=4) for _ in range(_DIRECTIONS)]))
    weights /= weights.sum(axis=0)
    first = rng.uniform(0, pi)
    angles = first + np.arange(_DIRECTIONS) * pi / _DIRECTIONS
    # A field is zero along curves, where its magnitude has a sharp groove; stretched, they are needles.
    needles = sum(
        weight * np.abs(_field(rng, slope=2.7, flat_below=8, angle=angle))
        for weight, angle in zip(weights, angles, strict=True)
    )
    rime = 0.85 * _standard(sign * needles) + 0.53 * _field(rng, slope=2)
    values = _standard(_standard(rime) + 0.7 * _field(rng, slope=4, flat_below=2))
    texture = pixels((np.array(mean) + values[..., None] * np.array(spread)) / 255)
    texture.flags.writeable = False
    return texture


def _field(
    rng: np.random.Generator, *, slope: float, flat_below: float = 2, angle: float | None = None
) -> NDArray[np.float64]:
    """A random field ``(SIDE, SIDE)`` that continues across its borders, of mean 0 and standard deviation 1.

    Args:
        rng: Draws.
        slope: Its power falls with this power of the frequency.
        flat_below: From this many periods per side on.
        angle: Direction in which it is drawn out to nine times the width, in radians; None: none.
    """
    down = np.fft.fftfreq(SIDE, 1 / SIDE)[:, None]
    across = np.fft.rfftfreq(SIDE, 1 / SIDE)
    if angle is None:
        frequency = np.hypot(across, down)
    else:
        along = across * np.cos(angle) + down * np.sin(angle)
        aside = down * np.cos(angle) - across * np.sin(angle)
        frequency = np.hypot(along * 3, aside / 3)
    amplitude = np.maximum(frequency, flat_below) ** (-slope / 2)
    amplitude[0, 0] = 0
    noise = np.fft.rfft2(rng.normal(size=(SIDE, SIDE)))
    return _standard(np.fft.irfft2(amplitude * noise, s=(SIDE, SIDE)))


def _standard(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return (values - values.mean()) / values.std()
