from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from prunedeploy_engines.detection.letterbox import (
    batch_to_input,
    letterbox,
    letterbox_boxes,
    letterbox_geometry,
    to_input,
    unletterbox_boxes,
)

sides = st.integers(1, 2000)
sizes = st.tuples(sides, sides)


def random_image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_geometry_of_a_landscape_photo_by_hand() -> None:
    # 768 x 576 into 416 x 416: scale 416 / 768 = .541667, height 576 * .541667 = 312, pad (416 - 312) / 2 =
    # 52.
    geometry = letterbox_geometry((576, 768), (416, 416))
    assert geometry.scale == pytest.approx(416 / 768)
    assert geometry.resized_size == (312, 416)
    assert (geometry.pad_left, geometry.pad_top) == (0, 52)


def test_geometry_of_a_portrait_image_in_a_wide_input_by_hand() -> None:
    # 100 x 50 (h, w) into 64 x 96: scale .64, 64 x 32, left (96 - 32) / 2 = 32.
    geometry = letterbox_geometry((100, 50), (64, 96))
    assert geometry.resized_size == (64, 32)
    assert (geometry.pad_left, geometry.pad_top) == (32, 0)


@pytest.mark.parametrize(
    ("image_size", "input_size"), [((576, 768), (416, 416)), ((50, 100), (64, 96)), ((1, 7), (9, 3))]
)
def test_a_stretched_image_fills_the_input_and_boxes_keep_their_share_of_it(
    image_size: tuple[int, int], input_size: tuple[int, int]
) -> None:
    image = random_image(*image_size)
    boxed, geometry = letterbox(image, input_size, stretch=True)
    plain = Image.fromarray(image).resize(input_size[::-1], Image.Resampling.BILINEAR)
    assert np.array_equal(boxed, np.asarray(plain))
    assert geometry == letterbox_geometry(image_size, input_size, stretch=True)
    (height, width), (input_height, input_width) = image_size, input_size
    box = np.array([[0.25 * width, 0.5 * height, 0.75 * width, height]])
    inside = [[0.25 * input_width, 0.5 * input_height, 0.75 * input_width, input_height]]
    np.testing.assert_allclose(letterbox_boxes(box, geometry), inside)
    np.testing.assert_allclose(unletterbox_boxes(inside, geometry), box)


def test_padding_has_the_colour_and_the_image_its_place() -> None:
    image = np.full((10, 20, 3), 7, dtype=np.uint8)
    boxed, geometry = letterbox(image, (40, 40), colour=(1, 2, 3))
    assert geometry.resized_size == (20, 40)
    assert (boxed[10:30] == 7).all()
    assert (boxed[:10] == (1, 2, 3)).all()
    assert (boxed[30:] == (1, 2, 3)).all()


def test_default_padding_is_grey_128() -> None:
    boxed, _ = letterbox(np.zeros((10, 20, 3), dtype=np.uint8), (20, 20))
    assert (boxed[0] == 128).all()


@pytest.mark.parametrize("size", [(30, 40), (30, 60), (50, 40)])
def test_image_that_fits_keeps_its_pixels_bit_for_bit(size: tuple[int, int]) -> None:
    image = random_image(30, 40)
    boxed, geometry = letterbox(image, size)
    top, left = geometry.pad_top, geometry.pad_left
    assert np.array_equal(boxed[top : top + 30, left : left + 40], image)
    boxed[:] = 0
    assert image.any(), "the result must not be a view of the input"


def test_pixels_are_those_of_pillows_bilinear_filter() -> None:
    image = random_image(50, 100)
    boxed, _ = letterbox(image, (32, 32))
    reference = np.asarray(Image.fromarray(image).resize((32, 16), Image.Resampling.BILINEAR))
    assert np.array_equal(boxed[8:24], reference)


@given(image_size=sizes, input_size=sizes)
def test_image_always_fits_and_touches_two_sides(image_size: tuple, input_size: tuple) -> None:
    geometry = letterbox_geometry(image_size, input_size)
    (height, width), (input_height, input_width) = geometry.resized_size, input_size
    assert 1 <= height <= input_height
    assert 1 <= width <= input_width
    assert height == input_height or width == input_width
    # Centred: what is left over differs by at most one pixel between the sides.
    assert 0 <= (input_width - width) - 2 * geometry.pad_left <= 1
    assert 0 <= (input_height - height) - 2 * geometry.pad_top <= 1


