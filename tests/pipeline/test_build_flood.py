"""A build whose files are timed under floods of candidates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prunedeploy.config import as_dict, config_hash, load_config, result_settings
from prunedeploy.data.coco import load_test_split
from prunedeploy.data.demo import CLASS_NAMES
from prunedeploy.data.loader import EvaluationLoader
from prunedeploy.pipeline.build import BuildOutcome
from prunedeploy_engines import load_bundle
from prunedeploy_engines.bench.flood import CASES
from prunedeploy_engines.errors import ConfigError
from prunedeploy_engines.runtimes.onnxruntime.runner import OnnxRuntimeRunner

BRIEFLY = (
    "latency.runtimes=onnxruntime",
    "latency.seconds=0.01",
    "latency.min_calls=4",
    "latency.warmup_seconds=0",
    "latency.warmup_calls=1",
)


@pytest.fixture(scope="module")
def flooded(tmp_path_factory: pytest.TempPathFactory, tiny_case: Any, finished: Any) -> tuple[Path, BuildOutcome]:
    out = tmp_path_factory.mktemp("flood") / "out"
    return out, tiny_case.build(finished[0], out, *BRIEFLY, "latency.flood=true", "attack.eps=0.1")


def test_every_case_is_timed_beside_the_clean_images(flooded: Any) -> None:
    out, outcome = flooded
    assert "flood" in outcome.computed
    stored = json.loads((out / "results.json").read_text())
    (row,) = stored["engines"]
    flood = row["flood"]
    assert flood["kind"] == "end_to_end"
    assert list(flood["flooded"]) == ["images", *CASES]
    for one in flood["flooded"].values():
        assert one["ratio"] == one["p99"] / flood["clean"]["p99"]
        assert one["n"] >= 4
        assert one["p99"] >= one["p50"] > 0
    assert flood["flooded"][flood["worst"]]["p99"] == max(one["p99"] for one in flood["flooded"].values())
    (delivered,) = load_bundle(out / "bundle").manifest.metrics["engines"]
    assert delivered["flood"] == flood
    page = (out / "report.html").read_text()
    for words in ("p99 clean", "p99 flooded", f"× by {flood['worst']}"):
        assert words in page


def test_candidates_are_those_of_the_images_and_the_heads_at_the_deployed_threshold(
    flooded: Any, tiny_data: Path
) -> None:
    out, outcome = flooded
    bundle = load_bundle(out / "bundle")
    (batch,) = EvaluationLoader(load_test_split(tiny_data, list(CLASS_NAMES)), (64, 64), 8)
    pixels = (batch.images.numpy() * 255).round().astype(np.float32) / 255
    with OnnxRuntimeRunner(out / "bundle" / "model.onnx", threads=1) as runner:
        scores = runner.infer(pixels)[1]
    counts = [sum(score > bundle.score_threshold("fp32") for score in image.ravel()) for image in scores]
    flood = outcome.results["engines"][0]["flood"]
    assert flood["clean"]["candidates"] == {"mean": sum(counts) / 8, "largest": max(counts)}
    boxes = 2 * 8 * 8 + 2 * 16 * 16  # two anchors in each cell of either head
    for case, of_classes in (("apart", 1), ("chain", 1), ("rising", 1), ("classes", 10), ("equal", 10)):
        expected = boxes * of_classes
        assert flood["flooded"][case]["candidates"] == {"mean": expected, "largest": expected}
    assert flood["flooded"]["images"]["candidates"]["mean"] > sum(counts) / 8


def test_nothing_else_changes_by_the_key(tiny_case: Any, flooded: Any) -> None:
    plain = load_config("smoke", tiny_case.arguments())
    off = load_config("smoke", tiny_case.arguments("latency.flood=false"))
    assert config_hash(plain) == config_hash(off)
    assert "flood" not in as_dict(plain)["latency"]
    # The stage that times tensors goes by the same settings with and without.
    asked = load_config("smoke", tiny_case.arguments("latency.flood=true"))
    assert result_settings(asked.latency) != result_settings(plain.latency)
    assert result_settings(asked.latency.model_copy(update={"flood": False})) == result_settings(plain.latency)


def test_a_second_build_times_nothing(flooded: Any, tiny_case: Any, finished: Any, tmp_path: Path) -> None:
    settings = (*BRIEFLY, "attack.eps=0.1")
    assert tiny_case.build(finished[0], tmp_path / "again", *settings, "latency.flood=true").computed == ()
    assert tiny_case.build(finished[0], tmp_path / "plain", *settings).computed == ()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (("latency.runtimes=torch",), r"latency\.flood: times files on ONNX Runtime and OpenVINO"),
        (("latency.runtimes=onnxruntime", "attack.eps=0"), r"attack\.eps: a ball of radius 0"),
        (("latency.flood=often",), r"latency\.flood"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_read(
    tiny_case: Any, tmp_path: Path, settings: Any, says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        tiny_case.build(tmp_path / "store", tmp_path / "out", "latency.flood=true", *settings, "data.path=nowhere")
    assert not (tmp_path / "out").exists()
