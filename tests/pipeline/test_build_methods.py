"""Whole builds of every granularity and allocation: gates passed, zeros stay zero, the ratio is what is counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from prunedeploy.models import load_darknet
from prunedeploy.pipeline.build import BuildOutcome
from prunedeploy.pipeline.stages.score import load_scores
from prunedeploy_engines import load_bundle
from prunedeploy_engines.errors import ConfigError, PruningError

HEADS = (5, 11)
# The dead-channel stage would hide what fine-tuning did to the zeros; it has tests of its own.
KEEP_DEAD = "remove_dead_channels=false"
CASES = {
    "kernel": ("method=kernel",),
    "kernel-global": ("method=kernel", "allocation=global", "scores.normalise=mean"),
    "hybrid": ("method=hybrid",),
    "hybrid-latency": ("method=hybrid", "allocation=latency", "hybrid.filter_share=0.7"),
    "hybrid-erk": ("method=hybrid", "allocation=erk"),
    "weight-global": ("method=weight", "allocation=global", "scores.name=magnitude"),
    "weight-erk": ("method=weight", "allocation=erk", "score_optimization.enabled=false"),
    "filter-global": ("method=filter", "allocation=global", "scores.normalise=mean"),
    "filter-erk": ("method=filter", "allocation=erk"),
    "filter-latency": ("method=filter", "allocation=latency"),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("methods") / "store"


@pytest.fixture(scope="module", params=CASES)
def built(request: pytest.FixtureRequest, store: Path, tiny_case: Any) -> tuple[str, BuildOutcome]:
    sets = (*CASES[request.param], KEEP_DEAD)
    return request.param, tiny_case.build(store, store.parent / request.param, *sets)


def weights_in(folder: Path) -> dict[int, Tensor]:
    model = load_darknet(folder / "model.cfg", folder / "model.weights")
    return {layer.index: model.conv(layer.index).weight.detach() for layer in model.cfg.convolutions}


def stage_folder(store: Path, outcome: BuildOutcome, stage: str) -> Path:
    return store / "results" / f"{stage}-{outcome.results['stages'][stage]['digest']}"


def test_the_ratio_is_what_the_files_say_and_zeros_stay_zero_in_fine_tuning(
    store: Path, tiny_case: Any, built: tuple[str, BuildOutcome]
) -> None:
    name, outcome = built
    original, cut, tuned = load_darknet(tiny_case.cfg), stage_folder(store, outcome, "prune"), weights_in(outcome.out)
    total = sum(original.conv(x.index).weight.numel() for x in original.cfg.convolutions if x.index not in HEADS)
    living = sum(int((weight != 0).sum()) for index, weight in tuned.items() if index not in HEADS)
    assert outcome.results["ratio_achieved"] == pytest.approx(1 - living / total, abs=1e-12)
    assert abs(outcome.results["ratio_achieved"] - 0.75) <= 0.01
    moved = 0
    for index, weight in weights_in(cut).items():
        assert torch.equal(weight == 0, tuned[index] == 0), index
        moved += int(not torch.equal(weight, tuned[index]))
    assert moved == len(tuned), "fine-tuning reaches every layer"
    narrower = any(weight.shape != original.conv(index).weight.shape for index, weight in tuned.items())
    assert narrower == name.startswith(("filter", "hybrid"))
    has_zeros = any(bool((weight == 0).any()) for weight in tuned.values())
    assert has_zeros != name.startswith("filter")


def test_gates_are_passed_and_the_record_says_how_it_was_pruned(built: tuple[str, BuildOutcome]) -> None:
    name, outcome = built
    settings = dict(item.split("=") for item in CASES[name])
    record = outcome.results["pruning"]
    method = {"weight": "unstructured", "filter": "structured"}.get(settings["method"], settings["method"])
    assert (record["method"], outcome.results["method"]) == (method, method)
    assert record.get("allocation", "uniform") == settings.get("allocation", "uniform")
    assert {gate["gate"] for gate in outcome.results["gates"]} >= {"tensor", "detections", "map"}
    if method in ("structured", "hybrid"):
        assert 0 <= record["shrunk_deviation"] <= 1e-5
    if method == "hybrid":
        share = float(settings.get("hybrid.filter_share", 0.5))
        assert record["ratio_by_filters"] == pytest.approx(0.75 * share, abs=0.01)
        assert record["ratio_by_filters"] + record["ratio_by_weights"] == pytest.approx(record["ratio_achieved"])
    manifest = json.loads((outcome.out / "bundle" / "bundle.json").read_text())
    assert manifest["pruning"]["ratio_achieved"] == outcome.results["ratio_achieved"]
    load_bundle(outcome.out / "bundle")


def test_counts_come_from_the_starting_scores_and_optimised_scores_say_which(
    store: Path, built: tuple[str, BuildOutcome]
) -> None:
    name, outcome = built
    if "score_optimization.enabled=false" in CASES[name]:
        assert "optimise-scores" not in outcome.results["stages"]
        return
    allocation = json.loads((stage_folder(store, outcome, "optimise-scores") / "allocation.json").read_text())
    keep = load_file(stage_folder(store, outcome, "prune") / "keep.safetensors")
    scores = load_scores(stage_folder(store, outcome, "optimise-scores"))
    start = load_scores(stage_folder(store, outcome, "score"))
    assert any(not torch.equal(scores[index], start[index]) for index in scores)
    if name.startswith("weight"):
        # global, from the magnitudes: a plain ranking of all weights, whatever the optimised scores are by now.
        ranked = torch.cat([start[int(index)].abs().flatten() for index in keep]).sort(descending=True).values
        threshold = float(ranked[round(0.25 * len(ranked)) - 1])
        for index, mask in keep.items():
            assert int(mask.sum()) == allocation["pieces"][index] == int((start[int(index)].abs() >= threshold).sum())
            magnitude = scores[int(index)].abs()
            if not bool(mask.all()):
                assert float(magnitude[mask].min()) >= float(magnitude[~mask].max())
    if name.startswith("kernel"):
        for index, mask in keep.items():
            area = mask.shape[2] * mask.shape[3]
            assert int(mask.sum()) == area * allocation["pieces"][index]
            assert torch.equal(mask.flatten(2).any(2), mask.flatten(2).all(2))
    if name.startswith("hybrid"):
        shapes = {index: weight.shape for index, weight in weights_in(outcome.out).items()}
        for index, mask in keep.items():
            assert mask.shape == shapes[int(index)]
            assert int(mask.sum()) == allocation["pieces"][index]


def test_the_cut_has_the_normalisation_that_optimising_left(
    store: Path, tiny_case: Any, built: tuple[str, BuildOutcome]
) -> None:
    name, outcome = built
    robust = load_darknet(*(stage_folder(store, outcome, "pretrain") / f"model.{end}" for end in ("cfg", "weights")))
    cut = load_darknet(*(stage_folder(store, outcome, "prune") / f"model.{end}" for end in ("cfg", "weights")))
    keep = load_file(stage_folder(store, outcome, "prune") / "keep.safetensors")
    if "score_optimization.enabled=false" in CASES[name]:
        alive = robust.state_dict()
    else:
        alive = load_file(stage_folder(store, outcome, "optimise-scores") / "normalisation.safetensors")
    followed = 0
    for layer in cut.cfg.convolutions:
        filters = keep[str(layer.index)] if name.startswith("filter") else None
        for part in ("scale", "bias", "mean", "variance") if layer.batch_normalize else ():
            expected, before = alive[f"convs.{layer.index}.{part}"], getattr(robust.conv(layer.index), part)
            if not name.startswith("hybrid"):  # whose keep.safetensors says nothing of filters
                found = getattr(cut.conv(layer.index), part)
                assert torch.equal(found, expected if filters is None else expected[filters]), (layer.index, part)
            followed += not torch.equal(expected, before)
    assert (followed == 0) == ("score_optimization.enabled=false" in CASES[name])


def test_a_second_build_computes_nothing(store: Path, tiny_case: Any, built: tuple[str, BuildOutcome]) -> None:
    name, outcome = built
    assert tiny_case.build(store, outcome.out, *CASES[name], KEEP_DEAD).computed == ()


def test_settings_of_other_methods_are_not_in_a_cuts_key(store: Path, tiny_case: Any, tmp_path: Path) -> None:
    first = tiny_case.build(store, tmp_path / "a", "method=kernel", KEEP_DEAD)
    same = ("method=kernel", KEEP_DEAD, "channels.multiple=2", "hybrid.filter_share=0.9", "nm.n=1")
    assert tiny_case.build(store, tmp_path / "b", *same).computed == ()
    other = tiny_case.build(store, tmp_path / "c", "method=kernel", KEEP_DEAD, "allocation=erk")
    assert {"optimise-scores", "prune", "finetune"} <= set(other.computed)
    assert other.results["stages"]["prune"]["digest"] != first.results["stages"]["prune"]["digest"]
    hybrid = tiny_case.build(store, tmp_path / "d", "method=hybrid", KEEP_DEAD, "hybrid.filter_share=0.9")
    assert {"optimise-scores", "prune"} <= set(hybrid.computed)


def test_optimising_is_on_for_every_score_but_deeplift_and_can_be_asked_for(
    store: Path, tiny_case: Any, tmp_path: Path
) -> None:
    plain = ("scores.name=deeplift", "scores.images=2", "scores.batch_size=2", "method=kernel", KEEP_DEAD)
    assert "optimise-scores" not in tiny_case.build(store, tmp_path / "a", *plain).results["stages"]
    both = tiny_case.build(store, tmp_path / "b", *plain, "score_optimization.enabled=true")
    assert "optimise-scores" in both.results["stages"]
    # Two steps with HYDRA's learning rate: scores start on its scale, sqrt(6 / fan_in) at most, and stay near it.
    optimised = load_scores(stage_folder(store, both, "optimise-scores"))
    start = load_scores(stage_folder(store, both, "score"))
    for index in (1, 2, 4, 10):
        bound = (6 / start[index][0].numel()) ** 0.5
        assert 0.5 * bound <= float(optimised[index].abs().max()) <= 2 * bound
        assert not bool((optimised[index] == 0).any()), "no score is dead"


@pytest.mark.parametrize(
    ("sets", "error", "line"),
    [
        (
            ("method=nm", "allocation=global"),
            ConfigError,
            "allocation: global makes no sense with method nm: the pattern says what every layer keeps; use uniform",
        ),
        (
            ("method=weight", "allocation=latency"),
            ConfigError,
            "allocation: latency makes no sense with method unstructured: zeros save no measured time; "
            "use uniform or global or erk",
        ),
        (("method=kernel", "ratio=0.9999"), PruningError, "one kernel per layer"),
        (("method=hybrid", "ratio=0.9999"), PruningError, "cannot be reached"),
    ],
)
def test_what_cannot_be_cut_is_refused_before_anything_is_read(
    tiny_case: Any, tmp_path: Path, sets: tuple[str, ...], error: type[Exception], line: str
) -> None:
    with pytest.raises(error) as caught:
        tiny_case.build(tmp_path / "store", tmp_path / "out", *sets, "data.path=nowhere")
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)