@given(
    image_size=sizes,
    input_size=sizes,
    corners=st.lists(st.tuples(*[st.floats(0, 1)] * 4), min_size=1, max_size=5),
)
def test_boxes_return_to_where_they_were(image_size: tuple, input_size: tuple, corners: list) -> None:
    height, width = image_size
    boxes = np.array(corners) * (width, height, width, height)
    geometry = letterbox_geometry(image_size, input_size)
    there = letterbox_boxes(boxes, geometry)
    np.testing.assert_allclose(unletterbox_boxes(there, geometry, clip=False), boxes, rtol=0, atol=1e-6)


def test_inverse_is_exact_where_rounding_made_the_axes_differ() -> None:
    # 3 x 1000 into 100 x 100: height .3 rounds to 0 and is lifted to 1, so y is scaled by 1/3 and x by 1/10.
    geometry = letterbox_geometry((3, 1000), (100, 100))
    assert geometry.scale_xy == (pytest.approx(0.1), pytest.approx(1 / 3))
    np.testing.assert_allclose(letterbox_boxes([[0, 0, 1000, 3]], geometry), [[0, 49, 100, 50]], rtol=0, atol=1e-9)
    np.testing.assert_allclose(unletterbox_boxes([[0, 49, 100, 50]], geometry), [[0, 0, 1000, 3]], rtol=0, atol=1e-9)


def test_whole_image_box_covers_the_pasted_pixels() -> None:
    image = np.zeros((123, 457, 3), dtype=np.uint8)
    boxed, geometry = letterbox(image, (160, 160), colour=(255, 255, 255))
    x1, y1, x2, y2 = letterbox_boxes([0, 0, 457, 123], geometry)
    rows, columns = np.nonzero((boxed == 0).all(axis=2))
    assert (x1, y1, x2, y2) == pytest.approx((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))


def test_boxes_outside_are_clipped_to_the_image_unless_asked_not_to() -> None:
    geometry = letterbox_geometry((50, 100), (100, 100))
    outside = [[-10.0, 0.0, 300.0, 100.0]]
    assert unletterbox_boxes(outside, geometry).tolist() == [[0, 0, 100, 50]]
    assert unletterbox_boxes(outside, geometry, clip=False).tolist() == [[-10, -25, 300, 75]]


def test_box_dtypes_and_empty_boxes() -> None:
    geometry = letterbox_geometry((50, 100), (100, 100))
    assert letterbox_boxes(np.zeros((2, 4), dtype=np.float32), geometry).dtype == np.float32
    assert letterbox_boxes([[1, 2, 3, 4]], geometry).dtype == np.float64
    assert letterbox_boxes([], geometry).shape == (0, 4)
    assert unletterbox_boxes(np.zeros((0, 4)), geometry).shape == (0, 4)


def test_input_is_planes_of_pixels_over_255() -> None:
    image = random_image(5, 7)
    tensor = to_input(image)
    assert tensor.shape == (3, 5, 7)
    assert tensor.dtype == np.float32
    assert tensor.flags["C_CONTIGUOUS"]
    assert tensor[2, 4, 6] == np.float32(image[4, 6, 2]) / np.float32(255)
    assert to_input(np.full((1, 1, 3), 255, dtype=np.uint8)).max() == 1.0


def test_batch_is_the_stack_of_its_images() -> None:
    images = [random_image(6, 8), random_image(6, 8)[::-1]]
    batch = batch_to_input(images)
    assert np.array_equal(batch, np.stack([to_input(image) for image in images]))
    assert np.array_equal(batch, batch_to_input(np.stack(images)))


def test_wrong_shapes_are_refused_with_what_came() -> None:
    with pytest.raises(ValueError, match=r"\(5, 5\) uint8"):
        letterbox(np.zeros((5, 5), dtype=np.uint8), (8, 8))
    with pytest.raises(ValueError, match="float32"):
        letterbox(np.zeros((5, 5, 3), dtype=np.float32), (8, 8))
    with pytest.raises(ValueError, match=r"\(0, 5\)"):
        letterbox(np.zeros((0, 5, 3), dtype=np.uint8), (8, 8))
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        letterbox_boxes(np.zeros((2, 3)), letterbox_geometry((5, 5), (8, 8)))
    with pytest.raises(ValueError, match=r"\(4, 4, 3\), \(5, 5, 3\)"):
        batch_to_input([random_image(4, 4), random_image(5, 5)])
