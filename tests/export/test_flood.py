"""Under any flood every post-processor gives what a plain loop gives, and none computes more than the bound allows."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest

from export.cluster.triton_process import InferenceResponse, Tensor, TritonError, stand_in
from export.graph.test_nms import greedy, outputs_only
from prunedeploy_engines.bench.flood import CASES, flooded_heads
from prunedeploy_engines.bundle import BundleFile, write_bundle
from prunedeploy_engines.detection import nms as on_host
from prunedeploy_engines.detection.letterbox import letterbox_geometry
from prunedeploy_engines.runtimes.onnx_file import NmsInGraph
from prunedeploy_export import with_nms
from tiny_detector import save_tiny_detector

SIZE = (160, 224)
PREDICTIONS, CLASSES = 300, 3
BOUND = 120
OPERATING, OF_MAP = 0.25, 0.001


def crowded(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Heads of random boxes on a grid of whole pixels, scores from far below to far above both thresholds."""
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, 100, (PREDICTIONS, 2))
    boxes = np.concatenate([corner, corner + rng.integers(4, 60, (PREDICTIONS, 2))], axis=1)
    scores = rng.integers(0, 1024, (PREDICTIONS, CLASSES)) / 1024
    return boxes.astype(np.float32), scores.astype(np.float32)


HEADS = {case: flooded_heads(case, PREDICTIONS, CLASSES, SIZE) for case in CASES} | {"crowded": crowded(0)}


def loop(heads: tuple[np.ndarray, np.ndarray], score_threshold: float, bound: int = BOUND) -> np.ndarray:
    """``(K, 6)``: x1, y1, x2, y2, score, class, by the loop of `test_nms`."""
    nms = NmsInGraph(score_threshold, 0.45, bound)
    return np.array(greedy(*heads, nms, bound), np.float32).reshape(-1, 6)


