"""A whole build with an n:m pattern: every block is counted again in what lies in the output folder."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from prunedeploy.models import load_darknet
from prunedeploy.pipeline.build import BuildOutcome
from prunedeploy.pipeline.stages import train as model_stages
from prunedeploy.pipeline.stages.score import load_scores
from prunedeploy_engines import load_bundle
from prunedeploy_engines.errors import ConfigError, GateError, PruningError
from prunedeploy_engines.runtimes.tensorrt.library import installed_version

# Of the tiny network: the first convolution reads 3 channels, two give the heads; 32, 96, 64 ... are whole blocks.
DENSE = {0, 5, 11}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, tiny_case: Any) -> tuple[Path, BuildOutcome]:
    folder = tmp_path_factory.mktemp("nm")
    sets = ("method=nm", "targets=cpu,sm86")
    return folder / "store", tiny_case.build(folder / "store", folder / "out", *sets)


def weights_in(folder: Path) -> dict[int, Tensor]:
    model = load_darknet(folder / "model.cfg", folder / "model.weights")
    return {layer.index: model.conv(layer.index).weight.detach() for layer in model.cfg.convolutions}


def stage_folder(store: Path, results: dict[str, Any], stage: str) -> Path:
    return store / "results" / f"{stage}-{results['stages'][stage]['digest']}"


def test_half_of_every_block_is_gone_and_the_ratio_is_what_is_counted(built: tuple[Path, BuildOutcome]) -> None:
    _, outcome = built
    results, weights = outcome.results, weights_in(outcome.out)
    removed = total = 0
    for index, weight in weights.items():
        if index in DENSE:
            assert bool((weight != 0).all())
        else:
            living = [(weight[:, start : start + 4] != 0).sum(dim=1) for start in range(0, weight.shape[1], 4)]
            assert all(bool((count <= 2).all()) for count in living)
            removed += int((weight == 0).sum())
        if index not in (5, 11):
            total += weight.numel()
    assert results["ratio_achieved"] == pytest.approx(removed / total, abs=1e-12)
    assert (results["method"], results["ratio_requested"]) == ("nm", 0.5)
    assert abs(results["ratio_achieved"] - 0.5) <= 0.01
    row = next(row for row in results["models"] if row["name"] == "pruned")
    assert row["zero_weights"] == removed


def test_the_highest_optimised_scores_decide_and_fine_tuning_moves_only_what_is_left(
    built: tuple[Path, BuildOutcome],
) -> None:
    store, outcome = built
    scores = load_scores(stage_folder(store, outcome.results, "optimise-scores"))
    start = load_scores(stage_folder(store, outcome.results, "score"))
    cut, tuned = weights_in(stage_folder(store, outcome.results, "prune")), weights_in(outcome.out)
    for index in cut.keys() - DENSE:
        assert not torch.equal(scores[index], start[index]), "score optimisation reaches every patterned layer"
        for first in range(0, cut[index].shape[1], 4):
            block = scores[index][:, first : first + 4].abs()
            kept = cut[index][:, first : first + 4] != 0
            weakest = block.masked_fill(~kept, torch.inf).amin(dim=1)
            assert bool((weakest >= block.masked_fill(kept, 0.0).amax(dim=1)).all())
        assert torch.equal(cut[index] == 0, tuned[index] == 0)
        assert not torch.equal(cut[index], tuned[index])


def test_record_gates_and_bundle_name_the_pattern(built: tuple[Path, BuildOutcome]) -> None:
    _, outcome = built
    record = outcome.results["pruning"]
    assert (record["pattern"], record["sparse_weights"]) == ("2:4", True)
    assert {row["layer"] for row in record["dense_layers"]} == DENSE
    assert record["dense_layers"][0]["reason"] == "reads 3 input channels, not a multiple of 4"
    gate = next(gate for gate in outcome.results["gates"] if gate["gate"] == "pattern")
    blocks = sum(weight.numel() // 4 for index, weight in weights_in(outcome.out).items() if index not in DENSE)
    assert (gate["model"], gate["artefact"], gate["pattern"]) == ("pruned", "model.onnx", "2:4")
    assert (gate["blocks"], gate["broken"], gate["convolutions"], gate["dense_convolutions"]) == (blocks, 0, 4, 3)
    manifest = json.loads((outcome.out / "bundle" / "bundle.json").read_text())
    assert manifest["pruning"]["pattern"] == "2:4"
    assert manifest["pruning"]["ratio_achieved"] == outcome.results["ratio_achieved"]
    load_bundle(outcome.out / "bundle")


def test_report_promises_no_speed(built: tuple[Path, BuildOutcome]) -> None:
    page = (built[1].out / "report.html").read_text()
    assert "2:4 pruning removed" in page
    assert "0 of 8,832 blocks have more" in page
    assert "they save no work" in page
    assert "Whether it has chosen any, and whether that is faster, is only known on the device" in page


@pytest.mark.skipif(installed_version("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
def test_tensorrt_is_asked_for_sparse_kernels(built: tuple[Path, BuildOutcome]) -> None:
    plans = list((built[1].out / "bundle" / "engines" / "sm86").glob("*.plan.json"))
    assert len(plans) == 1
    assert json.loads(plans[0].read_text())["flags"]["sparse"] is True


def test_a_second_build_computes_nothing_and_another_pattern_only_what_depends_on_it(
    built: tuple[Path, BuildOutcome], tiny_case: Any, tmp_path: Path
) -> None:
    store, first = built
    assert tiny_case.build(store, first.out, "method=nm", "targets=cpu,sm86").computed == ()
    other = tiny_case.build(store, tmp_path / "out", "method=nm", "nm={n: 3, m: 8}")
    assert {"optimise-scores", "prune", "finetune", "pattern"} <= set(other.computed)
    assert not {"original", "pretrain", "score"} & set(other.computed)
    assert other.results["ratio_requested"] == 0.625
    assert other.results["pruning"]["sparse_weights"] is False
    assert "sparse kernels for 2:4 only, so for 3:8" in (tmp_path / "out" / "report.html").read_text()
    for index, weight in weights_in(tmp_path / "out").items():
        if index not in DENSE:
            blocks = weight.unflatten(1, (-1, 8))
            assert int((blocks != 0).sum(dim=2).max()) == 3


def test_a_removed_weight_that_comes_back_in_fine_tuning_ends_the_build(
    built: tuple[Path, BuildOutcome], tiny_case: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_stages, "kept_weights_only", lambda model, kept: nullcontext())
    with pytest.raises(GateError, match=r"layer 1 after fine-tuning: \d+ of 1152 blocks of 4 weights"):
        tiny_case.build(built[0], tmp_path / "out", "method=nm", "finetune.steps=1")
    assert not (tmp_path / "out" / "results.json").exists()


def test_a_ratio_that_the_pattern_does_not_give_is_refused_before_anything_is_read(
    tiny_case: Any, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        tiny_case.build(tmp_path / "store", tmp_path / "out", "method=nm", "ratio=0.75", "data.path=nowhere")
    line = "ratio: 2:4 removes 0.4940 of this network's prunable weights, not 0.75; give --ratio 0.5"
    assert str(caught.value) == line
    with pytest.raises(PruningError, match="no prunable convolution reads a multiple of 128 input channels"):
        tiny_case.build(tmp_path / "store", tmp_path / "out", "method=nm", "nm.m=128")
