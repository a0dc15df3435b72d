"""A build whose zeros leave filters with nothing to do: everything after fine-tuning sees the smaller network."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from prunedeploy.models import load_darknet
from prunedeploy.pipeline.build import BuildOutcome
from prunedeploy.pipeline.stages import dead_channels as dead_channel_stage
from prunedeploy_engines import load_bundle
from prunedeploy_engines.bench.models import find_subjects
from prunedeploy_engines.bench.rows import Choice, plan_rows
from prunedeploy_engines.errors import GateError

SETS = ("method=unstructured", "ratio=0.98", "scores.name=magnitude", "score_optimization.steps=0", "finetune.steps=1")
Network = torch.nn.Module


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, tiny_case: Any) -> tuple[Path, BuildOutcome]:
    folder = tmp_path_factory.mktemp("dead")
    return folder / "store", tiny_case.build(folder / "store", folder / "out", *SETS)


def finetuned(store: Path, outcome: BuildOutcome) -> Path:
    return store / "results" / f"finetune-{outcome.results['stages']['finetune']['digest']}"


def widths(path: Path) -> list[int]:
    return [layer.out_channels for layer in load_darknet(path).cfg.convolutions]


def test_results_say_what_was_removed(built: tuple[Path, BuildOutcome]) -> None:
    store, outcome = built
    record = outcome.results["dead_channels"]
    before, after = widths(finetuned(store, outcome) / "model.cfg"), widths(outcome.out / "model.cfg")
    assert record["filters_removed"] == sum(before) - sum(after) > 0
    assert [row["filters_before"] for row in record["layers"]] == before
    assert [row["filters_after"] for row in record["layers"]] == after
    rows = {row["name"]: row for row in outcome.results["models"]}
    assert (record["macs_before"], record["macs_after"]) == (rows["robust"]["macs"], rows["pruned"]["macs"])
    assert (record["params_before"], record["params_after"]) == (rows["robust"]["params"], rows["pruned"]["params"])
    # ONNX Runtime's blocked layout wants fours; the heads have 30.
    assert all(width % 4 == 0 for width in after if width != 30)
    assert record["multiple"] == 4
    assert record["deviation"] <= 1e-5
    assert "filters had become useless" in (outcome.out / "report.html").read_text()
    assert outcome.results["score_report"]["name"] == "magnitude"


def test_deployed_network_is_the_smaller_one_and_computes_the_same(built: tuple[Path, BuildOutcome]) -> None:
    store, outcome = built
    fine = finetuned(store, outcome)
    masked = load_darknet(fine / "model.cfg", fine / "model.weights")
    small = load_darknet(outcome.out / "model.cfg", outcome.out / "model.weights")
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        for a, b in zip(masked(images), small(images), strict=True):
            assert float((a - b).abs().max()) <= 1e-5 * float(a.abs().max())
    weights = onnx.load(outcome.out / "bundle" / "model.onnx").graph.initializer
    shapes = [tuple(one.dims) for one in weights if len(one.dims) == 4]
    assert sorted(shapes) == sorted(tuple(small.conv(layer.index).weight.shape) for layer in small.cfg.convolutions)
    with load_bundle(outcome.out / "bundle").runner(runtime="onnxruntime") as runner:
        boxes, _ = runner.infer(images.numpy())
    assert np.isfinite(boxes).all()


def test_bench_says_that_filters_are_gone(built: tuple[Path, BuildOutcome]) -> None:
    store, outcome = built
    before, after = (sum(widths(folder / "model.cfg")) for folder in (finetuned(store, outcome), outcome.out))
    for path in (outcome.out, outcome.out / "bundle"):
        (row,) = plan_rows(find_subjects([path]), Choice()).rows.values()
        assert row["notes"][0].endswith(f"; {before - after} of {before} filters are gone")


def test_a_finished_build_is_recognised(built: tuple[Path, BuildOutcome], tiny_case: Any) -> None:
    store, outcome = built
    stamp = (outcome.out / "results.json").stat().st_mtime_ns
    again = tiny_case.build(store, outcome.out, *SETS)
    assert again.computed == ()
    assert (outcome.out / "results.json").stat().st_mtime_ns == stamp
    assert again.results == outcome.results


def test_it_can_be_left_out(built: tuple[Path, BuildOutcome], tiny_case: Any, tmp_path: Path) -> None:
    store, outcome = built
    other = tiny_case.build(store, tmp_path / "out", *SETS, "remove_dead_channels=false")
    assert other.results["dead_channels"] is None
    assert "remove-dead-channels" not in other.results["stages"]
    fine = finetuned(store, outcome)
    assert (other.out / "model.weights").read_bytes() == (fine / "model.weights").read_bytes()
    assert "Dead channels" not in (other.out / "report.html").read_text()


def test_nothing_dead_is_the_same_network(built: tuple[Path, BuildOutcome], tiny_case: Any, tmp_path: Path) -> None:
    store, _ = built
    other = tiny_case.build(store, tmp_path / "out", *SETS, "ratio=0.1")
    assert other.results["dead_channels"]["filters_removed"] == 0
    fine = finetuned(store, other)
    for name in ("model.cfg", "model.weights"):
        assert (other.out / name).read_bytes() == (fine / name).read_bytes()


@pytest.mark.parametrize("method", ["structured", "nm"])
def test_other_methods_leave_nothing_to_remove(
    built: tuple[Path, BuildOutcome], tiny_case: Any, tmp_path: Path, method: str
) -> None:
    outcome = tiny_case.build(built[0], tmp_path / "out", *SETS, f"method={method}", "ratio=0.5")
    assert outcome.results["dead_channels"] is None
    assert "remove-dead-channels" not in outcome.results["stages"]


def test_a_network_that_deviates_is_refused(
    tiny_case: Any, built: tuple[Path, BuildOutcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    copied: Callable[[Path], Path],
) -> None:  # fmt: skip
    def wrong(model: Network, multiple: int) -> object:
        small, record = remove(model, multiple)
        return small, type(record)(**{**vars(record), "deviation": float("nan")})

    remove = dead_channel_stage.remove_dead_channels
    monkeypatch.setattr(dead_channel_stage, "remove_dead_channels", wrong)
    with pytest.raises(GateError, match=r"deviates .* by nan; build with --set remove_dead_channels=false"):
        tiny_case.build(copied(built[0]), tmp_path / "out", *SETS, "ratio=0.97")


def test_record_in_the_store_is_what_results_say(built: tuple[Path, BuildOutcome]) -> None:
    store, outcome = built
    digest = outcome.results["stages"]["remove-dead-channels"]["digest"]
    stored = json.loads((store / "results" / f"remove-dead-channels-{digest}" / "dead_channels.json").read_text())
    assert stored == outcome.results["dead_channels"]