def table(boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray) -> np.ndarray:
    return np.column_stack([boxes, scores, classes]).astype(np.float32)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A bundle with the bound; its network does not matter here."""
    folder = tmp_path_factory.mktemp("flooded")
    model = save_tiny_detector(folder / "source.onnx", *SIZE)
    return write_bundle(
        folder / "bundle",
        {"model.onnx": BundleFile(model, "onnx", "fp32")},
        class_names=[f"class {number}" for number in range(CLASSES)],
        input={"height": SIZE[0], "width": SIZE[1]},
        nms={"max_candidates": BOUND},
    )


@pytest.fixture(scope="module")
def triton(bundle):
    sys.modules["triton_python_backend_utils"] = stand_in()
    settings = {
        **bundle.manifest.input.model_dump(), "nms_classes": None, "score_threshold": OPERATING, "iou_threshold": 0.45,
        "max_candidates": BOUND,
    }  # fmt: skip
    model = importlib.import_module("prunedeploy_export.cluster.triton_postprocess").TritonPythonModel()
    model.initialize({"model_config": json.dumps({"parameters": {"detector": {"string_value": json.dumps(settings)}}})})
    yield model
    del sys.modules["triton_python_backend_utils"]


def by_numpy(heads, score_threshold, _bundle, _triton):
    return table(
        *on_host.detections_from(
            *heads, score_threshold=score_threshold, iou_threshold=0.45, max_detections=None, pre_nms_top_k=BOUND
        )
    )


def by_bundle(heads, score_threshold, bundle, _triton):
    """What `detect`, `bench` and the server call."""
    found = bundle.detections(*heads, letterbox_geometry(SIZE, SIZE), score_threshold=score_threshold)
    return table(found.boxes_xyxy, found.scores, found.class_ids)


def in_the_graph(heads, score_threshold, _bundle, _triton):
    model = with_nms(outputs_only(PREDICTIONS, CLASSES), NmsInGraph(score_threshold, 0.45, BOUND), BOUND)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    detections, counts = session.run(None, {"boxes_in": heads[0][None], "scores_in": heads[1][None]})
    return detections[0, : counts[0]]


def by_triton(heads, score_threshold, _bundle, triton):
    tensors = {"boxes": heads[0][None], "scores": heads[1][None], "image_size": np.array([SIZE], np.int32)}
    request = SimpleNamespace(
        tensors={name: Tensor(name, value) for name, value in tensors.items()},
        parameters=lambda: json.dumps({"score_threshold": score_threshold}),
    )
    (response,) = triton.execute([request])
    assert isinstance(response, InferenceResponse)
    assert not isinstance(response.error, TritonError)
    out = {tensor.name(): tensor.as_numpy() for tensor in response.outputs}
    return table(out["boxes"][0], out["scores"][0], out["classes"][0])


@pytest.mark.parametrize("case", HEADS)
@pytest.mark.parametrize("score_threshold", [OPERATING, OF_MAP])
@pytest.mark.parametrize("post_processor", [by_numpy, by_bundle, in_the_graph, by_triton])
def test_every_post_processor_gives_what_a_loop_over_the_best_candidates_gives(
    case, score_threshold, post_processor, bundle, triton
):
    heads = HEADS[case]
    assert np.count_nonzero(heads[1] > score_threshold) > BOUND
    expected = loop(heads, score_threshold)
    assert len(expected) > 10
    np.testing.assert_allclose(post_processor(heads, score_threshold, bundle, triton), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("case", ["crowded", "chain"])
def test_bound_that_is_not_reached_changes_nothing(case):
    boxes, scores = HEADS[case]
    unbounded = on_host.detections_from(
        boxes, scores, score_threshold=OPERATING, iou_threshold=0.45, pre_nms_top_k=None
    )
    candidates = np.count_nonzero(scores > OPERATING)
    for bound in (candidates, candidates + 1, 10_000):
        bounded = on_host.detections_from(
            boxes, scores, score_threshold=OPERATING, iou_threshold=0.45, pre_nms_top_k=bound
        )
        for part, whole in zip(bounded, unbounded, strict=True):
            np.testing.assert_array_equal(part, whole)


@pytest.mark.parametrize("case", HEADS)
def test_what_goes_when_the_bound_is_reached_has_the_lowest_scores(case):
    """Greedy suppression looks down only: what is kept among the best candidates is kept whatever follows them."""
    boxes, scores = HEADS[case]
    usual = {"score_threshold": OF_MAP, "iou_threshold": 0.45}
    whole = table(*on_host.detections_from(boxes, scores, **usual, pre_nms_top_k=None))
    bounded = table(*on_host.detections_from(boxes, scores, **usual, pre_nms_top_k=BOUND))
    assert 0 < len(bounded) < len(whole)
    np.testing.assert_array_equal(bounded, whole[: len(bounded)])


@pytest.mark.parametrize("case", HEADS)
@pytest.mark.parametrize("bound", [1, 31, 32, 33, 120, 512])
def test_suppression_on_the_host_compares_no_more_pairs_than_the_bound_says(case, bound, monkeypatch):
    compared = []
    original = on_host._Corners.overlap

    def counting(self, a, b, iou_threshold):
        compared.append(len(a) * (b.stop - b.start))
        return original(self, a, b, iou_threshold)

    monkeypatch.setattr(on_host._Corners, "overlap", counting)
    boxes, scores = HEADS[case]
    found = on_host.detections_from(boxes, scores, score_threshold=OF_MAP, iou_threshold=0.45, pre_nms_top_k=bound)
    candidates = min(bound, np.count_nonzero(scores > OF_MAP))
    assert 0 < sum(compared) <= candidates * (candidates + 128) / 2
    assert len(found[1]) <= bound


@pytest.mark.parametrize("case", HEADS)
def test_suppression_in_the_graph_takes_no_more_rounds_than_it_gives_rows(case):
    """The Loop's own count of its rounds, handed out as an output."""
    rows, bound = 40, 64
    model = with_nms(outputs_only(PREDICTIONS, CLASSES), NmsInGraph(OPERATING, 0.45, rows), bound)
    (loop_node,) = [node for node in model.graph.node if node.op_type == "Loop"]
    body = loop_node.attribute[0].g
    rounds = body.output.add()
    rounds.CopyFrom(body.input[0])
    body.node.add(op_type="Identity", input=[body.input[0].name], output=["nms/this_round"])
    rounds.name = "nms/this_round"
    loop_node.output.append("nms/rounds_taken")
    model.graph.output.add(name="nms/rounds_taken")
    session = onnxruntime.InferenceSession(model.SerializeToString())
    boxes, scores = HEADS[case]
    _, counts, taken = session.run(None, {"boxes_in": boxes[None], "scores_in": scores[None]})
    assert len(taken) == counts[0] <= rows
    shapes = {
        init.name: tuple(init.dims) for init in model.graph.initializer if init.name.startswith("nms/") and init.dims
    }
    assert max(np.prod(shape) for shape in shapes.values()) <= bound * bound


