"""Blurs against plain loops over pixels, and SciPy's zoom, with the published parameters written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage

from prunedeploy.data.corruptions import corrupt
from prunedeploy.data.corruptions.blur import disk, smeared


def mirrored(place: int, side: int) -> int:
    """``cdcb|abcd|cba``: the edge itself is not repeated."""
    period = max(1, 2 * (side - 1))
    place = abs(place) % period
    return min(place, period - place)


@pytest.mark.parametrize(
    ("severity", "radius", "softening", "reach"), [(1, 3, 0.1, 8), (3, 6, 0.5, 8), (5, 10, 0.5, 10)]
)
def test_defocus_is_a_mean_over_a_softened_disk(
    severity: int, radius: int, softening: float, reach: int, speckled: np.ndarray
) -> None:
    sharp = np.array(
        [[float(x * x + y * y <= radius * radius) for x in range(-reach, reach + 1)] for y in range(-reach, reach + 1)]
    )
    soft_reach = 1 if radius <= 8 else 2
    bell = {i: math.exp(-i * i / (2 * softening**2)) for i in range(-soft_reach, soft_reach + 1)}
    kernel = np.zeros_like(sharp)
    for y, x in np.ndindex(*sharp.shape):
        for i, first in bell.items():
            for j, second in bell.items():
                kernel[y, x] += first * second * sharp[mirrored(y + i, len(sharp)), mirrored(x + j, len(sharp))]
    kernel /= sharp.sum() * sum(bell.values()) ** 2
    assert disk(radius, softening) == pytest.approx(kernel, abs=1e-12)

    height, width = speckled.shape[:2]
    found = corrupt(speckled, "defocus_blur", severity)
    for y, x in ((0, 0), (3, 25), (15, 13), (29, 1), (29, 25)):
        total = np.zeros(3)
        for i, j in np.ndindex(*kernel.shape):
            total += kernel[i, j] * speckled[mirrored(y + i - reach, height), mirrored(x + j - reach, width)]
        assert np.abs(found[y, x] - np.floor(total)).max() <= 1


@pytest.mark.parametrize(("severity", "sigma", "farthest", "rounds"), [(1, 0.7, 1, 2), (3, 1, 2, 3), (5, 1.5, 4, 2)])
def test_glass_blur_is_a_walk_over_pixels(
    severity: int, sigma: float, farthest: int, rounds: int, speckled: np.ndarray, draws
) -> None:
    def blurred(image: np.ndarray) -> np.ndarray:
        return ndimage.gaussian_filter(image / 255, (sigma, sigma, 0), mode="nearest") * 255

    rng = draws("glass_blur", severity)
    image = blurred(speckled).astype(np.uint8)
    height, width = image.shape[:2]
    for _ in range(rounds):
        for y in range(height - farthest, farthest, -1):
            for x in range(width - farthest, farthest, -1):
                right, down = rng.integers(-farthest, farthest, size=2)
                image[y, x] = image[y + down, x + right]
    found = corrupt(speckled, "glass_blur", severity, seed=3, image_id=7)
    assert np.abs(found - np.floor(blurred(image))).max() <= 1
    assert (found == np.floor(blurred(image))).mean() > 0.99


@pytest.mark.parametrize(("severity", "radius", "sigma"), [(1, 10, 3), (4, 15, 12), (5, 20, 15)])
def test_motion_blur_is_a_weighted_sum_along_a_line(
    severity: int, radius: int, sigma: float, speckled: np.ndarray, draws
) -> None:
    angle = math.radians(draws("motion_blur", severity).uniform(-45, 45))
    weights = [math.exp(-i * i / (2 * sigma**2)) for i in range(2 * radius + 1)]
    height, width = speckled.shape[:2]
    expected = np.zeros(speckled.shape)
    for i, weight in enumerate(weights):
        down, right = (math.ceil(i * part - 0.5) for part in (math.sin(angle), math.cos(angle)))
        for y, x in np.ndindex(height, width):
            seen = speckled[min(max(y + down, 0), height - 1), min(max(x + right, 0), width - 1)]
            expected[y, x] += weight / sum(weights) * seen
    found = corrupt(speckled, "motion_blur", severity, seed=3, image_id=7)
    assert np.abs(found - np.floor(expected)).max() <= 1


def test_a_point_is_smeared_to_the_left_and_upwards() -> None:
    point = np.zeros((9, 9, 1))
    point[4, 4] = 1
    bell = np.exp(-(np.arange(5) ** 2) / 2)
    assert smeared(point, 2, 1, 0)[4, :, 0] == pytest.approx([*(bell / bell.sum())[::-1], 0, 0, 0, 0])
    assert smeared(point, 2, 1, 90)[:, 4, 0] == pytest.approx([*(bell / bell.sum())[::-1], 0, 0, 0, 0])


@pytest.mark.parametrize(
    ("severity", "factors"),
    [
        (1, np.arange(1, 1.11, 0.01)),  # as the reference writes them, rounding of the ends included
        (2, np.arange(1, 1.16, 0.01)),
        (3, np.arange(1, 1.21, 0.02)),
        (4, np.arange(1, 1.26, 0.02)),
        (5, np.arange(1, 1.31, 0.03)),
    ],
)
def test_zoom_blur_is_a_mean_of_enlargements(severity: int, factors: np.ndarray, speckled: np.ndarray) -> None:
    values = speckled / 255
    height, width = values.shape[:2]
    total = values.copy()
    for factor in factors:
        rows, columns = math.ceil(height / factor), math.ceil(width / factor)
        top, left = (height - rows) // 2, (width - columns) // 2
        # "nearest", since SciPy otherwise takes the last row for outside where its coordinate is rounded upwards.
        middle = values[top : top + rows, left : left + columns]
        total += ndimage.zoom(middle, (factor, factor, 1), order=1, mode="nearest")[:height, :width]
    expected = np.floor(255 * total / (len(factors) + 1))
    found = corrupt(speckled, "zoom_blur", severity)
    assert np.abs(found - expected).max() <= 1
    assert (found == expected).mean() > 0.98
