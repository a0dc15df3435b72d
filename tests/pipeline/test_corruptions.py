"""A build that is measured under corruptions: what it leaves, and what it does not touch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prunedeploy.config import as_dict, config_hash, load_config
from prunedeploy.pipeline.build import BuildOutcome
from prunedeploy_engines.bundle import load_bundle
from prunedeploy_engines.errors import ConfigError

CORRUPTED = "robustness={corruptions: [fog, jpeg_compression], severities: 2-3}"


@pytest.fixture(scope="module")
def corrupted(tmp_path_factory: pytest.TempPathFactory, tiny_case: Any, finished: Any) -> tuple[Path, BuildOutcome]:
    store, _, _ = finished
    out = tmp_path_factory.mktemp("corrupted") / "out"
    return out, tiny_case.build(store, out, CORRUPTED)


def test_only_corruptions_are_computed_anew(corrupted: Any) -> None:
    _, outcome = corrupted
    assert set(outcome.computed) == {"corruptions"}


def test_every_network_and_file_has_its_means(corrupted: Any) -> None:
    out, outcome = corrupted
    stored = json.loads((out / "results.json").read_text())
    assert stored == outcome.results
    assert list(stored["corruptions"]) == ["original", "robust", "pruned"]
    for model in stored["models"]:
        document = stored["corruptions"][model["name"]]
        assert document["images"] == 8
        runners = document["runners"]
        assert list(runners) == (["torch", "onnxruntime"] if model["name"] == "pruned" else ["torch"])
        for one in runners.values():
            values = [one["map"][name][i] for name in ("fog", "jpeg_compression") for i in (0, 1)]
            assert one["mpc"] == pytest.approx(sum(values) / 4, abs=1e-15)
            assert one["severities"] == [2, 3]
        assert runners["torch"]["map_clean"] == model["map_clean"]
        assert (model["mpc"], model["rpc"]) == (runners["torch"]["mpc"], runners["torch"]["rpc"])
    engine = next(row for row in stored["engines"] if row["runtime"] == "onnxruntime")
    assert engine["mpc"] == stored["corruptions"]["pruned"]["runners"]["onnxruntime"]["mpc"]
    metrics = load_bundle(out / "bundle").manifest.metrics
    assert metrics["rpc"] == stored["models"][2]["rpc"]
    assert metrics["engines"][0]["mpc"] == engine["mpc"]


def test_the_report_says_it(corrupted: Any) -> None:
    page = (corrupted[0] / "report.html").read_text()
    for words in ("Under bad weather", "mAP by corruption, over severity", "jpeg_compression", "pruned, model.onnx"):
        assert words in page


def test_of_fewer_images_no_means_stand_beside_other_figures(finished: Any, tiny_case: Any, tmp_path: Path) -> None:
    results = tiny_case.build(finished[0], tmp_path / "out", f"{CORRUPTED[:-1]}, images: 5}}").results
    assert results["corruptions"]["pruned"]["images"] == 5
    assert not any("mpc" in row for row in (*results["models"], *results["engines"]))


def test_nothing_else_changes_by_the_keys(finished: Any, tiny_case: Any) -> None:
    plain = load_config("smoke", tiny_case.arguments())
    none = load_config("smoke", tiny_case.arguments("robustness.corruptions=none"))
    assert config_hash(plain) == config_hash(none)
    assert "robustness" not in as_dict(none)
    attacked = load_config("smoke", tiny_case.arguments("robustness.attacks=noise"))
    both = load_config("smoke", tiny_case.arguments("robustness={attacks: noise, corruptions: all}"))
    assert as_dict(both.robustness.of_attacks) == as_dict(attacked.robustness)
    assert not load_config("smoke", ["robustness.corruptions=all"]).robustness.is_wanted
    assert finished[2].results["corruptions"] == {}
    assert "mpc" not in finished[2].results["models"][0]


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("robustness.corruptions=fogg", "no corruption 'fogg'; the nearest is fog"),
        ("robustness={corruptions: all, severities: 0-5}", r"robustness\.severities: '0-5' is no severity"),
        ("robustness={corruptions: all, severities: [1, 6]}", r"robustness\.severities: '6' is no severity"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_read(
    tiny_case: Any, tmp_path: Path, setting: str, says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        tiny_case.build(tmp_path / "store", tmp_path / "out", setting, "data.path=nowhere")
    assert not (tmp_path / "out").exists()
