"""What all corruptions promise: any size, the same draws again, grey as colour, more damage at a higher severity."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prunedeploy.config.corruptions import CORRUPTIONS, SEVERITIES, corruption_names, severities_of
from prunedeploy.data.corruptions import BY_NAME, corrupt

WITHOUT_DRAWS = {"defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression"}
# Of the reference too: its parameters of glass blur, snow, frost and fog trade one kind of damage for another.
NOT_MONOTONE = {"glass_blur", "snow", "frost", "fog"}


def test_there_are_the_fifteen_of_the_paper_in_its_order() -> None:
    assert tuple(BY_NAME) == CORRUPTIONS
    assert len(CORRUPTIONS) == 15


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_size_is_taken_and_kept(name: str) -> None:
    rng = np.random.default_rng(0)
    for shape in ((1, 1, 3), (1, 40, 3), (17, 2, 3), (33, 20, 3), (9, 70), (20, 21, 1)):
        image = rng.integers(0, 256, shape, dtype=np.uint8)
        before = image.copy()
        for severity in (1, 5):
            found = corrupt(image, name, severity)
            assert (found.shape, found.dtype) == (shape, np.uint8)
        assert np.array_equal(image, before)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_draws_depend_on_seed_name_severity_and_image_alone(name: str, speckled: np.ndarray) -> None:
    np.random.seed(0)
    first = corrupt(speckled, name, 3, seed=1, image_id=2)
    np.random.seed(1)
    corrupt(speckled, name, 4)
    assert np.array_equal(corrupt(speckled, name, 3, seed=1, image_id=2), first)
    others = [corrupt(speckled, name, 3, seed=s, image_id=i) for s, i in ((2, 2), (1, 3), (1, -2), (2**40, 2))]
    assert all(np.array_equal(one, first) == (name in WITHOUT_DRAWS) for one in others)


@pytest.mark.parametrize("name", sorted({*CORRUPTIONS} - {"gaussian_noise", "shot_noise", "impulse_noise", "frost"}))
def test_a_grey_image_is_corrupted_as_one_of_three_equal_channels(name: str, speckled: np.ndarray) -> None:
    """Noise draws for each channel, and frost has a colour; JPEG and luma round."""
    grey = speckled[..., 0]
    for severity in (2, 5):
        of_grey = corrupt(grey, name, severity)
        of_colour = corrupt(np.stack([grey] * 3, axis=2), name, severity)
        assert np.abs(of_colour.astype(int) - of_grey[..., None]).max() <= 1
        assert np.array_equal(corrupt(grey[..., None], name, severity)[..., 0], of_grey)


@pytest.mark.parametrize("name", sorted(set(CORRUPTIONS) - NOT_MONOTONE))
@pytest.mark.shared
def test_a_higher_severity_does_more_damage_to_a_photo(name: str, shared: Path) -> None:
    with Image.open(shared / "real/photos/dog.jpg") as file:
        photo = np.asarray(file.convert("RGB").resize((192, 160), Image.Resampling.BILINEAR))
    errors = [np.mean((corrupt(photo, name, severity).astype(float) - photo) ** 2) for severity in SEVERITIES]
    psnr = [10 * np.log10(255**2 / error) for error in errors]
    assert all(later < earlier for earlier, later in pairwise(psnr)), psnr
    assert psnr[4] > 7
    assert psnr[0] < 32


def test_what_is_no_image_or_no_corruption_is_refused() -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    for wrong in (image.astype(np.float32), image[None], np.zeros((8, 8, 4), np.uint8), image[:0]):
        with pytest.raises(ValueError, match="image must be"):
            corrupt(wrong, "fog", 1)
    for name, severity in (("fogg", 1), ("fog", 0), ("fog", 6)):
        with pytest.raises(ValueError, match=f"got {name}, {severity}"):
            corrupt(image, name, severity)


def test_names_and_severities_as_people_write_them() -> None:
    assert corruption_names(["all"]) == CORRUPTIONS
    assert corruption_names(["none"]) == corruption_names([]) == ()
    assert corruption_names(["snow", "fog", "snow"]) == ("snow", "fog")
    for wrong, said in ((["jpeg"], "'jpeg'; the nearest is jpeg_compression"), (["all", "fog"], "'all' excludes")):
        with pytest.raises(ValueError, match=said):
            corruption_names(wrong)
    assert severities_of("1-5") == SEVERITIES
    assert severities_of("5, 1,2 - 3") == (1, 2, 3, 5)
    for wrong in ("0", "6", "1-6", "", "1,", "a", "-2", "2.5", "1-2-3"):
        with pytest.raises(ValueError, match="no severity"):
            severities_of(wrong)
    with pytest.raises(ValueError, match="backwards"):
        severities_of("4-2")
