import itertools

import numpy as np
import pytest

from prunedeploy_engines.detection.detections import Detections
from prunedeploy_engines.detection.drawing import class_colour, draw_detections, text_colour

NAMES = (
    "dog",
    "T-shirt/top",
    "a class with a rather long name that fits nowhere",
    "",
    "two\nlines",
    "Ünïcode 犬",
)


def found(*rows: tuple[tuple[float, float, float, float], float, int]) -> Detections:
    return Detections(
        np.array([row[0] for row in rows], np.float32).reshape(-1, 4),
        np.array([row[1] for row in rows], np.float32),
        np.array([row[2] for row in rows], np.int64),
        NAMES,
    )


def grey(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 127, np.uint8)


def changed(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    return (before != after).any(axis=-1)


def contrast(one: tuple[int, int, int], other: tuple[int, int, int]) -> float:
    """WCAG 2.1 contrast ratio, written out once more."""

    def luminance(colour: tuple[int, int, int]) -> float:
        linear = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def test_box_is_drawn_in_its_class_colour_on_its_edges_and_nowhere_else() -> None:
    image = grey(300, 400)
    drawn = draw_detections(image, found(((100, 120, 200, 220), 0.9, 0)))
    colour = class_colour(0)
    assert (drawn[120, 100:200] == colour).all()
    assert (drawn[219, 100:200] == colour).all()
    assert (drawn[120:220, 100] == colour).all()
    assert (drawn[120:220, 199] == colour).all()
    touched = changed(image, drawn)
    assert not touched[220:].any()
    assert not touched[:, :100].any()
    assert not touched[135:205, 115:185].any()  # the inside of the box is left to be seen
    assert touched[95:120, 100:150].any()  # the label stands above it


def test_image_is_not_modified_and_the_result_is_a_new_array() -> None:
    image = grey(64, 64)
    drawn = draw_detections(image, found(((5, 5, 40, 40), 0.5, 1)))
    assert (image == 127).all()
    untouched = draw_detections(image, found())
    assert untouched is not image
    assert not np.shares_memory(untouched, image)
    np.testing.assert_array_equal(untouched, image)
    assert drawn.dtype == np.uint8
    assert drawn.flags.writeable


def test_read_only_and_strided_images_are_accepted() -> None:
    image = np.asfortranarray(grey(60, 80))[::-1]
    image.flags.writeable = False
    assert draw_detections(image, found(((5, 5, 40, 40), 0.5, 1))).shape == (60, 80, 3)


@pytest.mark.parametrize(
    "box",
    [
        (-30.0, -30.0, -5.0, -5.0),
        (90.0, 10.0, 120.0, 60.0),
        (10.0, 90.0, 60.0, 120.0),
        (float("nan"), 1.0, 20.0, 20.0),
        (1.0, 1.0, float("inf"), 20.0),
    ],
)
def test_boxes_that_are_not_in_the_image_are_left_out(box: tuple[float, float, float, float]) -> None:
    image = grey(80, 80)
    np.testing.assert_array_equal(draw_detections(image, found((box, 0.9, 0))), image)


def test_box_that_sticks_out_is_cut_at_the_border() -> None:
    image = grey(200, 200)
    drawn = draw_detections(image, found(((-50, 80, 260, 290), 0.9, 0)))
    assert (drawn[80, :] == class_colour(0)).all()
    assert (drawn[100:, 0] == class_colour(0)).all()
    assert (drawn[199, :] == class_colour(0)).all()


@pytest.mark.parametrize("class_id", range(len(NAMES)))
def test_labels_lie_whole_in_the_image_wherever_the_box_is(class_id: int) -> None:
    def letters(left: int, top: int) -> int:
        """Pixels in the letters' own colour; a box this small has no hairline of that colour."""
        drawn = draw_detections(grey(640, 480), found(((left, top, left + 8, top + 8), 0.87, class_id)))
        return int((drawn == text_colour(class_colour(class_id))).all(axis=-1).sum())

    in_the_middle = letters(200, 300)
    assert in_the_middle > 10
    for left, top in itertools.product((0, 472), (0, 3, 632)):
        assert letters(left, top) == in_the_middle


def test_labels_of_neighbours_do_not_cover_each_other() -> None:
    image = grey(320, 320)
    one, other = ((100, 100, 220, 220), 0.9, 0), ((102, 101, 221, 219), 0.8, 1)
    both = draw_detections(image, found(one, other))
    for alone, class_id in ((one, 0), (other, 1)):
        colour = class_colour(class_id)
        plate_alone = (draw_detections(image, found(alone)) == colour).all(axis=-1).sum()
        plate = (both == colour).all(axis=-1).sum()
        # Frames cover each other in part; a covered plate would lose far more.
        assert plate > 0.55 * plate_alone


def test_scale_enlarges_first_and_draws_at_full_resolution() -> None:
    image = grey(40, 50)
    drawn = draw_detections(image, found(((10, 20, 30, 38), 0.9, 0)), scale=4)
    assert drawn.shape == (160, 200, 3)
    assert (drawn[80, 40:120] == class_colour(0)).all()
    assert (drawn[80:152, 119] == class_colour(0)).all()
    assert not changed(grey(160, 200), drawn)[152:].any()


def test_enlarging_keeps_flat_areas_and_copies_at_scale_one() -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    nothing = found()
    assert (draw_detections(grey(6, 4), nothing, scale=5) == 127).all()
    assert draw_detections(image, nothing, scale=2).shape == (10, 14, 3)
    same = draw_detections(image, nothing)
    np.testing.assert_array_equal(same, image)
    assert not np.shares_memory(same, image)
    assert draw_detections(np.zeros((0, 4, 3), np.uint8), nothing, scale=2).shape == (0, 8, 3)


@pytest.mark.parametrize(
    ("image", "scale"),
    [
        (np.zeros((4, 4), np.uint8), 1),
        (np.zeros((4, 4, 4), np.uint8), 1),
        (np.zeros((4, 4, 3), np.float32), 1),
        (np.zeros((4, 4, 3), np.uint8), 0),
        (np.zeros((2000, 2000, 3), np.uint8), 50),
    ],
)
def test_what_cannot_be_drawn_into_is_refused(image: np.ndarray, scale: int) -> None:
    with pytest.raises(ValueError, match=r"image must be|scale|megapixels"):
        draw_detections(image, found(), scale=scale)


def test_a_one_pixel_image_is_no_problem() -> None:
    assert draw_detections(grey(1, 1), found(((0, 0, 1, 1), 0.9, 2))).shape == (1, 1, 3)


def test_class_colours_are_stable_and_tell_classes_apart() -> None:
    assert class_colour(0) == (255, 51, 51)
    assert class_colour(7) == class_colour(7)
    eighty = [class_colour(i) for i in range(80)]
    assert len(set(eighty)) == 80
    ten = np.array(eighty[:10], dtype=float)
    distances = np.linalg.norm(ten[:, None] - ten[None], axis=-1) + 1e9 * np.eye(10)
    assert distances.min() > 60  # of 442 between black and white
    assert class_colour(10_000) in {class_colour(i) for i in range(96)}


def test_label_text_is_readable_on_every_class_colour() -> None:
    worst = min(contrast(text_colour(class_colour(i)), class_colour(i)) for i in range(96))
    assert worst >= 4.3  # WCAG asks for 4.5 of body text, 3 of large text
