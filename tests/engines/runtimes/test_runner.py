"""What the base class of all runners does to images and outputs, on a runner that computes nothing."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunedeploy_engines.detection.letterbox import to_uint8_input
from prunedeploy_engines.runtimes.runner import Runner, boxes_and_scores, check_outputs

SIZE = (4, 6)
CLASSES = 3


class Recorder(Runner):
    """Gives what it was told to give, and keeps the images that reached the model."""

    def __init__(self, outputs: Any = None, *, uint8: bool = False, classes: int | None = None) -> None:
        self._uint8, self._classes, self._outputs = uint8, classes, outputs
        self.seen: list[np.ndarray] = []
        self.released = 0

    @property
    def runtime(self) -> str:
        return "recorder"

    @property
    def input_size(self) -> tuple[int, int]:
        return SIZE

    @property
    def uint8_input(self) -> bool:
        return self._uint8

    @property
    def nms_classes(self) -> int | None:
        return self._classes

    def describe(self) -> dict[str, Any]:
        return {}

    def _infer(self, images: Any) -> tuple[Any, Any]:
        self.seen.append(images)
        if self._outputs is not None:
            return self._outputs
        return np.zeros((len(images), 5, 4), np.float32), np.zeros((len(images), 5, CLASSES), np.float32)

    def _release(self) -> None:
        self.released += 1


def floats(count: int = 2) -> np.ndarray:
    return np.random.default_rng(0).random((count, 3, *SIZE), dtype=np.float32)


def pixels(count: int = 2) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *SIZE, 3), np.uint8)


def test_float_images_reach_a_float_model_as_they_are():
    runner, images = Recorder(), floats()
    runner.infer(images)
    assert runner.seen[0] is images


def test_float_images_are_rounded_for_a_model_that_takes_uint8():
    runner, images = Recorder(uint8=True), floats()
    runner.infer(images)
    expected = np.floor(images.astype(np.float64) * 255 + 0.5).transpose(0, 2, 3, 1)
    assert runner.seen[0].dtype == np.uint8
    assert runner.seen[0].flags.c_contiguous
    np.testing.assert_array_equal(runner.seen[0], expected)


def test_uint8_images_reach_a_uint8_model_as_they_are():
    runner, images = Recorder(uint8=True), pixels()
    runner.infer(images)
    assert runner.seen[0] is images


@pytest.mark.parametrize(
    ("images", "got"),
    [
        (pixels(), r"\(2, 4, 6, 3\) uint8"),
        (floats()[0], r"\(3, 4, 6\) float32"),
        (floats()[:0], r"\(0, 3, 4, 6\) float32"),
        (floats().transpose(0, 1, 3, 2), r"\(2, 3, 6, 4\) float32"),
        (floats().transpose(0, 2, 3, 1), r"\(2, 4, 6, 3\) float32"),
        (floats()[:, :1], r"\(2, 1, 4, 6\) float32"),
        (floats().astype(np.float64), "float64"),
        (floats().astype(np.float16), "float16"),
        (floats().tolist(), "got list"),
    ],
)
def test_images_of_another_kind_are_refused_with_what_came(images, got):
    runner = Recorder()
    for call in (runner.infer, runner.compute_call):
        with pytest.raises(ValueError, match=got):
            call(images)
    assert runner.seen == []


@pytest.mark.parametrize(
    ("images", "got"),
    [
        (pixels().transpose(0, 3, 1, 2), r"\(N, 4, 6, 3\) uint8 .* got \(2, 3, 4, 6\) uint8"),
        (pixels()[:0], r"got \(0, 4, 6, 3\)"),
        (pixels()[0], r"got \(4, 6, 3\)"),
        (pixels()[..., :1], r"got \(2, 4, 6, 1\)"),
        (pixels().astype(np.int32), "int32"),
        (floats().transpose(0, 2, 3, 1), r"\(2, 4, 6, 3\) float32"),
    ],
)
def test_wrong_images_for_a_uint8_model_are_refused_with_what_came(images, got):
    with pytest.raises(ValueError, match=got):
        Recorder(uint8=True).infer(images)


@given(value=st.integers(0, 255))
def test_every_pixel_survives_the_way_to_float_and_back(value):
    image = np.full((1, 3, 2, 2), value, np.float32) / np.float32(255)
    assert (to_uint8_input(image) == value).all()


def test_values_outside_the_range_of_pixels_are_clipped():
    values = np.array([-1.0, -0.001, 0.0, 0.4999 / 255, 0.5001 / 255, 1.0, 1.001, 7.0], np.float32)
    image = np.broadcast_to(values, (1, 3, 1, 8))
    assert to_uint8_input(image)[0, 0, :, 0].tolist() == [0, 0, 0, 0, 1, 255, 255, 255]


def test_value_that_is_no_number_becomes_a_pixel_without_a_warning():
    image = np.full((1, 3, 2, 2), np.nan, np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (to_uint8_input(image) == 0).all()


@pytest.mark.parametrize("uint8", [False, True])
def test_compute_call_gives_the_model_the_same_images(uint8):
    images = floats()
    by_infer, by_call = Recorder(uint8=uint8), Recorder(uint8=uint8)
    by_infer.infer(images)
    call = by_call.compute_call(images[:, :, ::-1][:, :, ::-1])  # a view
    assert by_call.seen == []
    call()
    call()
    assert len(by_call.seen) == 2
    assert by_call.seen[0] is by_call.seen[1]
    assert by_call.seen[0].flags.c_contiguous
    np.testing.assert_array_equal(by_call.seen[0], by_infer.seen[0])


def test_closed_runner_refuses_and_releases_once():
    runner = Recorder()
    with runner as entered:
        assert entered is runner
    runner.close()
    assert runner.released == 1
    for call in (runner.infer, runner.compute_call):
        with pytest.raises(ValueError, match="Recorder is closed"):
            call(floats())


def table(rows: list[list[tuple]], length: int) -> tuple[np.ndarray, np.ndarray]:
    """``detections`` and ``num_detections``."""
    detections = np.zeros((len(rows), length, 6), np.float32)
    for image, found in enumerate(rows):
        for position, row in enumerate(found):
            detections[image, position] = row
    return detections, np.array([len(found) for found in rows], np.int32)


def test_detections_of_the_graph_become_boxes_and_scores():
    rows = [[(1, 2, 3, 4, 0.9, 2), (5, 6, 7, 8, 0.5, 0)], [], [(9, 9, 10, 10, 0.25, 1)]]
    runner = Recorder(table(rows, 4), classes=CLASSES)
    boxes, scores = runner.infer(floats(3))
    assert boxes.shape == (3, 4, 4)
    assert scores.shape == (3, 4, CLASSES)
    assert boxes.dtype == scores.dtype == np.float32
    for image, found in enumerate(rows):
        for position in range(4):
            row = found[position] if position < len(found) else (0,) * 6
            assert boxes[image, position].tolist() == list(row[:4])
            expected = np.zeros(CLASSES, np.float32)
            expected[int(row[5])] = row[4]
            assert scores[image, position].tolist() == expected.tolist()


def test_what_stands_behind_the_last_detection_is_not_looked_at():
    detections, counts = table([[(1, 2, 3, 4, 0.9, 2)]], 3)
    detections[0, 1:] = np.nan  # a buffer that the runtime did not clear
    boxes, scores = boxes_and_scores(detections, counts, CLASSES)
    assert boxes[0].tolist() == [[1, 2, 3, 4], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert scores.sum() == np.float32(0.9)
    assert np.isfinite(scores).all()


@given(st.data())
def test_every_detection_comes_back(data):
    length = data.draw(st.integers(1, 6))
    row = st.tuples(*[st.integers(-9, 99)] * 4, st.integers(1, 8).map(lambda n: n / 8), st.integers(0, CLASSES - 1))
    rows = data.draw(st.lists(st.lists(row, max_size=length), min_size=1, max_size=3))
    boxes, scores = boxes_and_scores(*table(rows, length), CLASSES)
    for image, found in enumerate(rows):
        positions, classes = np.nonzero(scores[image])
        back = [
            (*boxes[image, position].tolist(), float(scores[image, position, c]), int(c))
            for position, c in zip(positions, classes, strict=True)
        ]
        assert back == found


@pytest.mark.parametrize("class_id", [-1, 3, 1e9])
def test_class_that_there_is_none_of_is_refused(class_id):
    with pytest.raises(ValueError, match=r"class ids must be in \[0, 3\)"):
        boxes_and_scores(*table([[(0, 0, 1, 1, 0.5, 0), (0, 0, 1, 1, 0.5, class_id)]], 4), CLASSES)


@pytest.mark.parametrize(
    ("detections", "counts"), [((2, 4, 5), (2,)), ((2, 4), (2,)), ((2, 4, 6), (3,)), ((2, 4, 6), (2, 1))]
)
def test_outputs_of_another_shape_are_refused_with_what_came(detections, counts):
    with pytest.raises(ValueError, match=r"must give detections \(N, K, 6\)") as caught:
        boxes_and_scores(np.zeros(detections, np.float32), np.zeros(counts, np.int32), CLASSES)
    assert str(detections) in str(caught.value)
    assert str(counts) in str(caught.value)


@pytest.mark.parametrize("count", [-1, 5])
def test_number_of_detections_that_cannot_be_is_refused(count):
    with pytest.raises(ValueError, match=r"num_detections must be in \[0, 4\]"):
        boxes_and_scores(np.zeros((1, 4, 6), np.float32), np.array([count]), CLASSES)


@pytest.mark.parametrize(
    ("boxes", "scores"),
    [
        (np.zeros((2, 5, 5), np.float32), np.zeros((2, 5, 3), np.float32)),
        (np.zeros((2, 5, 4), np.float32), np.zeros((2, 6, 3), np.float32)),
        (np.zeros((1, 5, 4), np.float32), np.zeros((1, 5, 3), np.float32)),
        (np.zeros((2, 5, 4), np.float64), np.zeros((2, 5, 3), np.float32)),
        (np.zeros((2, 5, 4), np.float32), np.zeros((2, 5, 3), np.float16)),
        (np.zeros((2, 20), np.float32), np.zeros((2, 5, 3), np.float32)),
    ],
)
def test_model_that_gives_something_else_is_refused(boxes, scores):
    with pytest.raises(ValueError, match=r"boxes \(2, M, 4\) and scores \(2, M, C\), both float32, got"):
        check_outputs(boxes, scores, 2)
    with pytest.raises(ValueError, match="the network must give boxes"):
        Recorder((boxes, scores)).infer(floats())
