"""Searches for a ratio with real networks: what they choose is what builds of single ratios have."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from effort import slow_after
from prunedeploy.config import load_config
from prunedeploy.config.ratio_target import RatioTarget, parse_size
from prunedeploy.pipeline.build import BuildOutcome, build
from prunedeploy.pipeline.output_folder import open_output_folder
from prunedeploy.pipeline.progress import Progress
from prunedeploy_engines import load_bundle
from prunedeploy_engines.errors import ConfigError, DataError, PruningError, StoreError

REPOSITORY = Path(__file__).parents[3]
TRAININGS = {"pretrain", "optimise-scores", "finetune"}

# The demo network on a few scenes, hardly trained: unstructured pruning of a little leaves it an mAP.
DEMO = (
    "method=unstructured",
    "pretrain.steps=1",
    "pretrain.batch_size=2",
    "score_optimization.steps=1",
    "score_optimization.batch_size=2",
    "finetune.steps=1",
    "finetune.batch_size=2",
    "latency.runtimes=tensorrt",
    "evaluation.bootstrap=0",
    "report.grid_images=1",
)


def demo_build(store: Path, data: Path, out: Path, *sets: str, target: RatioTarget | None = None) -> BuildOutcome:
    config = load_config("smoke", [f"data.path={data}", *DEMO, *sets])
    return build(config, store=store, out=out, progress=Progress(quiet=True), target=target)


def row_of(results: dict[str, Any], name: str) -> dict[str, Any]:
    return next(row for row in results["models"] if row["name"] == name)


def tried(results: dict[str, Any]) -> dict[float, dict[str, Any]]:
    return {trial["ratio"]: trial for trial in results["search"]["tried"]}


# mAP


@pytest.fixture(scope="session")
def map_search(demo_store: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> BuildOutcome:
    out = tmp_path_factory.mktemp("searches") / "map"
    return demo_build(demo_store, tiny_data, out, target=RatioTarget("map_clean", 0.3))


def test_map_search_chooses_the_last_ratio_before_the_map_falls_below(map_search: BuildOutcome) -> None:
    results = json.loads((map_search.out / "results.json").read_text())
    assert results == map_search.results
    trials, chosen = tried(results), results["search"]["chosen"]
    assert 0 < chosen < 0.99, "the borders prove nothing"
    assert results["ratio_requested"] == results["configuration"]["ratio"] == chosen
    assert trials[chosen]["meets"]
    assert trials[chosen]["value"] >= 0.3
    above = trials[round(chosen + 0.01, 2)]
    assert not above["meets"]
    assert above["value"] < 0.3
    assert all(trial["meets"] == (trial["value"] >= 0.3) for trial in trials.values())
    # What was measured in the search is what the build says of its rows.
    assert row_of(results, "robust")["map_clean"] == trials[0.0]["value"]
    assert row_of(results, "pruned")["map_clean"] == trials[chosen]["value"]
    assert results["search"]["final"] == {"value": trials[chosen]["value"], "meets": True}


def test_build_of_a_ratio_that_was_tried_finds_its_trainings_stored(
    map_search: BuildOutcome, demo_store: Path, tiny_data: Path, tmp_path: Path
) -> None:
    trials = tried(map_search.results)
    ratio = next(ratio for ratio in trials if ratio not in {0.0, map_search.results["search"]["chosen"]})
    plain = demo_build(demo_store, tiny_data, tmp_path / "out", f"ratio={ratio}")
    assert not (TRAININGS | {"score", "prune", "export", "evaluate"}) & set(plain.computed)
    assert row_of(plain.results, "pruned")["map_clean"] == trials[ratio]["value"]
    assert "search" not in plain.results


@pytest.mark.slow
def test_robust_map_is_searched_by_the_same_trials(
    map_search: BuildOutcome, demo_store: Path, tiny_data: Path, tmp_path: Path
) -> None:
    """The other mAP of the same networks: its own values, and no training of a ratio that was tried before."""
    known = tried(map_search.results)
    robust = row_of(map_search.results, "robust")["map_pgd"]
    pruned = row_of(map_search.results, "pruned")["map_pgd"]
    assert pruned < robust
    outcome = demo_build(
        demo_store, tiny_data, tmp_path / "out", target=RatioTarget("map_pgd", (robust + max(pruned, 1e-3)) / 2)
    )
    trials = tried(outcome.results)
    assert trials[0.0]["value"] == robust
    assert outcome.computed.count("finetune") == len(trials.keys() - known.keys())
    assert row_of(outcome.results, "pruned")["map_pgd"] == trials[outcome.results["search"]["chosen"]]["value"]


def test_second_search_computes_nothing_and_chooses_the_same(
    map_search: BuildOutcome, demo_store: Path, tiny_data: Path, tmp_path: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in map_search.out.rglob("*") if path.is_file()}
    again = demo_build(demo_store, tiny_data, map_search.out, target=RatioTarget("map_clean", 0.3))
    assert again.computed == ()
    assert again.results == map_search.results
    assert {path: path.stat().st_mtime_ns for path in map_search.out.rglob("*") if path.is_file()} == before


def test_map_that_the_network_never_had(
    map_search: BuildOutcome, demo_store: Path, tiny_data: Path, tmp_path: Path
) -> None:
    robust = row_of(map_search.results, "robust")["map_clean"]
    with pytest.raises(PruningError) as caught:
        demo_build(demo_store, tiny_data, tmp_path / "out", target=RatioTarget("map_clean", robust + 0.01))
    assert f"before it is pruned the network has {robust:.4f}" in str(caught.value)
    assert list((tmp_path / "out").iterdir()) == []


def test_map_without_boxes_to_find(tiny_case: Any, copied: Any, tmp_path: Path) -> None:
    data = copied(tiny_case.data)
    document = json.loads((data / "test.json").read_text())
    (data / "test.json").write_text(json.dumps({**document, "annotations": []}))
    with pytest.raises(DataError, match="have no boxes"):
        tiny_case.build(tmp_path / "store", tmp_path / "out", f"data.path={data}", target=RatioTarget("map_pgd", 0.1))


# Size; from here on with the tiny network unless it says otherwise.


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny-searches") / "store"


@pytest.fixture(scope="session")
def size_search(tiny_store: Path, tiny_case: Any) -> BuildOutcome:
    return tiny_case.build(tiny_store, tiny_store.parent / "size", target=parse_size("120KB"))  # type: ignore[no-any-return]


def test_size_search_chooses_the_first_ratio_whose_file_is_small_enough(
    size_search: BuildOutcome, tiny_store: Path, tiny_case: Any, tmp_path: Path
) -> None:
    """Files of plain builds of the chosen ratio and of the one below it."""
    results = size_search.results
    trials, chosen = tried(results), results["search"]["chosen"]
    assert 0 < chosen < 0.99
    assert (size_search.out / "bundle" / "model.onnx").stat().st_size == trials[chosen]["value"] <= 120_000
    lower = round(chosen - 0.01, 2)
    below = tiny_case.build(tiny_store, tmp_path / "below", f"ratio={lower}")
    assert (below.out / "bundle" / "model.onnx").stat().st_size == trials[lower]["value"] > 120_000
    assert results["search"]["final"] == {"value": trials[chosen]["value"], "meets": True}
    load_bundle(size_search.out / "bundle")


def test_size_search_trains_and_evaluates_for_the_chosen_ratio_only(size_search: BuildOutcome) -> None:
    assert size_search.computed.count("optimise-scores") == 1
    assert size_search.computed.count("evaluate") == 3
    log = [json.loads(line) for line in (size_search.out / "log.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in log].count("finetune") == 4  # as configured, once


@pytest.mark.parametrize("precisions", slow_after(1, "int8", "fp16,fp32"))
def test_size_is_that_of_the_smallest_file_of_the_precisions_that_are_built(
    tiny_store: Path, tiny_case: Any, tmp_path: Path, precisions: str
) -> None:
    sets = (f"export.precisions={precisions}", "export.int8.map_budget=null", "export.int8.match_score=1.0")
    outcome = tiny_case.build(tiny_store, tmp_path / "out", *sets, target=parse_size("80KB"))
    trials, chosen = tried(outcome.results), outcome.results["search"]["chosen"]
    files = list((outcome.out / "bundle").glob("*.onnx"))
    assert len(files) == len(precisions.split(","))
    smallest = min(path.stat().st_size for path in files)
    assert smallest == outcome.results["search"]["final"]["value"] <= 80_000
    # An int8 file has costs in dB in its metadata, which are longer or shorter once the network is trained.
    assert smallest == pytest.approx(trials[chosen]["value"], abs=100 if precisions == "int8" else 0)
    if chosen > 0:
        assert trials[round(chosen - 0.01, 2)]["value"] > 80_000


@pytest.mark.slow
def test_shape_that_follows_scores_is_searched_with_trained_scores(
    tiny_store: Path, tiny_case: Any, tmp_path: Path
) -> None:
    """Which filters are dead once kernels are zero depends on scores, and these on how they were optimised."""
    sets = ("method=kernel", "score_optimization.lr=10")
    outcome = tiny_case.build(tiny_store, tmp_path / "out", *sets, target=parse_size("150KB"))
    trials, search = tried(outcome.results), outcome.results["search"]
    chosen = search["chosen"]
    assert 0 < chosen < 0.99
    size = (outcome.out / "bundle" / "model.onnx").stat().st_size
    assert size == trials[chosen]["value"] == search["final"]["value"] <= 150_000
    assert search["rejected"] == []
    lower = round(chosen - 0.01, 2)
    below = tiny_case.build(tiny_store, tmp_path / "below", *sets, f"ratio={lower}")
    assert (below.out / "bundle" / "model.onnx").stat().st_size == trials[lower]["value"] > 150_000
    assert not {"pretrain", "optimise-scores", "prune"} & set(below.computed)


@pytest.mark.slow
def test_file_that_is_larger_once_trained_is_rejected(demo_store: Path, tiny_data: Path, tmp_path: Path) -> None:
    """With a budget of nothing int8 leaves convolutions that cost mAP in fp32, which only a trained network shows."""
    sets = ("export.precisions=int8", "export.int8.map_budget=0", "export.int8.map_tolerance=1.0")
    sets = (*sets, "remove_dead_channels=false")
    first = demo_build(demo_store, tiny_data, tmp_path / "any", *sets, target=parse_size("1GB"))
    trial, final = first.results["search"]["tried"][0], first.results["search"]["final"]
    assert first.results["search"]["chosen"] == trial["ratio"] == 0
    assert final["value"] > trial["value"], "or this test would show nothing"
    with pytest.raises(PruningError) as caught:
        demo_build(demo_store, tiny_data, tmp_path / "out", *sets, target=RatioTarget("onnx_bytes", trial["value"]))
    assert f"the best trained network has {final['value'] / 1e6:.3f} MB at ratio 0" in str(caught.value)


def test_zeros_make_no_file_smaller(tiny_store: Path, tiny_case: Any, tmp_path: Path) -> None:
    """Found by measuring: files of the network without pruning and of the most that can be pruned."""
    sets = ("method=unstructured", "remove_dead_channels=false")
    with pytest.raises(PruningError) as caught:
        tiny_case.build(tiny_store, tmp_path / "out", *sets, target=parse_size("120KB"))
    assert "so unstructured pruning gains nothing here" in str(caught.value)
    assert list((tmp_path / "out").iterdir()) == []


def test_size_that_cannot_be_reached_leaves_nothing(tiny_store: Path, tiny_case: Any, tmp_path: Path) -> None:
    with pytest.raises(PruningError) as caught:
        tiny_case.build(tiny_store, tmp_path / "out", target=parse_size("1KB"))
    line = str(caught.value)
    assert line.startswith("--target-size: size 1.000 kB cannot be reached: the best is ")
    assert "\n" not in line
    assert list((tmp_path / "out").iterdir()) == []


# Latency


LATENCY = ("method=structured", "latency.runtimes=onnxruntime", "latency.seconds=0.1", "latency.min_calls=5")


@pytest.mark.slow
def test_latency_that_every_network_has_needs_no_search(demo_store: Path, tiny_data: Path, tmp_path: Path) -> None:
    target = RatioTarget("latency_ms", 1e9)
    search = demo_build(demo_store, tiny_data, tmp_path / "any", *LATENCY, target=target).results["search"]
    assert search["chosen"] == 0
    assert [trial["ratio"] for trial in search["tried"]] == [0], "the network as it is, and nothing more"
    assert search["final"]["meets"]


@pytest.mark.slow
@pytest.mark.timeout(900)  # some twenty processes that wait their turn on a busy machine
def test_latency_search_goes_by_what_it_measured(demo_store: Path, tiny_data: Path, tmp_path: Path) -> None:
    """No number of milliseconds is expected of a machine: the decisions must follow from the recorded values."""
    sets = LATENCY
    generous = demo_build(demo_store, tiny_data, tmp_path / "any", *sets, target=RatioTarget("latency_ms", 1e9))
    dense = tried(generous.results)[0.0]["value"]
    assert dense > 0

    target = RatioTarget("latency_ms", dense / 2)
    outcome = demo_build(demo_store, tiny_data, tmp_path / "half", *sets, target=target)
    trials, chosen = tried(outcome.results), outcome.results["search"]["chosen"]
    assert trials[0.0]["value"] == dense, "stored"
    assert trials[chosen]["value"] <= dense / 2 < trials[round(chosen - 0.01, 2)]["value"]
    timed = row_of(outcome.results, "pruned")["latency_ms"]["onnxruntime"]
    assert outcome.results["search"]["final"]["value"] == timed["p50"]
    assert outcome.results["search"]["final"]["meets"] == (timed["p50"] <= dense / 2)

    again = demo_build(demo_store, tiny_data, tmp_path / "half", *sets, target=target)
    assert again.computed == ()
    assert again.results == outcome.results

    best = trials[0.99]["value"]
    with pytest.raises(PruningError) as caught:
        demo_build(demo_store, tiny_data, tmp_path / "no", *sets, target=RatioTarget("latency_ms", best / 1000))
    assert f"cannot be reached: the best is {best:.3f} ms at ratio 0.99, without pruning it is" in str(caught.value)
    assert list((tmp_path / "no").iterdir()) == []


def test_latency_needs_a_runtime_that_is_timed_here(tiny_store: Path, tiny_case: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none of tensorrt runs ONNX files on this CPU; use --set"):
        tiny_case.build(tiny_store, tmp_path / "out", target=RatioTarget("latency_ms", 5.0))
    assert not (tmp_path / "out").exists()


# Methods, folders, kills


def test_pattern_has_nothing_to_search(tiny_store: Path, tiny_case: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--target-size: has nothing to search: the pattern of nm pruning"):
        tiny_case.build(tiny_store, tmp_path / "out", "method=nm", target=parse_size("120KB"))
    assert not (tmp_path / "out").exists()


def test_folder_is_one_targets(size_search: BuildOutcome, tiny_store: Path, tiny_case: Any) -> None:
    document = json.loads((size_search.out / "build.json").read_text())
    assert document["target"] == {"option": "--target-size", "measure": "onnx_bytes", "value": 120_000}
    assert document["configuration"]["ratio"] is None
    for more in ({"target": parse_size("119KB")}, {}):
        with pytest.raises(StoreError, match="holds the build of another configuration"):
            tiny_case.build(tiny_store, size_search.out, **more)
    same = tiny_case.build(tiny_store, size_search.out, "ratio=0.1", target=parse_size("0.12MB"))
    assert (same.computed, same.results) == ((), size_search.results)


def test_folder_is_claimed_before_the_search(
    tiny_case: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (
        open_output_folder(tmp_path / "out", "0" * 64),
        pytest.raises(StoreError, match="another process is building into this folder"),
    ):
        tiny_case.build(tmp_path / "store", tmp_path / "out", target=parse_size("120KB"))
    assert "search:" not in capsys.readouterr().err


def test_default_folder_is_that_of_the_chosen_ratio(
    size_search: BuildOutcome, tiny_store: Path, tiny_case: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = tiny_case.build(tiny_store, None, target=parse_size("120KB"))
    chosen = size_search.results["search"]["chosen"]
    assert found.out == tmp_path / "runs" / f"smoke-structured-scaled-{chosen:g}-s0"
    assert found.computed == ()
    # It is a build of this configuration like any other; what remains of the search is what the last command says.
    plain = tiny_case.build(tiny_store, None, f"ratio={chosen}")
    assert (plain.out, plain.computed) == (found.out, ())
    assert "search" not in json.loads((found.out / "results.json").read_text())


@pytest.mark.slow
def test_killed_search_goes_on_where_it_was(size_search: BuildOutcome, tiny_case: Any, tmp_path: Path) -> None:
    """``kill -9`` after some trials; the same command ends as if nothing had happened and repeats none of them."""
    store, out = tmp_path / "store", tmp_path / "out"
    arguments = [word for text in tiny_case.arguments() for word in ("--set", text)]
    command = [
        sys.executable, "-m", "prunedeploy.cli", "build", "--config", "smoke", *arguments,
        "--target-size", "120KB", "--store", str(store), "--out", str(out), "--json",
    ]  # fmt: skip
    paths = os.pathsep.join(str(REPOSITORY / folder) for folder in (".", "export", "engines"))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while len(list(store.glob("results/prune-*"))) < 3:
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    stored = len(list(store.glob("results/prune-*")))
    assert not (out / "results.json").exists()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["search"] == size_search.results["search"]
    assert document["computed"].count("prune") == size_search.computed.count("prune") - stored
    assert (out / "model.weights").read_bytes() == (size_search.out / "model.weights").read_bytes()
