"""Blur of lenses, of glass, and of movement. Borders continue with the image's edge, or mirrored."""

from __future__ import annotations

from math import ceil, cos, radians, sin

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, signal

from prunedeploy.data.corruptions.pixels import Pixels, Values, pixels, unit, zoomed

DEFOCUS = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))
"""Radius of the disk in pixels, and the standard deviation by which its edge is softened."""
GLASS = ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2))
"""Standard deviation of the blur before and after, farthest displacement in pixels, and rounds of it."""
MOTION = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))
"""Half the length of the movement in pixels, and the standard deviation of its weights along it."""
ZOOM = ((0.01, 1.11), (0.01, 1.16), (0.02, 1.21), (0.02, 1.26), (0.03, 1.31))
"""Step between zoom factors, of which the first is 1, and where they end; `np.arange` takes the first of these ends in,
which its rounding makes a hair larger, and so do published figures."""


def defocus_blur(image: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    """Average over a disk around each pixel: a lens that is out of focus."""
    kernel = disk(*DEFOCUS[severity - 1])
    reach = len(kernel) // 2
    # A mirrored border is as long as the image at most; np.pad goes on mirroring where the disk is longer.
    framed = np.pad(unit(image), ((reach, reach), (reach, reach), (0, 0)), "reflect")
    return pixels(signal.fftconvolve(framed, kernel[..., None], mode="valid", axes=(0, 1)))


def disk(radius: int, softening: float) -> NDArray[np.float64]:
    """The kernel of `defocus_blur`: a disk, whose weights sum to 1, softened by a Gaussian of 3 x 3 or 5 x 5."""
    reach, soft_reach = (8, 1) if radius <= 8 else (radius, 2)
    steps = np.arange(-reach, reach + 1)
    hard = (steps[:, None] ** 2 + steps**2 <= radius**2).astype(np.float64)
    soft = np.exp(-(np.arange(-soft_reach, soft_reach + 1) ** 2) / (2 * softening**2))
    kernel = hard / hard.sum()
    for axis in (0, 1):
        kernel = ndimage.correlate1d(kernel, soft / soft.sum(), axis, mode="mirror")
    return kernel


def glass_blur(image: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    """Blur, let each pixel take the value of one nearby, and blur again: frosted glass."""
    sigma, farthest, rounds = GLASS[severity - 1]
    moved = pixels(_gaussian(unit(image), sigma))
    for _ in range(rounds):
        moved = _taken_from_nearby(moved, farthest, rng)
    return pixels(_gaussian(unit(moved), sigma))


def _gaussian(image: Values, sigma: float) -> Values:
    return ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="nearest", truncate=4.0)


def _taken_from_nearby(image: Pixels, farthest: int, rng: np.random.Generator) -> Pixels:
    """One round of `glass_blur`, all pixels at once.

    By definition pixels are visited from the last to the first, but for a border, and each takes the value that the
    one at a random displacement in ``[-farthest, farthest)`` has by then. So a pixel's value comes from the end of a
    chain: from its source, if that is visited later or not at all, else from where that one's came from. All
    chains are followed together, doubling the distance each time.
    """
    height, width = image.shape[:2]
    rows, columns = (np.arange(side - farthest, farthest, -1) for side in (height, width))
    across, down = np.moveaxis(rng.integers(-farthest, farthest, (len(rows), len(columns), 2)), 2, 0)
    row, column = rows[:, None] + down, columns + across
    here, source = rows[:, None] * width + columns, row * width + column
    visited = (row > farthest) & (column > farthest) & (row <= height - farthest) & (column <= width - farthest)
    goes_on = visited & (source > here)
    origin, next_one = np.arange(height * width), np.arange(height * width)
    origin[here], next_one[here] = source, np.where(goes_on, source, here)
    while not np.array_equal(further := next_one[next_one], next_one):
        next_one = further
    return image.reshape(height * width, -1)[origin[next_one]].reshape(image.shape)


def motion_blur(image: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    """Smear along a direction drawn from -45 to 45 degrees: a camera, or a car, in motion."""
    return pixels(smeared(unit(image).astype(np.float32), *MOTION[severity - 1], angle=rng.uniform(-45, 45)))


def smeared(image: Values, radius: int, sigma: float, angle: float) -> Values:
    """Add up copies of an image, each a pixel farther along a line, with the weights of half a Gaussian.

    Args:
        image: ``(H, W, C)``; beyond its border its edge goes on.
        radius: There are ``2 * radius + 1`` copies, the first of them in place.
        sigma: Standard deviation of their weights, in copies; the weights sum to 1.
        angle: Of the line, in degrees; 0 moves copies to the left, 90 up.
    """
    copies = np.arange(2 * radius + 1)
    weights = np.exp(-(copies**2) / (2 * sigma**2))
    down, across = (
        [ceil(i * direction - 0.5) for i in copies.tolist()] for direction in (sin(radians(angle)), cos(radians(angle)))
    )
    reach = 2 * radius + 1
    framed = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), "edge")
    height, width = image.shape[:2]
    total = np.zeros_like(image)
    for weight, y, x in zip(weights / weights.sum(), down, across, strict=True):
        total += framed[reach + y : reach + y + height, reach + x : reach + x + width] * image.dtype.type(weight)
    return total


def zoom_blur(image: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    """Average an image with enlargements of its middle: a camera that moves towards the scene."""
    step, end = ZOOM[severity - 1]
    factors = np.arange(1, end, step)
    values = unit(image).astype(np.float32)
    total = values.copy()  # the image itself counts twice: it is also the enlargement by 1
    height, width = image.shape[:2]
    for factor in factors.tolist():
        total += zoomed(values, factor)[:height, :width]
    return pixels(total / (len(factors) + 1))
