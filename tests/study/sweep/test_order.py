"""The order of training: whole runs, no worker idle for want of a pre-training or because a long model came last."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from functools import cache

import pytest

from prunedeploy.study.rows.rows import CellKey
from prunedeploy.study.sweep.contexts import PlannedStage
from prunedeploy.study.sweep.grid import Cell, load_sweep
from prunedeploy.study.sweep.order import expected_work, training_order
from prunedeploy.study.sweep.plan import PlannedCell
from prunedeploy.study.sweep.tasks import Task, TaskQueue

RUNS = (0, 1, 2)


@cache
def demo_cells() -> dict[CellKey, Cell]:
    """Of the study on the demo set; by what it says a pre-training is 240 steps x 16 images x (2 of the attack + 1)."""
    return {cell.key: cell for cell in load_sweep("study-demo").cells}


def planned(name: str, ratio: float, run: int, *, pretrained: bool = False) -> PlannedCell:
    """A cell whose stages are all missing, but for the pre-training."""
    colours = "grey" if name.endswith("grey") else "colour"
    stages = [PlannedStage("evaluate", f"evaluate {name} {ratio} {run}", None, None)]
    if not name.startswith("original"):
        seconds = 100.0 if pretrained else None
        stages.insert(0, PlannedStage("pretrain", f"pretrain {colours} {run}", seconds, None))
        stages.insert(1, PlannedStage("finetune", f"finetune {name} {ratio} {run}", None, None))
        if "scaled" in name:
            stages.insert(1, PlannedStage("optimise-scores", f"optimise {name} {ratio} {run}", None, None))
    return PlannedCell(demo_cells()[name, ratio, run], tuple(stages))


def keys(cells: Sequence[PlannedCell]) -> list[CellKey]:
    return [one.cell.key for one in cells]


def test_expected_work_counts_passes_of_missing_trainings() -> None:
    # Fine-tuning: 100 steps x 8 images x (2 + 1) = 2400; of a network without 3/4 of its weights a quarter of that.
    assert expected_work(planned("unstructured-deeplift", 0.75, 0, pretrained=True)) == 2400
    assert expected_work(planned("structured-deeplift", 0.75, 0, pretrained=True)) == 600
    # With scores optimised, 40 of the 100 steps do that: 40 x 8 x 3 = 960. Pre-training: 240 x 16 x 3 = 11520.
    assert expected_work(planned("structured-scaled", 0.75, 0)) == 11520 + 960 + 1440 / 4
    assert expected_work(planned("original", 0.0, 0)) == 0


def test_runs_in_order_longest_first_and_one_pretraining_ahead() -> None:
    """Hand-worked: each run's pre-trainings stand where the run before begins, everything else within its run."""
    names = ("structured-scaled", "unstructured-deeplift-grey")
    cells = [planned("original", 0.0, 0)]
    cells += [planned(name, ratio, run) for run in RUNS for ratio in (0.25, 0.5) for name in names]
    scaled, grey = names
    assert keys(training_order(cells, RUNS)) == [
        (grey, 0.25, 0), (scaled, 0.25, 0),  # 2400 and 960 + 1440 x 0.75 make the pre-trainings of run 0
        (grey, 0.25, 1), (scaled, 0.25, 1),  # and of run 1
        (grey, 0.5, 0), (scaled, 0.5, 0), ("original", 0.0, 0),  # 2400, 960 + 1440 x 0.5 and no training
        (grey, 0.25, 2), (scaled, 0.25, 2),
        (grey, 0.5, 1), (scaled, 0.5, 1),
        (grey, 0.5, 2), (scaled, 0.5, 2),
    ]  # fmt: skip


def test_runs_that_are_pretrained_are_finished_one_after_the_other() -> None:
    cells = [planned("structured-deeplift", ratio, run, pretrained=True) for run in (2, 1) for ratio in (0.9, 0.5)]
    assert [(ratio, run) for _, ratio, run in keys(training_order(cells, RUNS))] == [
        (0.5, 1), (0.9, 1), (0.5, 2), (0.9, 2),
    ]  # fmt: skip


def duration(cells: Sequence[PlannedCell], workers: int) -> float:
    """When the last stage is done, if a training takes its passes and an evaluation 500: stage by stage."""
    tasks = [
        Task(one.cell.key, "train", False, "{}", "store", frozenset(stage.digest for stage in one.training))
        for one in cells
    ]
    queue, by_key = TaskQueue(tasks), {one.cell.key: one for one in cells}
    passes = {"pretrain": 11520.0, "optimise-scores": 960.0, "evaluate": 500.0}
    now, made = 0.0, set[str]()
    running: dict[CellKey, Task] = {}
    ends: list[tuple[float, CellKey, str, bool]] = []  # of stages
    while queue or running:
        while len(running) < workers and (task := queue.next(running.values())):
            running[task.cell] = task
            left = 1 - task.cell[1] if task.cell[0].startswith("structured") else 1.0
            stages, end = by_key[task.cell].training, now
            for stage in stages:
                if stage.digest not in made:
                    end += passes.get(stage.name, 2400 * left)
                heapq.heappush(ends, (end, task.cell, stage.digest, stage is stages[-1]))
        now, cell, digest, is_last = heapq.heappop(ends)
        made.add(digest)
        queue.event(running[cell], {"stage": {"name": "any", "digest": digest, "computed": True, "seconds": 1.0}})
        if is_last:
            del running[cell]
    return now


@pytest.mark.parametrize("workers", [2, 3, 4])
def test_sweep_ends_earlier_than_in_the_order_of_the_grid(workers: int) -> None:
    """No worker is idle for longer than the longest model takes, whereas in the grid's order whole trainings are."""
    names = ("structured-scaled", "unstructured-scaled")
    cells = [planned(name, ratio, run) for run in RUNS for ratio in (0.9, 0.5, 0.25, 0.0) for name in names]
    work = duration(cells, 1)
    ours = duration(training_order(cells, RUNS), workers)
    assert duration(training_order(cells, RUNS), 1) == pytest.approx(work)
    assert ours < duration(cells, workers)
    if workers == 2:
        assert ours <= work / 2 + 3620  # half, and at most the longest model: 720 + 2400 + 500
