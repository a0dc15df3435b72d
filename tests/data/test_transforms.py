from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prunedeploy.config import AugmentConfig
from prunedeploy.data.draws import generator_for
from prunedeploy.data.transforms import (
    AxisMap,
    augment,
    clip_boxes,
    colour_matrix,
    recolour,
)

OFF = AugmentConfig(
    flip_probability=0, scale_min=1, scale_max=1, aspect=1, translate=0, hue=0, saturation=1, exposure=1
)


def settings(**more):
    return AugmentConfig(**{**OFF.model_dump(), **more})


def noise(height=40, width=60, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


BOXES = np.array([[10, 4, 30, 20], [40, 10, 60, 40]], np.float32)
CLASSES = np.array([3, 5])


def test_with_everything_off_nothing_changes():
    image, boxes, classes = augment(noise(), BOXES, CLASSES, generator_for(0, 0, 0), OFF)
    assert torch.equal(image, torch.from_numpy(noise()).permute(2, 0, 1))
    np.testing.assert_array_equal(boxes, BOXES)
    np.testing.assert_array_equal(classes, CLASSES)


def test_a_flip_mirrors_pixels_and_boxes():
    image, boxes, _ = augment(noise(), BOXES, CLASSES, generator_for(0, 0, 0), settings(flip_probability=1))
    np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), noise()[:, ::-1])
    # Width 60: x 10..30 becomes 30..50; x 40..60 becomes 0..20.
    np.testing.assert_array_equal(boxes, [[30, 4, 50, 20], [0, 10, 20, 40]])


def test_flips_come_as_often_as_they_should():
    flipped = sum(
        int(
            augment(noise(8, 8), BOXES[:0], CLASSES[:0], generator_for(1, 0, n), settings(flip_probability=0.25))[
                0
            ].equal(torch.from_numpy(noise(8, 8)[:, ::-1].copy()).permute(2, 0, 1))
        )
        for n in range(400)
    )
    assert 65 < flipped < 135  # mean 100, standard deviation 8.7


@pytest.mark.parametrize("seed", range(25))
def test_boxes_stay_on_their_objects_through_flip_zoom_and_shift(seed):
    """A white rectangle on black is where its box is, to within the blur of one resampling."""
    rng = np.random.default_rng(seed)
    x1, y1 = rng.integers(20, 70), rng.integers(20, 70)
    x2, y2 = x1 + rng.integers(20, 60), y1 + rng.integers(20, 60)
    image = np.zeros((160, 160, 3), np.uint8)
    image[y1:y2, x1:x2] = 255
    geometry = settings(flip_probability=0.5, scale_min=0.5, scale_max=1.6, aspect=1.5, translate=0.2)
    boxes = np.array([[x1, y1, x2, y2]], np.float32)
    moved, new_boxes, classes = augment(image, boxes, CLASSES[:1], generator_for(seed, 0, 7), geometry, (0, 0, 0))
    # Bilinear resampling of a step crosses half its height at the edge itself.
    rows, columns = np.nonzero(moved[0].numpy() > 127)
    seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    np.testing.assert_allclose(new_boxes[0], seen, atol=1.0)
    assert classes.tolist() == [3]


def test_zooming_out_uncovers_the_padding_colour():
    image, boxes, _ = augment(
        np.zeros((40, 60, 3), np.uint8),
        BOXES,
        CLASSES,
        generator_for(0, 0, 0),
        settings(scale_min=0.5, scale_max=0.5),
        (10, 20, 30),
    )
    # Half of 40 x 60, centred: rows 10..30, columns 15..45.
    assert image[:, 0, 0].tolist() == [10, 20, 30]
    assert image[:, 10:30, 15:45].eq(0).all()
    assert (image[0] == 10).sum() == 40 * 60 - 20 * 30
    np.testing.assert_array_equal(boxes, [[20, 12, 30, 20], [35, 15, 45, 30]])


def test_clipping_drops_what_lost_too_much():
    boxes = np.array([[-10, 0, 10, 10], [-8, 0, 2, 10], [50, 50, 51, 90], [0, 0, 100, 100]], np.float32)
    clipped, kept = clip_boxes(boxes, 100, 100, min_area_kept=0.5, min_side_px=2)
    # The first keeps exactly half; the second a fifth; the third is one pixel wide.
    assert kept.tolist() == [True, False, False, True]
    np.testing.assert_array_equal(clipped, [[0, 0, 10, 10], [0, 0, 100, 100]])


