"""Contrast, distortion, resolution and compression, worked by hand, by loops, or by another library."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from prunedeploy.data.corruptions import corrupt
from prunedeploy.data.corruptions.digital import JPEG_QUALITY


@pytest.mark.parametrize(
    ("severity", "dark", "bright"),
    [
        # Around the mean 127.5 of black and white: 127.5 -+ 0.4 * 127.5 = 76.5 and 178.5, and so on, rounded down.
        (1, 76, 178),
        (2, 89, 165),
        (3, 102, 153),
        (4, 114, 140),
        (5, 121, 133),
    ],
)
def test_contrast_is_taken_from_the_mean_of_each_channel(severity: int, dark: int, bright: int) -> None:
    image = np.zeros((2, 2, 3), np.uint8)
    image[0, :, 0] = 255  # half of red; green is black; blue white
    image[..., 2] = 255
    found = corrupt(image, "contrast", severity)
    assert found[..., 0].tolist() == [[bright, bright], [dark, dark]]
    assert (found[..., 1] == 0).all()
    assert (found[..., 2] == 255).all()


def half_mirrored(place: int, side: int) -> int:
    """``dcba|abcd|dcba``: the edge is repeated."""
    place %= 2 * side
    return min(place, 2 * side - 1 - place)


@pytest.mark.parametrize(("severity", "alpha"), [(1, 12.5), (3, 21.25), (5, 30)])
def test_elastic_transform_moves_pixels_by_smooth_draws(
    severity: int, alpha: float, speckled: np.ndarray, draws
) -> None:
    image = np.kron(speckled, np.ones((6, 6, 1), np.uint8))  # displacements grow with the image
    height, width = image.shape[:2]
    rng = draws("elastic_transform", severity)
    across, down = (
        alpha
        * ndimage.gaussian_filter(
            rng.uniform(-0.005 * height, 0.005 * height, (height, width)), (height / 100, width / 100), truncate=3
        )
        for _ in range(2)
    )
    assert np.abs(down).max() > 0.5
    found = corrupt(image, "elastic_transform", severity, seed=3, image_id=7)
    for y, x in [(0, 0), (179, 155), *np.random.default_rng(1).integers(0, 155, (60, 2)).tolist()]:
        row, column = y + down[y, x], x + across[y, x]
        top, left = int(np.floor(row)), int(np.floor(column))
        expected = np.zeros(3)
        for i in (0, 1):
            for j in (0, 1):
                weight = (1 - abs(row - top - i)) * (1 - abs(column - left - j))
                expected += weight * image[half_mirrored(top + i, height), half_mirrored(left + j, width)]
        assert np.abs(found[y, x] - np.floor(expected)).max() <= 1


def test_pixelate_makes_means_of_blocks(speckled: np.ndarray) -> None:
    image = speckled[:24, :24]
    for severity, block in ((2, 2), (5, 4)):  # to half and to a quarter of the size
        means = image.reshape(24 // block, block, 24 // block, block, 3).mean(axis=(1, 3))
        expected = np.kron(means, np.ones((block, block, 1)))
        # Pillow rounds after the rows, and again after the columns.
        assert np.abs(corrupt(image, "pixelate", severity) - expected).max() <= 1
    for severity, side in ((1, 18), (3, 12), (4, 9)):  # of 30: to 0.6, 0.4, 0.3
        rows = corrupt(speckled, "pixelate", severity)[:, 0, 0].astype(int)
        assert 1 + np.count_nonzero(np.diff(rows)) <= side
        assert 1 + np.count_nonzero(np.diff(rows)) >= side - 2  # neighbours may have the same mean


@pytest.mark.parametrize(("severity", "quality"), [(1, 25), (2, 18), (3, 15), (4, 10), (5, 7)])
def test_jpeg_compression_is_that_of_another_library(severity: int, quality: int) -> None:
    cv2 = pytest.importorskip("cv2", reason="OpenCV is the independent encoder; it is in the extra dev")
    assert JPEG_QUALITY[severity - 1] == quality
    rng = np.random.default_rng(2)
    small = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8))
    image = np.asarray(small.resize((90, 70), Image.Resampling.BICUBIC))
    _, encoded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    expected = cv2.imdecode(encoded, cv2.IMREAD_COLOR)[..., ::-1].astype(int)
    found = corrupt(image, "jpeg_compression", severity).astype(int)
    # Decoders round and smooth colour differently; another quality is farther away.
    assert np.abs(found - expected).mean() < 1.5
    assert np.abs(found - image.astype(int)).mean() > 3 * np.abs(found - expected).mean()
