"""Weather against plain computations, with the published parameters written out."""

from __future__ import annotations

import colorsys
import math

import numpy as np
import pytest
from scipy import ndimage

from prunedeploy.data.corruptions import corrupt
from prunedeploy.data.corruptions.frost import PANES, SIDE, pane
from prunedeploy.data.corruptions.weather import plasma


def plasma_by_points(side: int, decay: float, rng: np.random.Generator) -> np.ndarray:
    """Diamonds and squares, one point at a time; a scale's draws come as one array for each kind of point."""
    field = np.zeros((side, side))
    step, rough = side, 100.0
    while step > 1:
        half, count = step // 2, side // step
        straight = ((half, 0), (-half, 0), (0, half), (0, -half))
        slanted = ((half, half), (half, -half), (-half, half), (-half, -half))
        for start, around in (((half, half), slanted), ((0, half), straight), ((half, 0), straight)):
            noise = rng.uniform(-rough, rough, (count, count))
            for i, j in np.ndindex(count, count):
                y, x = start[0] + i * step, start[1] + j * step
                mean = sum(field[(y + down) % side, (x + right) % side] for down, right in around) / 4
                field[y, x] = mean + rough * noise[i, j]
        step, rough = half, rough / decay
    field -= field.min()
    return field / field.max()


@pytest.mark.parametrize(("side", "decay"), [(2, 2.0), (16, 1.7), (32, 1.4)])
def test_plasma_is_made_of_diamonds_and_squares(side: int, decay: float) -> None:
    found = plasma(side, decay, np.random.default_rng(4))
    assert found == pytest.approx(plasma_by_points(side, decay, np.random.default_rng(4)), abs=1e-12)
    assert (found.min(), found.max()) == (0, 1)


@pytest.mark.parametrize(("severity", "thickness", "decay"), [(1, 1.5, 2), (3, 2.5, 1.7), (5, 3, 1.4)])
def test_fog_adds_clouds_and_keeps_the_brightest_value(
    severity: int, thickness: float, decay: float, speckled: np.ndarray, draws
) -> None:
    values = speckled / 255
    clouds = plasma_by_points(32, decay, draws("fog", severity))[:30, :26, None]
    brightest = values.max()
    expected = np.floor(255 * (values + thickness * clouds) * brightest / (brightest + thickness))
    found = corrupt(speckled, "fog", severity, seed=3, image_id=7)
    assert np.abs(found - expected).max() <= 1
    assert found.max() <= speckled.max()
    assert not corrupt(np.zeros((8, 8, 3), np.uint8), "fog", severity).any()  # nothing to see in the dark


@pytest.mark.parametrize(
    ("severity", "parameters"),
    [
        (1, (0.1, 0.3, 3, 0.5, 10, 4, 0.8)),
        (2, (0.2, 0.3, 2, 0.5, 12, 4, 0.7)),
        (3, (0.55, 0.3, 4, 0.9, 12, 8, 0.7)),
        (4, (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65)),
        (5, (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55)),
    ],
)
def test_snow_whitens_and_falls(severity: int, parameters: tuple[float, ...], speckled: np.ndarray, draws) -> None:
    mean, spread, size, seen_from, radius, sigma, kept = parameters
    rng, values = draws("snow", severity), speckled / 255
    height, width = values.shape[:2]
    flakes = rng.normal(mean, spread, (height, width))
    rows, columns = math.ceil(height / size), math.ceil(width / size)
    top, left = (height - rows) // 2, (width - columns) // 2
    flakes = ndimage.zoom(flakes[top : top + rows, left : left + columns], size, order=1, mode="nearest")
    flakes = np.where(flakes < seen_from, 0, np.clip(flakes, 0, 1))
    angle = math.radians(rng.uniform(-135, -45))
    fallen, weights = np.zeros(flakes.shape), [math.exp(-i * i / (2 * sigma**2)) for i in range(2 * int(radius) + 1)]
    for i, weight in enumerate(weights):
        down, right = (math.ceil(i * part - 0.5) for part in (math.sin(angle), math.cos(angle)))
        for y, x in np.ndindex(*fallen.shape):
            source = min(max(y + down, 0), len(flakes) - 1), min(max(x + right, 0), flakes.shape[1] - 1)
            fallen[y, x] += weight / sum(weights) * flakes[source]
    fallen = (np.round(fallen * 255) / 255)[:height, :width, None]
    grey = (0.299 * values[..., 0] + 0.587 * values[..., 1] + 0.114 * values[..., 2])[..., None]
    whitened = kept * values + (1 - kept) * np.maximum(values, 1.5 * grey + 0.5)
    expected = np.floor(255 * np.clip(whitened + fallen + np.rot90(fallen, 2), 0, 1))
    found = corrupt(speckled, "snow", severity, seed=3, image_id=7)
    off = np.abs(found - expected)
    assert off.max() <= 2  # a flake that is rounded the other way counts twice where two layers meet
    assert (off <= 1).mean() > 0.99


@pytest.mark.parametrize("severity", range(1, 6))
def test_brightness_raises_the_value_of_hsv(severity: int, speckled: np.ndarray) -> None:
    image = np.concatenate([speckled[:4], np.zeros((1, 26, 3), np.uint8), np.full((1, 26, 3), 255, np.uint8)])
    found = corrupt(image, "brightness", severity)
    for y, x in np.ndindex(*image.shape[:2]):
        hue, saturation, value = colorsys.rgb_to_hsv(*(image[y, x] / 255))
        raised = colorsys.hsv_to_rgb(hue, saturation, min(1, value + severity / 10))
        assert np.abs(found[y, x] - 255 * np.array(raised)).max() <= 1


@pytest.mark.parametrize("number", range(5))
def test_each_texture_of_frost_has_the_colour_and_contrast_of_a_photograph(number: int) -> None:
    mean, spread, sign = PANES[number]
    texture = pane(number).astype(float)
    assert texture.mean(axis=(0, 1)) == pytest.approx(mean, abs=1.5)  # clipped a little at white
    assert texture.std(axis=(0, 1)) == pytest.approx(spread, rel=0.06)
    grey = texture.mean(axis=2)
    assert np.sign(((grey - grey.mean()) ** 3).mean()) == sign
    # It continues across its borders: a step over them is like any other.
    inside = np.abs(np.diff(grey, axis=1)).mean()
    assert np.abs(grey[:, 0] - grey[:, -1]).mean() == pytest.approx(inside, rel=0.2)


@pytest.mark.parametrize(
    ("severity", "of_image", "of_frost"), [(1, 1, 0.4), (2, 0.8, 0.6), (3, 0.7, 0.7), (4, 0.65, 0.7), (5, 0.6, 0.75)]
)
def test_frost_is_added_to_the_darkened_image(severity: int, of_image: float, of_frost: float, draws) -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, SIDE + 30, 3), dtype=np.uint8)
    rng = draws("frost", severity)
    texture = pane(int(rng.integers(5)))
    top, left = rng.integers(SIDE, size=2)
    part = np.roll(texture, (-top, -left), axis=(0, 1))[:40]
    part = np.concatenate([part, part[:, :30]], axis=1)
    expected = np.floor(np.clip(of_image * image + of_frost * part.astype(float), 0, 255))
    assert np.abs(corrupt(image, "frost", severity, seed=3, image_id=7) - expected).max() <= 1
