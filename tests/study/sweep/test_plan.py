"""A plan knows every stage of a sweep before any is computed; estimates come from stages that were measured."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from prunedeploy.pipeline.progress import Progress
from prunedeploy.pipeline.store.store import Store
from prunedeploy.study.sweep.contexts import PlannedStage
from prunedeploy.study.sweep.grid import Cell, Sweep, load_sweep
from prunedeploy.study.sweep.plan import Plan, PlannedCell, plan_sweep


def plan_of(sweep: Sweep, store: Path) -> Plan:
    with Store(store) as opened:
        return plan_sweep(sweep.cells, opened, Progress(quiet=True))


def test_plan_has_exactly_the_stages_that_the_sweep_then_computes(finished: Any, tmp_path: Path) -> None:
    before = plan_of(finished.sweep, tmp_path / "empty")
    assert before.done == 0
    with Store(finished.store) as store:
        computed = {row.digest for row in store.ls() if row.kind == "result"}
    assert before.stages.keys() == computed
    assert plan_of(finished.sweep, finished.store).done == len(computed)


def test_what_cells_share_is_there_once(tiny_study: Any, tmp_path: Path) -> None:
    """One pre-training per seed and colour mode, one scoring per score and network, one evaluation of the original."""
    plan = plan_of(tiny_study.load(tmp_path / "study.yaml", ratios="0.25, 0.5, 0.75"), tmp_path / "store")
    found = Counter(stage.name for stage, _ in plan.stages.values())
    models = 2 * 3 * 2  # configurations, ratios, seeds
    assert found == {
        "check-images": 1,
        "original": 1,
        "pretrain": 4,  # 2 seeds x colour and grey
        "score": 4,  # scaled on the colour networks, DeepLIFT on the grey ones
        "optimise-scores": 6,  # of the scaled scores, for every ratio and seed
        "prune": models,
        "finetune": models,
        "remove-dead-channels": 6,  # of the unstructured ones
        "export": models + 2,  # the network as given: gates on colour and on grey images
        "evaluate": models + 2,
        "robustness": models + 2,
    }


def test_papers_five_configurations_share_two_pretrainings_and_three_scorings_per_seed(tmp_path: Path) -> None:
    """`study-demo`'s settings on a data set that is quick to read."""
    sweep = load_sweep("study-demo")
    cells = [cell for cell in sweep.cells if cell.key[2] == 0]
    found = Counter(stage.name for stage, _ in Plan(tuple(_planned_on_tiny_data(cells, tmp_path))).stages.values())
    assert found["pretrain"] == 2
    assert found["score"] == 3  # scaled and DeepLIFT on colour, DeepLIFT on grey: methods share them
    assert found["finetune"] == 5 * 9


def _planned_on_tiny_data(cells: list[Cell], folder: Path) -> tuple[PlannedCell, ...]:
    from prunedeploy.data.demo import DemoSettings, write_demo

    scenes = write_demo(folder / "scenes", DemoSettings(train_scenes=4, test_scenes=2))
    small = [
        Cell(
            cell.key,
            cell.config.model_copy(update={"data": cell.config.data.model_copy(update={"path": str(scenes)})}),
        )
        for cell in cells
    ]
    with Store(folder / "store") as store:
        return plan_sweep(small, store, Progress(quiet=True)).cells


def stage(name: str, digest: str, seconds: float | None = None, size: int | None = None) -> PlannedStage:
    return PlannedStage(name, digest, seconds, size)


def test_estimates_are_means_of_the_most_similar_stages(tiny_study: Any, tmp_path: Path) -> None:
    """Hand-worked: the same configuration and ratio counts before the same configuration, that before the name."""
    config = tiny_study.load(tmp_path / "study.yaml").cells[-1].config
    shared = stage("pretrain", "p", 100.0, 1000)

    def cell(name: str, ratio: float, run: int, *stages: PlannedStage) -> PlannedCell:
        return PlannedCell(Cell((name, ratio, run), config), (shared, *stages))

    plan = Plan(
        (
            cell("a", 0.5, 0, stage("finetune", "f0", 10.0, 40)),
            cell("a", 0.5, 1, stage("finetune", "f1")),  # like f0: 10 s, 40 bytes
            cell("a", 0.9, 0, stage("finetune", "f2", 2.0, 20)),
            cell("a", 0.7, 0, stage("finetune", "f3")),  # mean of a: 6 s, 30 bytes
            cell("b", 0.5, 0, stage("finetune", "f4"), stage("evaluate", "e")),  # mean of all: 6 s, 30 bytes; unknown
        )
    )
    counts = {count.name: count for count in plan.counts()}
    assert (counts["pretrain"].total, counts["pretrain"].done, counts["pretrain"].seconds_left) == (1, 1, 0)
    assert (counts["finetune"].total, counts["finetune"].done) == (5, 2)
    assert counts["finetune"].seconds_left == pytest.approx(10 + 6 + 6)
    assert counts["finetune"].bytes_left == pytest.approx(40 + 30 + 30)
    assert (counts["evaluate"].total, counts["evaluate"].seconds_left, counts["evaluate"].bytes_left) == (1, None, None)
    assert (plan.done, plan.bytes_done) == (3, 1060)


def test_unreachable_ratio_is_that_cells_and_known_before_anything_is_trained(tiny_study: Any, tmp_path: Path) -> None:
    sweep = tiny_study.load(tmp_path / "study.yaml", ratios="0.5, 0.99")
    errors = {planned.cell.key: planned.error for planned in plan_of(sweep, tmp_path / "store").cells}
    failed = {key for key, error in errors.items() if error is not None}
    assert failed == {("structured-scaled", 0.99, run) for run in (0, 1)}
