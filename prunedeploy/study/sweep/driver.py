"""The sweep itself: cells are trained and evaluated, several at once; then timed, one at a time; then pictures made.

What is finished stands in ``rows.jsonl`` of the output folder, which alone is enough to go on or to report. A model
has a line when it is evaluated and another one when it is timed. Whatever is killed, and whenever: rows that are
written stay, and what the store holds is not computed again.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunedeploy.config import as_dict
from prunedeploy.pipeline.progress import Progress
from prunedeploy.pipeline.store.store import Store, write_json
from prunedeploy.study.rows.file import RowFile, read_rows
from prunedeploy.study.rows.rows import CellKey, Row
from prunedeploy.study.sweep.grid import Cell, Sweep
from prunedeploy.study.sweep.tasks import CellFailed, Executor, Phase, StageDone, Task
from prunedeploy_engines.errors import StoreError
from prunedeploy_engines.files import is_leftover

if TYPE_CHECKING:
    from prunedeploy.study.sweep.plan import PlannedCell

ROWS = "rows.jsonl"
ABOUT = "sweep.json"
LOG = "workers.log"


@dataclass(frozen=True)
class Standing:
    """What the rows say of a cell.

    Attributes:
        trained: There is a row of its evaluation.
        timed: There is a row of its latency.
        error: Error of its last row; None if that has none.
    """

    trained: bool = False
    timed: bool = False
    error: str | None = None

    def after(self, row: Row) -> Standing:
        """With one row more."""
        return Standing(self.trained or row.params is not None, self.timed or row.time_ms is not None, row.error)

    def is_open(self, retry: bool) -> bool:
        """Something is left to do for the cell: if it has failed, only if it is to be tried again."""
        return not (self.trained and self.timed) and (retry or self.error is None)


Standings = defaultdict[CellKey, Standing]
"""By cell."""


@dataclass(frozen=True)
class SweepOutcome:
    """What a sweep has come to.

    Attributes:
        out: The output folder.
        models: Asked for, the networks as given included.
        trained: How many of them are trained and evaluated.
        timed: How many have a latency.
        failed: Cells that failed, with their errors.
        computed: Stages that were computed now, by name.
    """

    out: Path
    models: int
    trained: int
    timed: int
    failed: Mapping[CellKey, str]
    computed: Mapping[str, int]


def standings(rows: Iterable[Row]) -> Standings:
    """What rows say of each cell."""
    found = defaultdict[CellKey, Standing](Standing)
    for row in rows:
        found[row.cell] = found[row.cell].after(row)
    return found


def read_standings(sweep: Sweep, out: Path) -> Standings:
    """What is there of a sweep, nothing changed; empty if it was never begun.

    Raises:
        ConfigError: Its rows belong to another configuration.
    """
    path = out / ROWS
    return standings(read_rows(path, sweep.configuration_hash).rows if path.exists() else ())


def run_sweep(
    sweep: Sweep,
    cells: Sequence[Cell],
    *,
    store: Path,
    out: Path,
    executors: Callable[[Phase, Path], Executor],
    retry: bool = False,
    samples: int = 0,
    progress: Progress,
) -> SweepOutcome:
    """Do what is left of a sweep.

    Args:
        sweep: The configuration.
        cells: Those of its cells that are asked for.
        store: Folder of the stage store; made if it is not there.
        out: Output folder; made if it is not there.
        executors: Gives what works off the tasks of a phase, with the file for its log; closed in the end.
            It may be one for both phases.
        retry: Try cells again that failed before.
        samples: Test images that every model of the first run makes pictures of, at last.
        progress: Where long work says how far it is.

    Raises:
        ConfigError: ``out`` holds rows of another configuration.
        StoreError: ``out`` holds something else, another process writes to it, or the disk is full.
        PrunedeployError: The data or the network cannot be used; nothing was begun then.
    """
    with _opened(sweep, out) as file, Store(store, progress.message) as stages:
        for note in file.notes:
            progress.message(note)
        there = standings(file.rows)
        left = [cell for cell in cells if there[cell.key].is_open(retry)]
        run = _Run(file, there, store, progress)
        with closing(executors("train", out / LOG)) as executor:
            executor.prepare(sum(not there[cell.key].trained for cell in left))
            # Only now: workers load PyTorch at the same time.
            from prunedeploy.study.sweep.order import training_order
            from prunedeploy.study.sweep.plan import plan_sweep
            from prunedeploy.study.sweep.samples import make_samples

            plan = plan_sweep(left, stages, progress)
            for one in plan.cells:
                if one.error is not None:
                    run.fail(one.cell, one.error)
            to_train = [one for one in plan.cells if one.error is None and run.is_to_be_trained(one)]
            run.do("train", training_order(to_train, sweep.config.seeds), executor)
            to_time = [one for one in plan.cells if run.is_to_be_timed(one)]
            with closing(executors("time", out / LOG)) as executor_of_times:
                run.do("time", to_time, executor_of_times)
        if made := make_samples(sweep, cells, samples, stages, out, progress):
            run.computed["samples"] = made
    mine = {cell.key: there[cell.key] for cell in cells}
    trained, timed = sum(one.trained for one in mine.values()), sum(one.timed for one in mine.values())
    failed = {key: one.error for key, one in mine.items() if one.error is not None}
    return SweepOutcome(out, len(mine), trained, timed, failed, run.computed)


@dataclass
class _Run:
    """One call of `run_sweep`."""

    file: RowFile
    there: Standings
    store: Path
    progress: Progress
    computed: Counter[str] = field(default_factory=Counter)
    failed: set[CellKey] = field(default_factory=set)

    def is_to_be_trained(self, planned: PlannedCell) -> bool:
        """Its row is missing, or its latency is and the network to measure is not in the store."""
        trained = self.there[planned.cell.key].trained
        return not trained or (planned.timing is not None and not planned.is_trained)

    def is_to_be_timed(self, planned: PlannedCell) -> bool:
        """It is trained, can be timed here, and has not been."""
        standing, has_failed = self.there[planned.cell.key], planned.cell.key in self.failed
        return standing.trained and not standing.timed and planned.timing is not None and not has_failed

    def do(self, phase: Phase, cells: Sequence[PlannedCell], executor: Executor) -> None:
        """Have the tasks of a phase done, and append a row for each."""
        by_key = {planned.cell.key: planned.cell for planned in cells}
        tasks = [self._task(planned, phase) for planned in cells]
        what = "train and evaluate models" if phase == "train" else "measure latency of models"
        with self.progress.task(what, len(tasks)) as advance, closing(executor.run(tasks)) as events:
            for event in events:
                if isinstance(event, StageDone):
                    if event.computed:
                        self.computed[event.name] += 1
                    continue
                if isinstance(event, CellFailed):
                    self.fail(by_key[event.cell], event.error)
                elif phase == "time" or not self.there[event.cell].trained:  # else again, for the sake of its latency
                    self._append(event.cell, **event.values)
                advance(1)

    def _task(self, planned: PlannedCell, phase: Phase) -> Task:
        missing = [stage.digest for stage in planned.training if phase == "train" and not stage.is_done]
        configuration = json.dumps(as_dict(planned.cell.config))
        cell = planned.cell
        return Task(cell.key, phase, cell.is_reference, configuration, str(self.store), frozenset(missing))

    def fail(self, cell: Cell, error: str) -> None:
        """Append the row of a cell that cannot be done."""
        self.failed.add(cell.key)
        self.progress.message(f"failed: {cell.label}: {error}")
        self._append(cell.key, error=error)

    def _append(self, key: CellKey, **values: Any) -> None:
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        row = Row(**key._asdict(), configuration_hash=self.file.configuration_hash, finished=now, **values)
        self.file.append(row)
        self.there[key] = self.there[key].after(row)


@contextmanager
def _opened(sweep: Sweep, out: Path) -> Iterator[RowFile]:
    """The row file of an output folder that is empty or this sweep's."""
    if out.is_dir():
        others = sorted(path.name for path in out.iterdir() if not is_leftover(path.name))
        if others and ROWS not in others:
            raise StoreError(f"holds something else ({others[0]})", out, "choose another --out")
    elif out.exists():
        raise StoreError("is not a folder", out, "choose another --out")
    with RowFile(out / ROWS, sweep.configuration_hash) as file:
        about = {"configuration_hash": sweep.configuration_hash, **as_dict(sweep.config)}
        write_json(out / ABOUT, {"schema_version": 1, **about})
        yield file
