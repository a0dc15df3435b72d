"""What a tiny build's folder and bundle hold, against the build's own records and files."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from prunedeploy.models import read_cfg
from prunedeploy.pipeline.inspection.document import inspect
from prunedeploy_engines.errors import BundleError, ConfigError

Finished = tuple[Path, Path, Any]


def test_a_build_shows_its_networks_its_files_and_what_they_passed(finished: Finished) -> None:
    out = finished[1]
    document = inspect(out)
    assert (document["kind"], document["cfg"]) == ("build", out / "model.cfg")
    cfg = read_cfg(out / "model.cfg")
    filters = {layer.index: layer.out_channels for layer in cfg.convolutions}
    weights = {layer.index: math.prod(layer.weight_shape) for layer in cfg.convolutions}
    assert {row["layer"]: row["filters_after"] for row in document["widths"]} == filters
    assert {row["layer"]: row["weights_after"] for row in document["widths"]} == weights
    networks = {row["name"]: row for row in document["networks"]}
    assert list(networks) == ["original", "robust", "pruned"]
    assert networks["pruned"]["weights"] == sum(weights.values())
    assert networks["robust"]["weights"] == sum(row["weights_before"] for row in document["widths"])
    (file,) = document["files"]
    assert file["bytes"] == (out / "bundle" / "model.onnx").stat().st_size
    assert (file["name"], file["precision"], file["opset"], file["nms"]) == ("model.onnx", "fp32", 17, None)
    assert {gate["gate"] for gate in file["gates"]} >= {"tensor", "detections", "map"}
    assert all(gate["passed"] for gate in file["gates"])
    assert len(document["classes"]) == cfg.classes
    assert 0 < document["operating_points"]["fp32"]["score_threshold"] < 1
    assert "curve" not in document["operating_points"]["fp32"]


def test_a_bundle_knows_its_build_only_where_it_lies_in_one(finished: Finished, tmp_path: Path) -> None:
    there = inspect(finished[1] / "bundle")
    assert there["kind"] == "bundle"
    assert there["files"][0]["gates"]
    alone = inspect(Path(shutil.copytree(finished[1] / "bundle", tmp_path / "taken")))
    assert alone["files"][0]["gates"] is None
    assert [row["name"] for row in alone["networks"]] == ["pruned"]
    assert alone["networks"][0]["macs"] == there["networks"][-1]["macs"]
    assert alone["widths"] == there["widths"]


def test_an_altered_file_is_not_described(finished: Finished, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(finished[1] / "bundle", tmp_path / "altered"))
    (bundle / "model.onnx").write_bytes((bundle / "model.onnx").read_bytes()[:-1] + b"x")
    with pytest.raises(BundleError, match="was changed"):
        inspect(bundle)


def test_a_gate_that_failed_is_said_to_have_failed(finished: Finished, tmp_path: Path) -> None:
    """A file may be in the bundle and fail on one of several runtimes."""
    out = Path(shutil.copytree(finished[1], tmp_path / "out"))
    results = json.loads((out / "results.json").read_bytes())
    failed = {"model": "pruned", "gate": "map", "artefact": "model.onnx", "passed": False, "reason": "0.1 lost"}
    (out / "results.json").write_text(json.dumps({**results, "gates": [*results["gates"], failed]}))
    assert [gate["passed"] for gate in inspect(out)["files"][0]["gates"]].count(False) == 1


def test_an_onnx_file_of_ours_says_what_it_is(finished: Finished) -> None:
    path = finished[1] / "bundle" / "model.onnx"
    document = inspect(path)
    assert (document["kind"], document["bytes"]) == ("onnx", path.stat().st_size)
    assert document["macs"] == read_cfg(finished[1] / "model.cfg").macs
    assert document["classes"] == inspect(finished[1])["classes"]


@pytest.mark.parametrize("name", ["model.weights", "results.json", "detections", "nothing"])
def test_what_is_neither_is_refused(finished: Finished, name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        inspect(finished[1] / name)
    assert name in str(caught.value)
