"""A build whose int8 file has weights of its own, trained with its roundings."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from prunedeploy.cli import cli
from prunedeploy.config import as_dict, config_hash, load_config
from prunedeploy.models import load_darknet
from prunedeploy.pipeline.build import BuildOutcome
from prunedeploy.pipeline.ratio.trials import without_training
from prunedeploy_engines import load_bundle
from prunedeploy_engines.runtimes.onnx_file import read_onnx_header

# Random weights have hardly any mAP to lose: no tolerance decides here.
FILES = (
    "export.precisions=fp32,int8",
    "export.int8.calibration_images=4",
    "export.int8.match_share=0",
    "export.int8.parity_tolerance=10",
    "export.int8.map_tolerance=1",
)
QAT = (*FILES, "export.int8.qat.steps=4")
# Single zeros, which have to stay zeros.
UNSTRUCTURED = ("method=unstructured", "remove_dead_channels=false", "export.int8.qat.lr=0.01")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_case: Any) -> tuple[Path, Path, BuildOutcome]:
    """Store, output folder and outcome of a build whose int8 file is also attacked itself."""
    folder = tmp_path_factory.mktemp("qat")
    sets = (*QAT, *UNSTRUCTURED, "robustness={adaptive: true, budget: quick, images: 4}")
    return folder / "store", folder / "out", tiny_case.build(folder / "store", folder / "out", *sets)


def network_of(store: Path, stage: str) -> Any:
    (folder,) = (store / "results").glob(f"{stage}-*")
    return load_darknet(folder / "model.cfg", folder / "model.weights")


def rows_of(outcome: BuildOutcome) -> dict[str, dict[str, Any]]:
    return {row["precision"]: row for row in outcome.results["engines"] if row["runtime"] == "onnxruntime"}


def test_int8_file_says_that_its_weights_are_its_own(trained: Any) -> None:
    _, out, outcome = trained
    rows = rows_of(outcome)
    assert rows["int8"]["quantisation"]["trained_steps"] == 4
    assert "its weights are its own, trained for 4 steps" in rows["int8"]["note"]
    assert rows["fp32"]["quantisation"] is None
    report = (out / "report.html").read_text()
    for words in ("its own weights, trained for 4 steps", "against its own weights in fp32", "values a step apart"):
        assert words in report
    header = read_onnx_header(load_bundle(out / "bundle").model_path("int8", "cpu"))
    assert header.quantisation is not None
    assert header.quantisation["trained_steps"] == 4
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    rates = [row["lr"] for row in log if row["stage"] == "qat"]
    np.testing.assert_allclose(rates, 0.005 * (1 + np.cos(np.pi * np.arange(4) / 4)), rtol=1e-6)


def test_trained_weights_are_in_the_int8_file_alone(trained: Any) -> None:
    store, out, outcome = trained
    fine_tuned, own = network_of(store, "finetune"), network_of(store, "qat")
    assert (out / "model.weights").read_bytes() == next(store.glob("results/finetune-*/model.weights")).read_bytes()
    assert [stage for stage in outcome.computed if stage in {"calibration", "qat"}] == ["calibration", "qat"]
    for layer in own.cfg.convolutions:
        before, after = fine_tuned.conv(layer.index), own.conv(layer.index)
        assert not before.weight.equal(after.weight)
        assert before.weight.eq(0).equal(after.weight.eq(0)), "what was cut stays cut, and nothing else becomes zero"
        if layer.batch_normalize:
            assert before.mean.equal(after.mean)
            assert before.variance.equal(after.variance)
    assert any(fine_tuned.conv(layer.index).weight.eq(0).any() for layer in own.cfg.convolutions)


def test_it_passes_the_gates_against_its_own_weights_and_its_twins_gate(trained: Any) -> None:
    _, _, outcome = trained
    assert outcome.results["left_out"] == []
    gates = [gate for gate in outcome.results["gates"] if gate.get("artefact") == "model.int8.onnx"]
    assert [(gate["gate"], gate.get("parent")) for gate in gates] == [
        ("tensor", "qat"), ("detections", "qat"), ("twin", None), ("map", None),
    ]  # fmt: skip
    assert gates[2]["values"] > 10_000
    assert gates[2]["heads"] <= gates[2]["tolerance"]
    assert gates[2]["a_step_apart"] <= 1e-3 * gates[2]["values"]
    # `evaluate --adaptive` believes its twin, too.
    assert "map_pgd_adaptive" in rows_of(outcome)["int8"]["adaptive"]


def test_no_steps_change_no_key(tiny_case: Any) -> None:
    plain = load_config("smoke", tiny_case.arguments(*FILES))
    off = load_config("smoke", tiny_case.arguments(*FILES, "export.int8.qat={steps: 0, lr: 0.5}"))
    assert config_hash(plain) == config_hash(off)
    assert "qat" not in as_dict(plain)["export"]["int8"]
    on = load_config("smoke", tiny_case.arguments(*FILES), {"qat": 7})
    assert as_dict(on)["export"]["int8"]["qat"] == {"steps": 7, "lr": None}


def test_no_trial_of_a_search_trains_for_int8(tiny_case: Any) -> None:
    config = load_config("smoke", tiny_case.arguments(*QAT))
    assert without_training(config).export.int8.qat.steps == 0


def test_without_a_right_twin_nothing_is_trained_and_int8_alone_is_left_out(
    tiny_case: Any, finished: Any, copied: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gate that nothing can pass; the build goes on without the file."""
    monkeypatch.setattr("prunedeploy_export.gates.twin.TENSOR_TOLERANCE", -1.0)
    outcome = tiny_case.build(copied(finished[0]), tmp_path / "out", *QAT)
    assert "calibration" in outcome.computed
    assert "qat" not in outcome.computed
    (left_out,) = outcome.results["left_out"]
    assert left_out["file"] == "model.int8.onnx"
    assert "its twin in PyTorch computes" in left_out["line"]
    assert list(load_bundle(outcome.out / "bundle").manifest.files) == ["model.onnx"]


