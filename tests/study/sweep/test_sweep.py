"""A sweep run for real: rows, what is computed again and what is not, failures, and ``kill -9`` of a worker."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from prunedeploy.config import load_config
from prunedeploy.models import load_darknet
from prunedeploy.pipeline.store.store import Store
from prunedeploy.study.rows.file import read_rows
from prunedeploy.study.rows.rows import Row
from prunedeploy.study.sweep.driver import ROWS
from prunedeploy.study.sweep.grid import load_sweep
from prunedeploy.study.sweep.local_executor import LocalExecutor
from prunedeploy.study.sweep.tasks import Event, Executor, Task
from prunedeploy.study.sweep.worker_process import WorkerProcess
from prunedeploy_engines.errors import ConfigError, StoreError
from tiny_study import child_workers, run_tiny

MEASURED = ("ratio_achieved", "params", "map_pgd", "map_ensemble", "map_clean", "map_pgd_conf50", "map_clean_conf50")


def rows_of(out: Path) -> list[Row]:
    return list(read_rows(out / ROWS).rows)


def values(rows: Sequence[Row]) -> dict[Any, tuple[Any, ...]]:
    """What does not depend on how long something took, by cell."""
    return {row.cell: tuple(getattr(row, name) for name in MEASURED) for row in rows if row.params is not None}


def assert_as_undisturbed(out: Path, finished: Any) -> None:
    """No row lost, none doubled, same numbers to the last bit."""
    assert max(Counter(row.cell for row in rows_of(out) if row.params is not None).values()) == 1
    assert values(rows_of(out)) == values(rows_of(finished.out))


def test_every_model_has_a_row_with_what_its_stages_wrote(finished: Any) -> None:
    rows = rows_of(finished.out)
    assert sorted(row.cell for row in rows) == sorted(cell.key for cell in finished.sweep.cells)
    assert {row.configuration_hash for row in rows} == {finished.sweep.configuration_hash}
    evaluations = [
        json.loads(path.read_text())["torch"] for path in finished.store.glob("results/evaluate-*/evaluation.json")
    ]
    assert sorted((one["map_clean"], one["map_pgd"]) for one in evaluations) == sorted(
        (row.map_clean, row.map_pgd) for row in rows
    )
    attacked = [json.loads(path.read_text()) for path in finished.store.glob("results/robustness-*/robustness.json")]
    assert sorted(one["figures"]["map_ensemble"] for one in attacked) == sorted(row.map_ensemble for row in rows)
    for row in rows:
        if row.configuration == "structured-scaled":
            assert abs((row.ratio_achieved or 0) - 0.5) <= 0.01
            assert (row.optimise_seconds is not None, row.score_machine is not None) == (True, True)
    # Parameters counted in the stored networks, not taken from a row.
    networks = [*finished.store.glob("results/remove-dead-channels-*"), *finished.store.glob("results/original-*")]
    counted = {
        sum(p.numel() for p in load_darknet(f / "model.cfg", f / "model.weights").parameters()) for f in networks
    }
    assert counted <= {row.params for row in rows}


def test_row_says_what_a_build_of_the_same_configuration_says(finished: Any, tmp_path: Path) -> None:
    """The same stages: a build on the same store computes none of a cell's trainings again."""
    from prunedeploy.pipeline.build import build
    from prunedeploy.pipeline.progress import Progress

    cell = next(cell for cell in finished.sweep.cells if cell.key == ("structured-scaled", 0.5, 1))
    store = Path(shutil.copytree(finished.store, tmp_path / "store"))
    outcome = build(cell.config, store=store, out=tmp_path / "out", progress=Progress(quiet=True))
    assert not {"pretrain", "score", "optimise-scores", "prune", "finetune"} & set(outcome.computed)
    (row,) = [row for row in rows_of(finished.out) if row.cell == cell.key]
    pruned = next(model for model in outcome.results["models"] if model["name"] == "pruned")
    assert (pruned["params"], pruned["map_clean"], pruned["map_pgd"]) == (row.params, row.map_clean, row.map_pgd)
    assert load_config("smoke").threads == cell.config.threads


