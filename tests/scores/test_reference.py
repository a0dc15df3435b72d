"""What an image is compared with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from prunedeploy.data.batches import Batch
from prunedeploy.scores.reference import blurred_reference, image_reference, mean_image, zeros_reference
from prunedeploy_engines.errors import DataError, PruningError
from scores.examples import NO_TARGETS


def test_zeros_are_one_image_for_all() -> None:
    reference = zeros_reference(torch.rand(4, 3, 5, 6, dtype=torch.float64))
    assert reference.shape == (1, 3, 5, 6)
    assert reference.dtype == torch.float64
    assert float(reference.abs().max()) == 0


def test_blur_equals_a_plain_loop() -> None:
    sigma, radius = 0.7, 2  # round(3 * .7)
    image = torch.rand(1, 2, 4, 5, dtype=torch.float64)
    blurred = blurred_reference(image, sigma)
    kernel = np.exp(-((np.arange(-radius, radius + 1) / sigma) ** 2) / 2)
    kernel /= kernel.sum()
    for c, y, x in np.ndindex(2, 4, 5):
        total = 0.0
        for dy, dx in np.ndindex(2 * radius + 1, 2 * radius + 1):
            row, column = min(max(y + dy - radius, 0), 3), min(max(x + dx - radius, 0), 4)
            total += kernel[dy] * kernel[dx] * float(image[0, c, row, column])
        assert float(blurred[0, c, y, x]) == pytest.approx(total, rel=1e-12)


def test_blur_keeps_a_plain_image_and_the_range_of_pixels() -> None:
    plain = torch.full((2, 3, 8, 8), 0.25)
    assert torch.allclose(blurred_reference(plain, 3.0), plain, atol=1e-6)
    blurred = blurred_reference(torch.rand(2, 3, 32, 32).round(), 2.0)
    assert float(blurred.min()) >= 0
    assert float(blurred.max()) <= 1 + 1e-6


def test_mean_image_weighs_images_not_batches() -> None:
    # (0 + .5 + 1 + 1) / 4; the mean of batch means would be (.25 + 1) / 2.
    batches = [Batch(torch.full((1, 3, 2, 2), value), NO_TARGETS, [0]) for value in (0.0, 0.5)]
    batches.append(Batch(torch.ones(2, 3, 2, 2), NO_TARGETS, [0, 1]))
    assert mean_image(batches).unique().tolist() == [0.625]
    assert mean_image(batches).shape == (1, 3, 2, 2)


def test_mean_of_no_images_is_refused() -> None:
    with pytest.raises(PruningError, match=r"^scores: there are no images to take the mean of; give"):
        mean_image([])


def test_an_image_file_is_taken_pixel_by_pixel(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "reference.png")
    reference = image_reference(tmp_path / "reference.png", (4, 6))
    assert reference.shape == (1, 3, 4, 6)
    assert reference.dtype == torch.float32
    assert np.array_equal((reference[0] * 255).round().numpy().transpose(1, 2, 0), pixels)


def test_an_image_file_of_another_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "reference.png"
    Image.new("RGB", (6, 4)).save(path)
    with pytest.raises(DataError, match=r"reference\.png: the reference image is 6 x 4, the network's input 8 x 4; "):
        image_reference(path, (4, 8))


def test_a_reference_that_is_no_image_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "reference.png"
    with pytest.raises(DataError, match=r"reference\.png"):
        image_reference(path, (4, 8))
    path.write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"reference\.png"):
        image_reference(path, (4, 8))