@given(st.integers(4, 300), st.floats(0.2, 4), st.floats(-200, 200))
def test_an_axis_map_stays_inside_and_is_near_what_was_asked(size, scale, shift):
    axis = AxisMap.nearest(size, scale, shift)
    assert 0 <= axis.source_start < axis.source_stop <= size
    assert 0 <= axis.target_start < axis.target_stop <= size
    if shift > 0 and shift + scale * size < size - 1:  # all of the image is in view
        assert (axis.source_start, axis.source_stop) == (0, size)
        assert abs(axis.shift - shift) <= 0.5
        assert abs(axis.shift + axis.scale * size - (shift + scale * size)) <= 0.5


def test_draws_depend_on_seed_epoch_and_image_and_on_nothing_else():
    keys = [
        (0, 0, 0),
        (1, 0, 0),
        (0, 1, 0),
        (0, 0, 1),
        (0, 0, 2**32),
        (0, 2**32, 0),
        (0, 0, -1),
        (1, 2, 3),
        (3, 2, 1),
    ]
    first = [generator_for(*key).random() for key in keys]
    assert len(set(first)) == len(keys)
    assert [generator_for(*key).random() for key in keys] == first


def test_draws_are_those_of_the_first_release():
    """Stored stages and checkpoints rely on these numbers; they were written down once."""
    assert generator_for(0, 0, 1).integers(0, 2**31, 3).tolist() == [1040750626, 2030051788, 2082544953]


def test_switching_colour_off_leaves_geometry_as_it_was():
    default = AugmentConfig()
    plain = AugmentConfig(hue=0, saturation=1, exposure=1)
    for image_id in range(20):
        _, with_colour, _ = augment(noise(), BOXES, CLASSES, generator_for(5, 1, image_id), default)
        _, without, _ = augment(noise(), BOXES, CLASSES, generator_for(5, 1, image_id), plain)
        np.testing.assert_array_equal(with_colour, without)


def test_inputs_are_not_modified():
    image, boxes, classes = noise(), BOXES.copy(), CLASSES.copy()
    for image_id in range(10):
        result, new_boxes, _ = augment(image, boxes, classes, generator_for(0, 0, image_id), AugmentConfig())
        result.fill_(0)
        new_boxes[:] = 0
    np.testing.assert_array_equal(image, noise())
    np.testing.assert_array_equal(boxes, BOXES)


def test_a_hue_shift_of_a_third_turns_red_into_green():
    matrix = colour_matrix(1 / 3, 1.0, 1.0)
    hue, _, _ = colorsys.rgb_to_hsv(*np.clip(matrix @ [0.6, 0.3, 0.3], 0, 1))
    # A turn in YIQ is not exactly one in HSV, where green is at 1/3 and yellow at 1/6.
    assert abs(hue - 1 / 3) < 0.06


@pytest.mark.parametrize("exposure", [0.5, 1.25, 1.5])
def test_exposure_scales_and_grey_stays_grey(exposure):
    grey = np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 3, axis=2)
    result = recolour(grey, colour_matrix(0.0, 1.0, exposure))
    assert (result == result[..., :1]).all()
    np.testing.assert_allclose(result[:, 0, 0], np.clip(np.arange(256) * exposure, 0, 255), atol=0.5)


def test_saturation_zero_is_rec_601_luma():
    red = np.zeros((1, 1, 3), np.uint8)
    red[..., 0] = 200
    np.testing.assert_allclose(recolour(red, colour_matrix(0.0, 1e-9, 1.0))[0, 0], 0.299 * 200, atol=1)


def test_wrong_shapes_and_settings_are_programming_errors():
    with pytest.raises(ValueError, match=r"\(3, 8, 8\)"):
        augment(np.zeros((3, 8, 8), np.uint8), BOXES, CLASSES, generator_for(0, 0, 0), OFF)
    with pytest.raises(ValueError, match=r"\(2, 4\)"):
        augment(noise(), BOXES, CLASSES[:1], generator_for(0, 0, 0), OFF)
    for wrong in ({"scale_min": 2.0}, {"exposure": 0.5}, {"flip_probability": 2}, {"hue": 0.7}):
        with pytest.raises(ValueError, match=r"larger than scale_max|greater than or equal to|less than or equal to"):
            settings(**wrong)