def test_rows_alone_are_enough_to_go_on(finished: Any, tmp_path: Path) -> None:
    """With the store gone nothing is computed again, and a row that is missing is."""
    out = tmp_path / "out"
    shutil.copytree(finished.out, out)
    outcome = run_tiny(finished.sweep, tmp_path / "no-store", out)
    assert (dict(outcome.computed), outcome.trained) == ({}, 6)
    assert rows_of(out) == rows_of(finished.out)


def test_rows_of_another_configuration_are_refused(finished: Any, tiny_study: Any, tmp_path: Path) -> None:
    text = tiny_study.write(tmp_path / "study.yaml").read_text().replace("steps: 2", "steps: 3")
    (tmp_path / "study.yaml").write_text(text)
    before = (finished.out / ROWS).read_bytes()
    with pytest.raises(ConfigError, match="a row of another configuration"):
        run_tiny(load_sweep(tmp_path / "study.yaml"), finished.store, finished.out)
    assert (finished.out / ROWS).read_bytes() == before


def test_folder_with_something_else_in_it_is_left_alone(finished: Any, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(StoreError, match=r"holds something else \(thesis.tex\)"):
        run_tiny(finished.sweep, finished.store, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_broken_last_line_is_put_aside_and_its_model_done_again_from_the_store(finished: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished.out, out)
    content = (out / ROWS).read_bytes()
    (out / ROWS).write_bytes(content[:-20])
    store = Path(shutil.copytree(finished.store, tmp_path / "store"))
    outcome = run_tiny(finished.sweep, store, out, workers=1)
    assert dict(outcome.computed) == {}, "the store had its stages"
    assert (out / f"{ROWS}.incomplete").read_bytes().strip() in content
    assert_as_undisturbed(out, finished)


class Killing(Executor):
    """Kills all workers whenever one of ``moments`` events has come."""

    def __init__(self, inner: LocalExecutor, moments: Sequence[int]) -> None:
        self.inner = inner
        self.moments = set(moments)
        self.killed = 0

    def run(self, tasks: Sequence[Task]) -> Generator[Event, None, None]:
        for number, event in enumerate(self.inner.run(tasks), 1):
            if number in self.moments:
                for pid in child_workers(os.getpid()):
                    os.kill(pid, signal.SIGKILL)
                    self.killed += 1
            yield event

    def close(self) -> None:
        self.inner.close()


def test_worker_killed_at_several_moments_loses_no_row_and_doubles_none(finished: Any, tmp_path: Path) -> None:
    """At two moments: a task that happened to run at three of them would be given up, as it should be."""
    executor = Killing(LocalExecutor(2, tmp_path / "log"), moments=(3, 12))
    outcome = run_tiny(finished.sweep, tmp_path / "store", tmp_path / "out", executors=lambda phase, log: executor)
    assert executor.killed >= 2
    assert (outcome.trained, dict(outcome.failed)) == (6, {})
    assert_as_undisturbed(tmp_path / "out", finished)
    assert child_workers(os.getpid()) == []


def test_worker_that_dies_while_it_waits_is_no_death_of_the_task_it_is_given(
    finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two deaths in a task are allowed; the one before it would be the third."""
    killed: list[int] = []
    give = WorkerProcess.give

    def give_and_kill_two(worker: WorkerProcess, order: Mapping[str, Any]) -> None:
        doomed = len(killed) < 2
        if doomed:
            worker.process.send_signal(signal.SIGSTOP)
        give(worker, order)
        if doomed:
            worker.process.kill()
            killed.append(worker.process.pid)

    class KillsIdle(LocalExecutor):
        def prepare(self, tasks: int) -> None:
            super().prepare(tasks)
            for pid in child_workers(os.getpid()):
                os.kill(pid, signal.SIGKILL)
                while child_workers(os.getpid()):
                    time.sleep(0.01)

    monkeypatch.setattr(WorkerProcess, "give", give_and_kill_two)
    outcome = run_tiny(
        finished.sweep,
        Path(shutil.copytree(finished.store, tmp_path / "store")),
        tmp_path / "out",
        cells=[cell for cell in finished.sweep.cells if cell.key == ("structured-scaled", 0.5, 0)],
        executors=lambda phase, log: KillsIdle(1, tmp_path / "log"),
    )
    assert len(killed) == 2
    assert (outcome.trained, dict(outcome.failed)) == (1, {})


@pytest.mark.slow
def test_latency_is_measured_by_one_worker_that_has_trained_when_the_others_have_ended(
    tiny_study: Any, tmp_path: Path
) -> None:
    living: dict[str, set[tuple[int, ...]]] = {"train": set(), "time": set()}

    class Watched(LocalExecutor):
        def run(self, tasks: Sequence[Task]) -> Generator[Event, None, None]:
            for event in super().run(tasks):
                living[tasks[0].phase].add(tuple(sorted(child_workers(os.getpid()))))
                yield event

    sweep = tiny_study.load(tmp_path / "study.yaml", runtime="onnxruntime")
    cells = [cell for cell in sweep.cells if cell.is_reference]
    executor = Watched(2, tmp_path / "log")
    outcome = run_tiny(sweep, tmp_path / "store", tmp_path / "out", cells=cells, executors=lambda phase, log: executor)
    assert (outcome.trained, outcome.timed) == (2, 2)
    ((first, second),) = living["train"]
    assert living["time"] in ({(first,)}, {(second,)})
    assert child_workers(os.getpid()) == []


@pytest.mark.slow
def test_cell_whose_process_dies_again_and_again_is_recorded_and_the_rest_goes_on(
    finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that is given this cell is stopped first, so that it is killed with its task begun and not ended."""
    victim = ("structured-scaled", 0.5, 0)
    give = WorkerProcess.give

    def give_and_kill(worker: WorkerProcess, order: Mapping[str, Any]) -> None:
        doomed = tuple(order["cell"]) == victim
        if doomed:
            worker.process.send_signal(signal.SIGSTOP)
        give(worker, order)
        if doomed:
            worker.process.kill()

    cells = [cell for cell in finished.sweep.cells if cell.key in (victim, ("original", 0.0, 0))]
    store = Path(shutil.copytree(finished.store, tmp_path / "store"))
    with monkeypatch.context() as patch:
        patch.setattr(WorkerProcess, "give", give_and_kill)
        outcome = run_tiny(finished.sweep, store, tmp_path / "out", cells=cells, workers=1)
    assert outcome.failed.keys() == {victim}
    assert "its process ended 3 times, killed" in outcome.failed[victim]
    assert outcome.trained == 1
    again = run_tiny(finished.sweep, tmp_path / "store", tmp_path / "out", cells=cells, workers=1)
    assert again.failed.keys() == {victim}, "not without being asked"
    retried = run_tiny(finished.sweep, tmp_path / "store", tmp_path / "out", cells=cells, workers=1, retry=True)
    assert (dict(retried.failed), retried.trained, dict(retried.computed)) == ({}, 2, {})


def test_unreachable_ratio_is_recorded_and_the_rest_goes_on(tiny_study: Any, tmp_path: Path) -> None:
    sweep = tiny_study.load(tmp_path / "study.yaml", ratios="0.99")
    cells = [cell for cell in sweep.cells if cell.key in (("original", 0.0, 0), ("structured-scaled", 0.99, 0))]
    outcome = run_tiny(sweep, tmp_path / "store", tmp_path / "out", cells=cells, workers=1)
    (error,) = [row.error for row in rows_of(tmp_path / "out") if row.configuration == "structured-scaled"]
    assert error is not None
    assert "0.99" in error
    assert (outcome.trained, len(outcome.failed)) == (1, 1)


def test_latency_is_measured_after_training_and_joins_its_model(tiny_study: Any, tmp_path: Path) -> None:
    sweep = tiny_study.load(tmp_path / "study.yaml", runtime="onnxruntime")
    cells = [cell for cell in sweep.cells if cell.key == ("structured-scaled", 0.5, 0)]
    outcome = run_tiny(sweep, tmp_path / "store", tmp_path / "out", cells=cells, workers=1)
    trained, timed = rows_of(tmp_path / "out")
    assert (outcome.trained, outcome.timed) == (1, 1)
    assert (trained.time_ms, timed.params, timed.runtime) == (None, None, "onnxruntime")
    (path,) = (tmp_path / "store").glob("results/file-latency-*/latency.json")
    assert timed.time_ms == json.loads(path.read_text())["mean"]
    with Store(tmp_path / "store") as store:
        assert [row.kind for row in store.ls() if row.kind != "result"] == []
