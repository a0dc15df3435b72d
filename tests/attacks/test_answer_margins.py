"""Margins from boxes and scores: numbers worked by hand, plain loops over predictions, and their like, ``rank``."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from arithmetic_runner import Arithmetic
from attacks.test_pgd import TARGETS
from prunedeploy.attacks import answer_margins
from prunedeploy.attacks.answer_margins import (
    ImageObjects,
    from_detections,
    from_scores,
    margin,
    objects_of,
    served,
)
from prunedeploy.attacks.objectives import LOST_SCORE, objective_for
from prunedeploy.evaluation import TorchRunner
from prunedeploy.models import FoldedDarknet
from prunedeploy_engines.detection.letterbox import letterbox_geometry
from prunedeploy_engines.detection.nms import detections_from
from prunedeploy_engines.errors import ConfigError
from prunedeploy_engines.runtimes.onnxruntime.runner import OnnxRuntimeRunner
from tiny_detector import cell_boxes, cell_scores, save_tiny_detector

FRAME = np.array([0.0, 0.0, 100.0, 100.0])
ONE = ImageObjects(np.array([[0.0, 0.0, 10.0, 10.0]]), np.array([0]), FRAME)
# IoU with the object: 1, .8 (a fifth cut off), .5, 0
BOXES = np.array([[0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 5], [50, 50, 60, 60]], np.float32)


def looped(boxes, scores, objects, floor):
    """The docstring's equation, one prediction and one threshold at a time; ``scores (M, C)``."""

    def iou(a, b):
        width = min(a[2], b[2]) - max(a[0], b[0])
        height = min(a[3], b[3]) - max(a[1], b[1])
        overlap = max(0.0, width) * max(0.0, height)
        return overlap / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap)

    left, top, right_end, bottom = objects.frame
    clipped = [
        (min(max(x0, left), right_end), min(max(y0, top), bottom), min(max(x1, left), right_end),
         min(max(y1, top), bottom)) for x0, y0, x1, y1 in boxes.astype(float).tolist()
    ]  # fmt: skip
    total, any_found = 0.0, False
    for truth, class_id in zip(objects.boxes_xyxy.tolist(), objects.class_ids.tolist(), strict=True):
        leader, placed, wrong = math.log(floor), 0.0, math.log(floor)
        alike = objects.boxes_xyxy[objects.class_ids == class_id].tolist()
        for box, score in zip(clipped, scores[:, class_id].tolist(), strict=True):
            value = math.log(max(score, floor))
            if iou(box, truth) >= 0.5 and value > leader:
                leader, placed = value, iou(box, truth)
            if all(iou(box, other) < 0.5 for other in alike):
                wrong = max(wrong, value)
        any_found |= placed > 0
        total += leader - wrong + 20 * (placed - 0.5) if placed else math.log(floor)
    return total, not any_found


def test_margins_worked_by_hand():
    floor = math.log(0.001)
    # The perfect box leads; what matches nothing has .2.
    scores = np.array([[0.8, 0.1, 0.4, 0.2]], np.float32)
    assert margin(BOXES, scores, ONE, 0.001) == (pytest.approx(math.log(0.8 / 0.2) + 20 * 0.5, abs=1e-6), False)
    # Without it the box of IoU .5 leads that of .8, which it would suppress.
    assert margin(BOXES[1:], scores[:, 1:], ONE, 0.001) == (pytest.approx(math.log(0.4 / 0.2), abs=1e-6), False)
    # Nothing fits: lost, whatever else is there. Likewise if what fits is at the floor, or nothing is there at all.
    assert margin(BOXES[3:], scores[:, 3:], ONE, 0.001) == (pytest.approx(floor), True)
    assert margin(BOXES, np.array([[0.001, 0, 0, 0.9]], np.float32), ONE, 0.001) == (pytest.approx(floor), True)
    assert margin(BOXES[:0], scores[:, :0], ONE, 0.001) == (pytest.approx(floor), True)
    # Where one of two objects is lost, the image is not.
    two = ImageObjects(np.array([[0.0, 0, 10, 10], [80, 80, 90, 90]]), np.array([0, 1]), FRAME)
    both = np.array([[0.8, 0.1, 0.4, 0.2], [0.3, 0.1, 0.1, 0.1]], np.float32)
    assert margin(BOXES, both, two, 0.001) == (pytest.approx(math.log(4) + 10 + floor, abs=1e-6), False)
    nothing = ImageObjects(np.zeros((0, 4)), np.zeros(0, np.int64), FRAME)
    assert margin(BOXES, scores[:0], nothing, 0.001) == (0.0, True)


