"""Suppression in the graph gives what a greedy loop gives, box by box."""

from __future__ import annotations

import json
import math

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from effort import examples
from export.networks import ODD_CFG, folded, random_images, random_network
from prunedeploy_engines.builder.from_onnx import engine_from_onnx
from prunedeploy_engines.detection.nms import detections_from
from prunedeploy_engines.runtimes.onnx_file import NmsInGraph, read_onnx_header
from prunedeploy_engines.runtimes.onnxruntime.runner import OnnxRuntimeRunner
from prunedeploy_engines.runtimes.tensorrt.library import installed_version
from prunedeploy_export import onnx_from_torch, with_nms, with_uint8_input
from prunedeploy_export.graph.edit import read_model, write_model

ANY = NmsInGraph(score_threshold=0.25, iou_threshold=0.5, max_detections=100)


def outputs_only(predictions: int, classes: int, opset: int = 17) -> onnx.ModelProto:
    """A network that gives the boxes and scores that it is fed."""
    boxes, scores = (["batch", predictions, 4], ["batch", predictions, classes])
    graph = helper.make_graph(
        [helper.make_node("Identity", [f"{name}_in"], [name], name=name) for name in ("boxes", "scores")],
        "outputs_only",
        [
            helper.make_tensor_value_info("boxes_in", TensorProto.FLOAT, boxes),
            helper.make_tensor_value_info("scores_in", TensorProto.FLOAT, scores),
        ],
        [
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, boxes),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, scores),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def session_of(predictions: int, classes: int, nms: NmsInGraph, candidates: int = 512, opset: int = 17):
    model = with_nms(outputs_only(predictions, classes, opset), nms, candidates)
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def suppressed(boxes: np.ndarray, scores: np.ndarray, nms: NmsInGraph, candidates: int = 512):
    """What the graph gives for ``(N, M, 4)`` and ``(N, M, C)``."""
    session = session_of(boxes.shape[1], scores.shape[2], nms, candidates)
    return session.run(None, {"boxes_in": boxes.astype(np.float32), "scores_in": scores.astype(np.float32)})


def iou(a: list[float], b: list[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = sum(max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1]) for box in (a, b))
    union = areas - width * height
    return width * height / union if union > 0 else 0.0


def greedy(boxes: np.ndarray, scores: np.ndarray, nms: NmsInGraph, candidates: int = 512) -> list[list[float]]:
    """One image's detections, as rows of the output: the best that is left drops what overlaps it."""
    pairs = [
        (float(scores[i, c]), i, c)
        for i in range(len(boxes))
        for c in range(scores.shape[1])
        if scores[i, c] > nms.score_threshold and all(math.isfinite(side) for side in boxes[i])
    ]
    left = sorted(pairs, key=lambda pair: -pair[0])[:candidates]  # sorted() keeps the order of equal ones
    kept: list[list[float]] = []
    while left and len(kept) < nms.max_detections:
        score, i, c = left.pop(0)
        kept.append([*map(float, boxes[i]), score, float(c)])
        left = [
            pair
            for pair in left
            if pair[2] != c or iou(boxes[i].tolist(), boxes[pair[1]].tolist()) <= nms.iou_threshold
        ]
    return kept


def assert_greedy(boxes: np.ndarray, scores: np.ndarray, nms: NmsInGraph, candidates: int = 512) -> list[int]:
    """Compare a batch with the loop, and with suppression on the host; returns the numbers of detections."""
    boxes, scores = boxes.astype(np.float32), scores.astype(np.float32)
    detections, counts = suppressed(boxes, scores, nms, candidates)
    rows = min(nms.max_detections, candidates, scores.shape[1] * scores.shape[2])
    assert detections.shape == (len(boxes), rows, 6)
    assert detections.dtype == np.float32
    assert counts.shape == (len(boxes),)
    assert counts.dtype == np.int32
    for i in range(len(boxes)):
        expected = greedy(boxes[i], scores[i], nms, candidates)
        table = np.zeros((rows, 6), np.float32)
        table[: len(expected)] = np.array(expected, np.float32).reshape(-1, 6)
        assert counts[i] == len(expected)
        np.testing.assert_array_equal(detections[i], table)
        on_host = detections_from(
            boxes[i],
            scores[i],
            score_threshold=nms.score_threshold,
            iou_threshold=nms.iou_threshold,
            max_detections=rows,
            pre_nms_top_k=candidates,
        )
        found = detections[i, : counts[i]]
        for part, column in zip(on_host, (found[:, :4], found[:, 4], found[:, 5]), strict=True):
            np.testing.assert_array_equal(part, column)
    return counts.tolist()


# Whole corners, scores in eighths and thresholds that are sums of powers of 2: overlaps, ties and limits are
# exact in float32, so the graph and the loop must agree to the last bit.
side = st.integers(0, 12)
box = st.tuples(side, side, side, side)
score = st.integers(0, 8).map(lambda eighths: eighths / 8)


