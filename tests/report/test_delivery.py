"""The report says what was left out, at which threshold a file is deployed, and which gate failed."""

from __future__ import annotations

from prunedeploy.report.page import report_html
from prunedeploy.report.tables import gates_table

LINE = "model.int8.onnx is left out: mAP parity: mAP is 0.2, the parent's 0.3; to let it through, raise <key>"
LEFT_OUT = {"file": "model.int8.onnx", "precision": "int8", "target": "cpu", "line": LINE}
POINT = {
    "model": "pruned", "file": "model.onnx", "score_threshold": 0.214, "precision": 0.8, "recall": 0.6, "f1": 0.686,
    "chosen": "best F1", "images": 128, "why_not": None, "graph_threshold": None,
}  # fmt: skip


def test_what_was_left_out_is_said_with_its_key() -> None:
    page = report_html({"left_out": [LEFT_OUT]}, [])
    assert "raise &lt;key&gt;" in page
    assert "Asked for and not delivered, see Engines: model.int8.onnx (cpu)." in page
    assert "Left out" not in report_html({"left_out": []}, [])


def test_operating_points_are_shown_with_what_became_of_the_rule() -> None:
    fell_back = {**POINT, "file": None, "score_threshold": 0.5, "precision": None, "why_not": "nothing was found"}
    at_graph = {**POINT, "file": "model.fp16.onnx", "graph_threshold": 0.214}
    page = report_html({"operating_points": [POINT, fell_back, at_graph]}, [])
    for text in ("0.214", "0.686", "best F1", "not chosen: nothing was found", "not lower, since suppression"):
        assert text in page
    assert "Operating points" not in report_html({}, [])


def test_verdicts_of_gates_with_a_share_and_of_failed_ones() -> None:
    share = {
        "gate": "detections", "model": "pruned", "artefact": "model.int8.onnx", "images": 8, "detections": 47,
        "min_iou": 0.89, "max_score_difference": 0.06, "allowed_iou": 0.5, "allowed_score_difference": 0.1,
        "matched_share": 0.98, "allowed_share": 0.9,
    }  # fmt: skip
    tensor = {
        "gate": "tensor", "model": "pruned", "boxes": 0.07, "scores": 0.53, "tolerance": 0.25, "images": 8,
        "within": 0.9998, "allowed_share": 0.9,
    }  # fmt: skip
    gain = {"gate": "map", "reference": 0.3, "candidate": 0.5, "deviation": 0.2, "tolerance": 0.01, "may_gain": True}
    passed = str(gates_table({"gates": [share, tensor, gain]}))
    assert passed.count("passed") == 3
    assert "98.0 % matched (at least 90 %)" in passed
    failed = {"gate": "map", "artefact": "model.int8.onnx", "deviation": -0.1, "tolerance": 0.01, "passed": False}
    assert "lost too much" in str(gates_table({"gates": [{**failed, "reason": "lost too much"}]}))
    assert str(gates_table({"gates": [{**failed, "reason": "lost too much"}]})).count("failed") == 1
    strict = {**tensor, "within": 0.9998, "allowed_share": None}
    assert "failed" in str(gates_table({"gates": [strict]}))