def test_boxes_are_clipped_to_the_photo_and_those_that_are_no_boxes_do_not_count():
    boxes = np.array([[-90, -90, 10, 10], [0, 0, np.inf, 10], [np.nan, 0, 10, 10]], np.float32)
    scores = np.array([[0.5, 0.9, 0.9]], np.float32)
    # Clipped, the first is the object itself; nothing outranks it.
    assert margin(boxes, scores, ONE, 0.001) == (pytest.approx(math.log(0.5 / 0.001) + 10, rel=1e-6), False)


@pytest.mark.parametrize("seed", range(8))
def test_margins_are_those_of_a_plain_loop(seed):
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 60, (4, 2))
    objects = ImageObjects(
        np.concatenate((corners, corners + rng.uniform(10, 40, (4, 2))), 1), rng.integers(0, 3, 4), FRAME * 0.9
    )
    near = objects.boxes_xyxy[rng.integers(0, 4, 40)] + rng.normal(0, 3, (40, 4))
    boxes = near.astype(np.float32)
    scores = np.where(rng.random((40, 3)) < 0.3, 0.0005, rng.random((40, 3))).astype(np.float32)
    found = margin(boxes, scores[:, objects.class_ids].T, objects, 0.01)
    expected = looped(boxes, scores, objects, 0.01)
    assert found == (pytest.approx(expected[0], abs=1e-5), expected[1])


def test_without_placement_it_is_the_objective_rank_turned_round(model, images, monkeypatch):
    monkeypatch.setattr(answer_margins, "PLACEMENT", 0.0)
    network = FoldedDarknet(model)
    targets = TARGETS.clone()
    rank = objective_for("rank", lambda: [], targets, model.cfg)(network(images))
    with TorchRunner(model) as runner:
        boxes, scores = runner.infer(images.numpy())
    wide = np.array([-1e9, -1e9, 1e9, 1e9])  # rank does not clip
    for index, objects in enumerate(objects_of(targets, 4, runner.input_size)):
        free = ImageObjects(objects.boxes_xyxy, objects.class_ids, wide)
        value, _ = margin(boxes[index], scores[index][:, free.class_ids].T, free, LOST_SCORE)
        # rank has no floor below what is wrong: here every image has a wrong prediction above it.
        assert value == pytest.approx(-float(rank[index]), abs=1e-4)


def test_objects_of_a_batch_lie_in_the_input_and_their_frames_are_the_photos():
    targets = torch.tensor([[1.0, 2, 0.5, 0.5, 0.25, 0.5], [1, 0, 0.25, 0.75, 0.5, 0.5]])
    geometry = letterbox_geometry((100, 50), (64, 96))  # 64 x 32 pixels in the middle
    none, two = objects_of(targets, 2, (64, 96), [geometry, geometry])
    assert none.class_ids.tolist() == []
    assert two.class_ids.tolist() == [2, 0]
    assert two.boxes_xyxy.tolist() == [[36, 16, 60, 48], [0, 32, 48, 64]]
    assert two.frame.tolist() == [32, 0, 64, 64]
    assert objects_of(targets, 2, (64, 96))[0].frame.tolist() == [0, 0, 96, 64]


def test_feedback_of_an_engine_by_scores_and_by_detections(tmp_path):
    """Of the detector that is known by heart: a cell is a box, its mean colours are its scores."""
    images = np.random.default_rng(0).random((3, 3, 32, 48), np.float32)
    objects = [ImageObjects(cell_boxes(32, 48)[[5, 9]].astype(float), np.array([1, 2]), np.array([0.0, 0, 48, 32]))] * 3
    indices = np.array([2, 0, 1])
    with OnnxRuntimeRunner(save_tiny_detector(tmp_path / "tiny.onnx"), threads=1) as runner:
        losses, lost = from_scores(runner, objects)(images, indices)
        seen, _ = from_detections(served(runner, 0.52, 0.45), objects, 0.52)(images, indices)
        everything, _ = from_detections(served(runner, 0.0, 0.45), objects, 0.0)(images, indices)
    scores = cell_scores(images)
    for index in range(3):
        assert (losses[index], lost[index]) == (
            pytest.approx(looped(cell_boxes(32, 48), scores[index], objects[0], LOST_SCORE)[0], abs=1e-4), False
        )  # fmt: skip
        boxes, found, classes = detections_from(
            cell_boxes(32, 48), scores[index], score_threshold=0.52, iou_threshold=0.45
        )
        spread = np.where(np.arange(3) == classes[:, None], found[:, None], 0)  # (K, C)
        assert 0 < len(found) < scores[index].size
        assert seen[index] == pytest.approx(looped(boxes, spread, objects[0], 0.52)[0], abs=1e-5)
    # Cells do not overlap: suppression takes nothing away, and without a threshold both see the same.
    np.testing.assert_allclose(everything, losses, atol=1e-5)


def test_a_runner_that_gives_detections_only_is_no_runner_to_ask_for_scores():
    runner = Arithmetic()
    runner.nms_classes = 3
    with pytest.raises(ConfigError, match="gives no scores of candidates"):
        from_scores(runner, [ONE])