def test_a_killed_training_ends_in_the_same_file(
    processes: Any, tiny_case: Any, finished: Any, copied: Any, tmp_path: Path
) -> None:
    sets = tiny_case.arguments(*FILES, "export.int8.map_budget=null", "export.int8.qat.steps=12")
    whole, killed = copied(finished[0]), tmp_path / "killed-store"
    expected = processes.run(whole, tmp_path / "whole", sets)
    assert {"calibration", "qat", "precision"} <= set(expected["computed"])
    pid, _ = processes.start(killed, tmp_path / "killed", sets, wait=True)
    while not list(killed.glob("checkpoints/qat-*/checkpoint.safetensors")):
        assert Path(f"/proc/{pid}").exists()
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    processes.exit_code()
    assert not list(killed.glob("results/qat-*")), "it was killed within the training"
    resumed = processes.run(killed, tmp_path / "killed", sets)
    assert "qat" in resumed["computed"]
    assert "finetune" not in resumed["computed"]
    for name in ("bundle/model.int8.onnx", "log.jsonl", "model.weights"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert list((killed / "checkpoints").iterdir()) == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--qat", "5"], "--qat: export: int8.qat.steps trains the weights of the int8 file, and precisions has none"),
        (["--qat", "-1", "--precision", "int8"], "--qat: export.int8.qat.steps should be greater than or equal to 0"),
        (["--set", "export.int8.qat.lr=0"], "export.int8.qat.lr should be greater than 0"),
        (["--qat", "5", "--precision", "int8", "--cfg", "{bundle}"], "--cfg: is a bundle, which holds"),
        (["--qat", "5", "--precision", "int8", "--weights", "{bundle}"], "--weights: is a bundle, which"),
        (["--qat", "5", "--precision", "int8", "--cfg", "{bundle}/model.int8.onnx"], "in 8 bits; export it in fp32"),
    ],
)
def test_bad_input(trained: Any, tiny_case: Any, tmp_path: Path, options: list[str], says: str) -> None:
    options = [one.format(bundle=trained[1] / "bundle") for one in options]
    places = ["--store", str(tmp_path / "store"), "--out", str(tmp_path / "out"), "--data", str(tiny_case.data)]
    result = CliRunner().invoke(cli, ["build", "--config", "smoke", *places, *options])
    assert result.exit_code == 2, result.output
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("prunedeploy: error: ")
    assert says in line