@settings(max_examples=examples(60))
@given(
    rows=st.lists(st.tuples(box, st.tuples(score, score, score)), min_size=1, max_size=30),
    score_threshold=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    iou_threshold=st.sampled_from([0.0, 0.125, 0.5, 0.75, 1.0]),
    max_detections=st.sampled_from([1, 5, 200]),
    candidates=st.sampled_from([1, 7, 512]),
)
def test_graph_gives_what_a_greedy_loop_gives(rows, score_threshold, iou_threshold, max_detections, candidates):
    boxes, scores = (np.array([row[part] for row in rows], np.float32)[None] for part in (0, 1))
    assert_greedy(boxes, scores, NmsInGraph(score_threshold, iou_threshold, max_detections), candidates)


@pytest.mark.parametrize("seed", range(4))
def test_many_classes_and_more_candidates_than_the_cap(seed):
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 60, (3, 300, 2))
    boxes = np.concatenate([corners, corners + rng.integers(1, 30, (3, 300, 2))], axis=2)
    scores = rng.random((3, 300, 20))
    assert (scores > 0.25).sum() > 3 * 512
    found = assert_greedy(boxes, scores, NmsInGraph(0.25, 0.5, 100))
    assert all(0 < count <= 100 for count in found)


def chain(length: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes that overlap their neighbours only, by descending score: every second one stays."""
    start = np.arange(length) * 4
    boxes = np.stack([start, 0 * start, start + 6, 0 * start + 4], axis=1)  # IoU of neighbours 2 / 10
    return boxes[None], np.linspace(1, 0.5, length)[None, :, None]


@pytest.mark.parametrize("length", [2, 3, 101, 512])
def test_chain_of_suppression_is_followed_to_its_end(length):
    boxes, scores = chain(length)
    nms = NmsInGraph(0.25, 0.125, 600)
    assert assert_greedy(boxes, scores, nms) == [(length + 1) // 2]
    detections, _ = suppressed(boxes, scores, nms)
    assert detections[0, : (length + 1) // 2, 0].tolist() == boxes[0, ::2, 0].tolist()


def test_images_of_a_batch_do_not_touch_each_other():
    # All suppressed but one; none above the threshold; one per class; a chain that needs many rounds.
    same = np.tile([0, 0, 8, 8], (40, 1))
    apart = np.stack([np.arange(40) * 10, np.zeros(40), np.arange(40) * 10 + 5, np.full(40, 5)], axis=1)
    chained, chained_scores = chain(40)
    boxes = np.stack([same, same, same, chained[0], apart])
    scores = np.zeros((5, 40, 3))
    scores[0, :, 1] = np.linspace(0.9, 0.3, 40)
    scores[1] = 0.25  # not above
    scores[2] = np.linspace(0.9, 0.3, 40)[:, None]
    scores[3, :, :1] = chained_scores[0]
    scores[4, :, 2] = 0.5
    assert assert_greedy(boxes, scores, NmsInGraph(0.25, 0.125, 100)) == [1, 0, 3, 20, 40]


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_box_that_is_none_is_no_detection_and_takes_no_place(value):
    boxes, scores = chain(12)
    boxes = boxes.astype(np.float32)
    for column, row in enumerate((0, 3, 4, 7)):
        boxes[0, row, column] = value
    # All four are among the best 8, which is the cap. What is left are 1-2, 5-6 and 8-9-10-11: of the neighbours
    # stay 1, 5, 8 and 10.
    assert assert_greedy(boxes, scores, NmsInGraph(0.25, 0.125, 100), 8) == [4]
    everywhere = np.full((1, 12, 4), value)
    assert assert_greedy(everywhere, scores, ANY) == [0]


def test_score_that_is_no_number_suppresses_nothing():
    boxes, scores = np.tile([0, 0, 8, 8], (1, 3, 1)), np.array([[[np.nan], [0.9], [0.5]]])
    detections, counts = suppressed(boxes, scores, ANY)
    assert counts.tolist() == [1]
    assert detections[0, 0].tolist() == [0, 0, 8, 8, pytest.approx(0.9), 0]
    assert not detections[0, 1:].any()


def test_areas_of_enormous_boxes_do_not_overflow():
    # The largest that still count: their areas are 4e34, the product of two would be beyond float32.
    boxes = np.array([[[-1e17, -1e17, 1e17, 1e17], [-1e17, -1e17, 1e17, 0.9e17], [3e18, 0, 4e18, 1]]])
    _, counts = suppressed(boxes, np.array([[[0.9], [0.8], [0.7]]]), ANY)
    assert counts.tolist() == [1]


@pytest.mark.parametrize(
    ("asked", "predictions", "candidates", "given"), [(100, 3, 512, 6), (5, 300, 512, 5), (100, 300, 10, 10)]
)
def test_metadata_say_what_the_file_does(asked, predictions, candidates, given, tmp_path):
    nms = NmsInGraph(0.25, 0.5, asked)
    model = with_nms(outputs_only(predictions, 2), nms, candidates)
    write_model(model, tmp_path / "model.onnx")
    header = read_onnx_header(tmp_path / "model.onnx")
    assert header.nms == NmsInGraph(0.25, 0.5, given)
    assert header.class_names == ("class 0", "class 1")
    assert header.metadata["nms_candidates"] == str(min(candidates, 2 * predictions))
    shape = [dim.dim_param or dim.dim_value for dim in model.graph.output[0].type.tensor_type.shape.dim]
    assert shape == ["batch", given, 6]
    apart = np.arange(predictions)[:, None] * 10 + np.array([0, 0, 5, 5])
    detections, counts = suppressed(apart[None], np.full((1, predictions, 2), 0.5), nms, candidates)
    assert detections.shape == (1, given, 6)
    assert counts.tolist() == [given]


@pytest.mark.parametrize(
    "nms",
    [
        NmsInGraph(-0.1, 0.5, 10),
        NmsInGraph(1.1, 0.5, 10),
        NmsInGraph(0.5, -0.1, 10),
        NmsInGraph(0.5, 1.5, 10),
        NmsInGraph(math.nan, 0.5, 10),
        NmsInGraph(0.5, math.nan, 10),
        NmsInGraph(0.5, 0.5, 0),
    ],
)
def test_thresholds_that_make_no_sense_are_refused(nms):
    with pytest.raises(ValueError, match="thresholds must be in"):
        with_nms(outputs_only(4, 2), nms)


def test_no_room_for_candidates_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        with_nms(outputs_only(4, 2), ANY, 0)


@pytest.mark.parametrize("opset", [17, 18, 20, 21])
def test_every_opset_of_the_export_takes_suppression(opset):
    boxes, scores = chain(9)
    session = session_of(9, 1, NmsInGraph(0.25, 0.125, 100), opset=opset)
    found = session.run(None, {"boxes_in": boxes.astype(np.float32), "scores_in": scores.astype(np.float32)})
    assert found[1].tolist() == [5]


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    model = random_network(ODD_CFG, seed=3)
    return model, onnx_from_torch(folded(model), tmp_path_factory.mktemp("odd") / "model.onnx").path


def test_network_with_suppression_detects_what_the_host_finds(odd, tmp_path):
    network, path = odd
    images = random_images(network.cfg, 3)
    nms = NmsInGraph(0.28, 0.45, 60)
    write_model(with_nms(read_model(path), nms), tmp_path / "nms.onnx")
    with OnnxRuntimeRunner(path, threads=1) as plain, OnnxRuntimeRunner(tmp_path / "nms.onnx", threads=1) as runner:
        assert runner.nms_classes == 2
        boxes, scores = plain.infer(images)
        kept_boxes, kept_scores = runner.infer(images)
    for i in range(3):
        expected = detections_from(
            boxes[i], scores[i], score_threshold=0.28, iou_threshold=0.45, max_detections=60, pre_nms_top_k=512
        )
        assert len(expected[0]) > 5
        rows, classes = np.nonzero(kept_scores[i])
        np.testing.assert_allclose(kept_boxes[i, rows], expected[0], rtol=1e-5)
        np.testing.assert_allclose(kept_scores[i, rows, classes], expected[1], rtol=1e-5)
        np.testing.assert_array_equal(classes, expected[2])


def test_order_of_uint8_input_and_suppression_does_not_matter(odd, tmp_path):
    network, path = odd
    images = random_images(network.cfg, 2)
    nms = NmsInGraph(0.28, 0.45, 60)
    found = []
    for name, changes in (
        ("first", [with_uint8_input, lambda model: with_nms(model, nms)]),
        ("last", [lambda model: with_nms(model, nms), with_uint8_input]),
    ):
        model = read_model(path)
        for change in changes:
            model = change(model)
        write_model(model, tmp_path / f"{name}.onnx")
        with OnnxRuntimeRunner(tmp_path / f"{name}.onnx", threads=1) as runner:
            assert runner.uint8_input
            found.append(runner.infer(images))
    assert found[0][1].any()
    for first, last in zip(*found, strict=True):
        np.testing.assert_array_equal(first, last)


def test_the_source_is_not_changed(odd):
    model = read_model(odd[1])
    before = model.SerializeToString()
    after = with_nms(model, ANY)
    assert model.SerializeToString() == before
    assert json.loads({entry.key: entry.value for entry in after.metadata_props}["nms"])["max_detections"] == 100


@pytest.mark.skipif(installed_version("tensorrt_rtx") is None, reason="needs tensorrt-rtx (prunedeploy[rtx])")
@pytest.mark.parametrize("uint8_input", [False, True])
def test_suppression_can_be_built_for_turing_which_has_no_fp32_matmul(tmp_path, uint8_input):
    """T4 and RTX 20: TensorRT-RTX refuses a product of fp32 matrices inside a Loop for sm75."""
    plain = read_model(onnx_from_torch(folded(random_network(ODD_CFG, seed=3)), tmp_path / "plain.onnx").path)
    write_model(with_nms(with_uint8_input(plain) if uint8_input else plain, ANY), tmp_path / "model.onnx")
    engine = engine_from_onnx(tmp_path / "model.onnx", tmp_path / "engines", target="sm75")
    assert engine.nms == {"score_threshold": 0.25, "iou_threshold": 0.5, "max_detections": 100}
