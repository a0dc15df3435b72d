"""The made-up heads are what their names say."""

from __future__ import annotations

import numpy as np
import pytest

from prunedeploy_engines.bench.calls import open_model
from prunedeploy_engines.bench.flood import CASES, flooded_heads
from prunedeploy_engines.bench.spec import complete_spec
from prunedeploy_engines.bundle import BundleFile, load_bundle, write_bundle
from prunedeploy_engines.detection.nms import detections_from
from prunedeploy_engines.errors import ConfigError
from tiny_detector import CLASS_NAMES, save_tiny_detector

SIZE = (96, 160)


def kept(case: str, predictions: int, classes: int) -> int:
    heads = flooded_heads(case, predictions, classes, SIZE)
    return len(detections_from(*heads, score_threshold=0.9, iou_threshold=0.45, pre_nms_top_k=None)[1])


@pytest.mark.parametrize("predictions", [1, 37, 2535])
@pytest.mark.parametrize(
    ("case", "candidates", "left"),
    [
        ("apart", lambda m: m, lambda m: m),
        ("chain", lambda m: m, lambda m: (m + 1) // 2),  # every second one is suppressed by the one before it
        ("rising", lambda m: m, lambda m: m),
        ("classes", lambda m: 3 * m, lambda m: 3 * m),
        ("equal", lambda m: 3 * m, lambda m: 3 * m),
    ],
)
def test_every_case_puts_all_predictions_above_any_threshold(predictions, case, candidates, left):
    boxes, scores = flooded_heads(case, predictions, 3, SIZE)
    assert (boxes.shape, scores.shape) == ((predictions, 4), (predictions, 3))
    assert boxes.dtype == scores.dtype == np.float32
    assert np.count_nonzero(scores > 0.9) == candidates(predictions)
    assert boxes.min() >= 0
    assert (boxes[:, 2::2] <= SIZE[1]).all()
    assert (boxes[:, 3::2] <= SIZE[0] + 1e-3).all()
    if case != "chain" or predictions < 100:
        assert kept(case, predictions, 3) == left(predictions)


def test_all_cases_are_tested():
    assert set(CASES) == {"apart", "chain", "rising", "classes", "equal"}


def test_bench_suppresses_the_heads_of_the_case_behind_the_real_network(tmp_path, monkeypatch):
    model = save_tiny_detector(tmp_path / "source.onnx")
    bundle = write_bundle(
        tmp_path / "bundle",
        {"model.onnx": BundleFile(model, "onnx", "fp32")},
        class_names=CLASS_NAMES,
        input={"height": 32, "width": 48},
        nms={"max_candidates": 10},
    )
    spec = {"path": bundle.path, "kind": "end_to_end", "threads": 1}
    counts = {}
    for flood in (None, "apart", "classes"):
        opened = open_model(complete_spec("tiny", {**spec, "flood": flood}))
        if flood is not None:
            counts[flood] = [len(found) for found in opened.call_of(2)()]
    assert counts == {"apart": [10, 10], "classes": [10, 10]}
    assert load_bundle(bundle.path).manifest.nms.max_candidates == 10


def test_flood_of_a_kind_without_suppression_is_refused():
    with pytest.raises(ConfigError, match="floods suppression"):
        complete_spec("tiny", {"path": "model.onnx", "kind": "host", "flood": "apart"})
