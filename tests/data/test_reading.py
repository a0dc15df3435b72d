from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from prunedeploy.data.reading import check_header, read_record
from prunedeploy.data.records import ImageRecord
from prunedeploy_engines.errors import DataError

ORIENTATION = 0x0112
# How Pillow turns stored pixels upright for each EXIF orientation: an independent statement of the standard.
UPRIGHT = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def record(path, height, width):
    empty = np.zeros(0)
    return ImageRecord(7, path, height, width, np.zeros((0, 4), np.float32), empty.astype(np.int64), empty > 0)


def stored(path, orientation):
    """Save 20 x 30 (height x width) noise as PNG with an EXIF orientation; return its stored pixels."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image.save(path, exif=exif)
    return image


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_annotated_upright_is_turned_upright(tmp_path, orientation):
    image = stored(tmp_path / "a.png", orientation)
    turn = UPRIGHT[orientation]
    upright = np.array(image if turn is None else image.transpose(turn))
    wanted = record(tmp_path / "a.png", *upright.shape[:2])
    check_header(wanted)
    np.testing.assert_array_equal(read_record(wanted), upright)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_an_image_annotated_as_stored_is_left_as_stored(tmp_path, orientation):
    image = stored(tmp_path / "a.png", orientation)
    wanted = record(tmp_path / "a.png", 20, 30)
    check_header(wanted)
    np.testing.assert_array_equal(read_record(wanted), np.array(image))


@pytest.mark.parametrize("orientation", [1, 3])
def test_a_swapped_size_without_a_quarter_turn_is_an_error(tmp_path, orientation):
    stored(tmp_path / "a.png", orientation)
    for look in (check_header, read_record):
        with pytest.raises(DataError, match=r"30 x 20 .* 20 x 30 for image 7"):
            look(record(tmp_path / "a.png", 30, 20))


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "1", "RGBA"])
def test_other_colour_models_become_rgb(tmp_path, mode):
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    Image.new("RGB", (30, 20), (255, 255, 255)).convert(mode).save(path)
    pixels = read_record(record(path, 20, 30))
    assert pixels.shape == (20, 30, 3)
    assert pixels.min() >= 250


def test_missing_and_huge_images_are_refused_from_the_header(tmp_path):
    with pytest.raises(DataError, match=r"gone\.png"):
        check_header(record(tmp_path / "gone.png", 20, 30))
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(DataError, match="not an image"):
        check_header(record(tmp_path / "text.png", 20, 30))
    Image.new("1", (8_000, 7_000)).save(tmp_path / "huge.png")
    with pytest.raises(DataError, match="56 megapixels"):
        check_header(record(tmp_path / "huge.png", 7_000, 8_000))