@pytest.mark.parametrize(("predictions", "classes", "bound"), [(40, 7, 5), (40, 7, 39), (40, 7, 41), (6, 30, 20)])
def test_equal_scores_enter_in_the_order_of_box_and_class(predictions, classes, bound):
    """Ranked by box first, ties between pairs of several boxes must still fall as they do in one list of pairs."""
    rng = np.random.default_rng(predictions + bound)
    boxes, _ = flooded_heads("apart", predictions, classes, SIZE)
    scores = rng.choice([0.25, 0.5, 0.75], (predictions, classes)).astype(np.float32)
    pairs = sorted((-scores[i, c], i, c) for i in range(predictions) for c in range(classes))[:bound]
    found = on_host.detections_from(boxes, scores, score_threshold=0.1, iou_threshold=0.45, pre_nms_top_k=bound)
    np.testing.assert_array_equal(found[0], boxes[[i for _, i, _ in pairs]])
    assert found[2].tolist() == [c for _, _, c in pairs]
    model = with_nms(outputs_only(predictions, classes), NmsInGraph(0.1, 0.45, bound), bound)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    detections, counts = session.run(None, {"boxes_in": boxes[None], "scores_in": scores[None]})
    assert counts.tolist() == [bound]
    np.testing.assert_array_equal(detections[0], table(*found))


def test_boxes_that_are_none_take_no_place_in_a_flood():
    boxes, scores = (part.copy() for part in HEADS["classes"])
    boxes[::2, 1] = np.inf
    scores[1::4, 1] = np.nan
    found = on_host.detections_from(boxes, scores, score_threshold=OPERATING, iou_threshold=0.45, pre_nms_top_k=BOUND)
    usable = [
        (-scores[i, c], i, c) for i in range(1, PREDICTIONS, 2) for c in range(CLASSES) if np.isfinite(scores[i, c])
    ]
    expected = sorted(usable)[:BOUND]
    assert [(row, c) for _, row, c in expected] == [
        (int(np.flatnonzero((boxes == box).all(1))[0]), c) for box, c in zip(found[0], found[2].tolist(), strict=True)
    ]


def test_bundle_from_before_there_was_a_bound_loads_and_detects_as_it_did(tmp_path: Path):
    model = save_tiny_detector(tmp_path / "source.onnx", *SIZE)
    made = write_bundle(
        tmp_path / "bundle",
        {"model.onnx": BundleFile(model, "onnx", "fp32")},
        class_names=["red", "green", "blue"],
        input={"height": SIZE[0], "width": SIZE[1]},
    )
    assert "nms" not in json.loads((tmp_path / "bundle" / "bundle.json").read_text())
    assert made.manifest.nms.max_candidates == on_host.PRE_NMS_TOP_K
    found = made.detections(*HEADS["classes"], letterbox_geometry(SIZE, SIZE), score_threshold=OPERATING)
    assert len(found) == PREDICTIONS * CLASSES
