"""The gates let the right model pass and no wrong one."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from export.networks import ODD_CFG, folded, random_images, random_network, torch_outputs
from prunedeploy_engines.detection.nms import detections_from
from prunedeploy_engines.errors import GateError
from prunedeploy_engines.runtimes.onnxruntime.runner import OnnxRuntimeRunner
from prunedeploy_export import onnx_from_torch
from prunedeploy_export.gates.parity import check_detection_parity, check_map_parity, check_tensor_parity


def outputs(*detections: tuple[float, float, float, float, float], classes: int = 2, class_id: int = 0):
    """One image of boxes and scores: ``x1, y1, x2, y2, score`` each, all of one class."""
    boxes = np.array([[detection[:4] for detection in detections]], dtype=np.float32)
    scores = np.zeros((1, len(detections), classes), dtype=np.float32)
    scores[0, :, class_id] = [detection[4] for detection in detections]
    return boxes, scores


A = (10.0, 10.0, 60.0, 60.0, 0.9)
B = (100.0, 40.0, 180.0, 90.0, 0.6)


def coco_map(detections: list[tuple], truth: list[tuple]) -> float:
    """mAP by pycocotools; per image boxes (K, 4) xyxy, scores (K,) and classes (K,)."""
    rows = {"truth": [], "found": []}
    for name, images in (("truth", truth), ("found", detections)):
        for image_id, image in enumerate(images, start=1):
            for (x1, y1, x2, y2), score, class_id in zip(*(values.tolist() for values in image), strict=True):
                width, height = x2 - x1, y2 - y1
                row = {"image_id": image_id, "category_id": class_id + 1, "bbox": [x1, y1, width, height]}
                row |= {"id": len(rows[name]) + 1, "score": score, "area": width * height, "iscrowd": 0}
                rows[name].append(row)
    coco = COCO()
    coco.dataset = {
        "images": [{"id": i + 1} for i in range(len(truth))],
        "categories": [{"id": i + 1} for i in range(2)],
        "annotations": rows["truth"],
    }
    coco.createIndex()
    evaluation = COCOeval(coco, coco.loadRes(rows["found"]), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return float(evaluation.stats[0])


def detections_of(batch: tuple[np.ndarray, np.ndarray]) -> list[tuple]:
    images = zip(*batch, strict=True)
    return [detections_from(*image, score_threshold=0.25, iou_threshold=0.45) for image in images]


@pytest.fixture(scope="module")
def right_and_wrong(tmp_path_factory):
    """What PyTorch computes, what its file computes, and what the file computes with one weight changed."""
    model = random_network(ODD_CFG, seed=3)
    images = random_images(model.cfg, 2)
    right, wrong = folded(model), folded(model)
    wrong.folded[0][0][0, 0, 1, 1] += 1.0
    exported = []
    for network in (right, wrong):
        file = onnx_from_torch(network, tmp_path_factory.mktemp("model") / "model.onnx")
        with OnnxRuntimeRunner(file.path, threads=1, allow_spinning=False) as runner:
            exported.append(runner.infer(images))
    return torch_outputs(model, images), *exported


def test_one_changed_weight_fails_the_tensor_gate(right_and_wrong):
    parent, right, wrong = right_and_wrong
    assert check_tensor_parity(parent, right).boxes < 1e-5
    with pytest.raises(GateError, match="tensor parity: boxes"):
        check_tensor_parity(parent, wrong)


def test_one_changed_weight_fails_the_detection_gate(right_and_wrong):
    parent, right, wrong = right_and_wrong
    assert check_detection_parity(parent, right).detections > 5
    with pytest.raises(GateError, match="matched detections: image 0"):
        check_detection_parity(parent, wrong)


def test_one_changed_weight_fails_the_map_gate(right_and_wrong):
    truth = detections_of(right_and_wrong[0])  # what the parent finds counts as what is there
    parent, right, wrong = (coco_map(detections_of(batch), truth) for batch in right_and_wrong)
    assert parent > 0.9
    assert abs(check_map_parity(parent, right, 0.001).deviation) < 1e-6
    with pytest.raises(GateError, match="mAP parity"):
        check_map_parity(parent, wrong, 0.001)


def test_tensor_gate_measures_the_largest_deviation_relative_to_the_largest_value():
    reference = outputs(A, B)  # largest box value 180, largest score 0.9
    boxes, scores = reference[0].copy(), reference[1].copy()
    boxes[0, 1, 2] -= 0.009  # 0.009 / 180 = 5e-5
    scores[0, 0, 1] += 2.7e-5  # 2.7e-5 / 0.9 = 3e-5
    parity = check_tensor_parity(reference, (boxes, scores))
    assert parity.boxes == pytest.approx(5e-5, rel=1e-3)
    assert parity.scores == pytest.approx(3e-5, rel=1e-3)
    scores[0, 0, 1] = 1e-4  # 1.1e-4
    with pytest.raises(GateError) as failed:
        check_tensor_parity(reference, (boxes, scores), artefact="model.onnx")
    assert "model.onnx: tensor parity: scores[0, 0, 1] is 0.0001, the parent's 0:" in str(failed.value)
    assert "\n" not in str(failed.value)


def test_tensor_gate_allows_no_deviation_from_an_output_of_zeros():
    boxes, scores = outputs((1, 1, 2, 2, 0.0))
    assert check_tensor_parity((boxes, scores), (boxes, scores)).scores == 0.0
    with pytest.raises(GateError, match="scores"):
        check_tensor_parity((boxes, scores), (boxes, scores + 1e-12))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("output", [0, 1])
@pytest.mark.parametrize("gate", [check_tensor_parity, check_detection_parity])
def test_a_value_that_is_not_finite_never_passes(gate, output, side, value):
    pair = [outputs(A, B), outputs(A, B)]
    pair[side][output][0, 1, 0] = value
    with pytest.raises(GateError, match=r"1 values of the .* are not finite"):
        gate(*pair)
    pair[1 - side][output][0, 1, 0] = value  # the same on both sides is no better
    with pytest.raises(GateError, match="not finite"):
        gate(*pair)


@pytest.mark.parametrize("gate", [check_tensor_parity, check_detection_parity])
def test_outputs_of_other_shapes_are_a_mistake_of_the_caller(gate):
    with pytest.raises(ValueError, match=r"\(1, 2, 4\).*\(1, 1, 4\)"):
        gate(outputs(A, B), outputs(A))
    with pytest.raises(ValueError, match="N, M >= 1"):
        gate((np.zeros((0, 3, 4)), np.zeros((0, 3, 2))), (np.zeros((0, 3, 4)), np.zeros((0, 3, 2))))
    boxes, scores = outputs(A)
    with pytest.raises(ValueError, match=r"boxes \(N, M, 4\)"):
        gate((scores, boxes), (scores, boxes))


def test_detection_gate_records_the_worst_partner():
    # B is 80 wide; moved by 0.4 it shares 79.6 of 80.4: IoU 0.990.
    moved = (B[0] + 0.4, B[1], B[2] + 0.4, B[3], B[4] - 5e-4)
    parity = check_detection_parity(outputs(A, B), outputs(A, moved))
    assert (parity.images, parity.detections, parity.coin_flips) == (1, 2, 0)
    assert parity.min_iou == pytest.approx(79.6 / 80.4, abs=1e-5)
    assert parity.max_score_difference == pytest.approx(5e-4, rel=1e-3)


def test_detection_gate_refuses_a_moved_rescored_lost_invented_or_relabelled_detection():
    reference = outputs(A, B)
    wrong = {
        "moved": outputs(A, (B[0] + 0.5, B[1], B[2] + 0.5, B[3], B[4])),  # 79.5 / 80.5 = 0.988
        "rescored": outputs(A, (*B[:4], B[4] + 2e-3)),
        "lost": outputs(A, (*B[:4], 0.0)),
        "relabelled": (reference[0], reference[1][..., ::-1]),
    }
    for what, candidate in wrong.items():
        with pytest.raises(GateError, match="matched detections"):
            pytest.fail(f"{what} passed: {check_detection_parity(reference, candidate)}")
        with pytest.raises(GateError, match="matched detections"):
            pytest.fail(f"{what} in the parent passed: {check_detection_parity(candidate, reference)}")


def test_detection_gate_names_image_box_and_what_is_nearest():
    reference, candidate = outputs(A, B), outputs(A, (*B[:4], 0.5))
    with pytest.raises(GateError) as failed:
        check_detection_parity(reference, candidate, artefact="bundle/model.onnx")
    message = str(failed.value)
    assert message.startswith("bundle/model.onnx: matched detections: image 0: the parent's detection of")
    assert "[100.0, 40.0, 180.0, 90.0]" in message
    assert "nearest one has IoU 1.0000 and score 0.5000" in message


def test_score_at_the_threshold_may_fall_on_either_side():
    above, below = outputs(A, (*B[:4], 0.2509)), outputs(A, (*B[:4], 0.2491))
    for pair in ((above, below), (below, above)):
        assert check_detection_parity(*pair, score_threshold=0.25).coin_flips == 0
    with pytest.raises(GateError, match="matched detections"):  # clear of the threshold, and gone
        check_detection_parity(outputs(A, (*B[:4], 0.252)), below, score_threshold=0.25)


def test_tie_in_nms_may_fall_either_way():
    twin = (A[0] + 10, A[1], A[2] + 10, A[3])  # IoU 40 / 60 with A: one of the two survives
    reference, candidate = outputs(A, (*twin, 0.8999)), outputs(A, (*twin, 0.9001))
    assert check_detection_parity(reference, candidate).coin_flips == 2  # each winner lost elsewhere
    with pytest.raises(GateError, match="matched detections"):  # no tie: the twin's score is wrong
        check_detection_parity(reference, outputs(A, (*twin, 0.95)))


def test_invented_box_that_beats_a_right_one_fails():
    over = (A[0] + 10, A[1], A[2] + 10, A[3])
    with pytest.raises(GateError, match="artefact's detection"):
        check_detection_parity(outputs(A, (*over, 0.0)), outputs(A, (*over, 0.95)))


def test_tiny_and_flat_boxes_match_themselves():
    tiny, flat = (200.0, 200.0, 200.001, 200.001, 0.8), (300.0, 50.0, 300.0, 80.0, 0.7)
    shifted = (200.0005, 200.0005, 200.0015, 200.0015, 0.8)  # IoU 1/7, but a two-thousandth of a pixel
    assert check_detection_parity(outputs(tiny, flat), outputs(shifted, flat)).detections == 2


def test_network_without_detections_is_recorded_as_proving_nothing():
    nothing = outputs((*A[:4], 0.01))
    parity = check_detection_parity(nothing, nothing)
    assert (parity.detections, parity.min_iou, parity.max_score_difference) == (0, None, None)


def row_of(count: int, moved: int, by: float = 0.2):
    """So many detections side by side, the first few with their scores moved, and as they were."""
    boxes = [(40.0 * i, 10.0, 40.0 * i + 30, 60.0) for i in range(count)]
    return outputs(*((*box, 0.8) for box in boxes)), outputs(
        *((*box, 0.8 - by if i < moved else 0.8) for i, box in enumerate(boxes))
    )


def test_a_share_of_the_detections_must_match_where_that_is_asked():
    reference, candidate = row_of(10, moved=1)
    with pytest.raises(GateError, match="matched detections: image 0"):
        check_detection_parity(reference, candidate, score_tolerance=0.1)
    parity = check_detection_parity(reference, candidate, score_tolerance=0.1, share=0.9)
    assert (parity.matched_share, parity.allowed_share, parity.detections) == (0.9, 0.9, 10)
    assert parity.max_score_difference == 0.0  # of those that match
    with pytest.raises(
        GateError, match=r"4 of 20 have no match, at least 90 % must have one; the first: image 0"
    ) as told:
        check_detection_parity(*row_of(10, moved=2), score_tolerance=0.1, share=0.9)
    assert told.value.gate == "detections"


def test_one_detection_alone_never_fails_a_share():
    for count in (1, 2, 3):  # the parent's only: the other side's is below the threshold
        reference, candidate = row_of(count, moved=1, by=0.7)
        assert check_detection_parity(reference, candidate, share=0.99).detections == count
        with pytest.raises(GateError, match="matched detections"):
            check_detection_parity(reference, candidate)
    with pytest.raises(GateError, match="2 of 2 have no match"):
        check_detection_parity(*row_of(2, moved=2, by=0.7), share=0.99)


def test_a_share_lets_no_relabelled_network_pass():
    reference, _ = row_of(10, moved=0)
    with pytest.raises(GateError, match="20 of 20 have no match"):
        check_detection_parity(reference, (reference[0], reference[1][..., ::-1]), share=0.1)


def test_a_share_of_the_predictions_must_be_within_the_tolerance():
    reference, candidate = row_of(10, moved=1)  # 0.2 of 0.8: 0.25
    with pytest.raises(GateError, match="tensor parity: scores"):
        check_tensor_parity(reference, candidate, 0.1)
    parity = check_tensor_parity(reference, candidate, 0.1, share=0.9)
    assert (parity.within, parity.boxes, parity.scores) == (0.9, 0.0, pytest.approx(0.25))
    with pytest.raises(GateError, match=r"80 % of the predictions are within it, not 90 %") as told:
        check_tensor_parity(*row_of(10, moved=2), 0.1, share=0.9)
    assert told.value.gate == "tensor"


def test_map_that_may_gain_is_limited_below_only():
    assert check_map_parity(0.3, 0.5, 0.01, may_gain=True).deviation == pytest.approx(0.2)
    assert check_map_parity(0.3, 0.291, 0.01, may_gain=True).deviation == pytest.approx(-0.009)
    for candidate in (0.289, math.nan, None):
        with pytest.raises(GateError, match=r"mAP parity: .* and it may be lower by 0\.01"):
            check_map_parity(0.3, candidate, 0.01, may_gain=True)


def test_map_gate_allows_the_tolerance_either_way_and_no_more():
    assert check_map_parity(0.412, 0.4115, 0.001).deviation == pytest.approx(-0.0005)
    assert check_map_parity(0.412, 0.4125, 0.001).deviation == pytest.approx(0.0005)
    for candidate in (0.41, 0.414, math.nan, None):
        with pytest.raises(GateError, match="mAP parity"):
            check_map_parity(0.412, candidate, 0.001)
    for reference in (math.nan, None):
        with pytest.raises(GateError, match="mAP parity"):
            check_map_parity(reference, 0.412, 0.001)


def test_map_that_is_undefined_on_both_sides_passes():
    assert check_map_parity(None, None, 0.001).deviation == 0.0


def test_records_are_plain_json():
    records = (
        check_tensor_parity(outputs(A), outputs(A)),
        check_detection_parity(outputs(A), outputs(A)),
        check_map_parity(np.float64(0.4), np.float64(0.4), 0.01),
    )
    for record in records:
        values = dataclasses.asdict(record)
        assert json.loads(json.dumps(values, allow_nan=False)) == values


def test_gates_import_neither_torch_nor_onnx():
    code = "import sys, prunedeploy_export.gates.parity; print({'torch', 'onnx', 'onnxruntime'} & set(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "set()"
