"""The sweep itself: cells are trained and evaluated, several at once; then timed, one at a time; then pictures made.

What is finished stands in ``rows.jsonl`` of the output folder, which alone is enough to go on or to report. A model
has a line when it is evaluated and another one when it is timed. Whatever is killed, and whenever: rows that are
written stay, and what the store holds is not computed again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunedeploy.config import as_dict
from prunedeploy.pipeline.progress import Progress
from prunedeploy.pipeline.store.store import Store, write_json
from prunedeploy.study.rows.file import RowFile, read_rows
from prunedeploy.study.rows.rows import CellKey, Row
from prunedeploy.study.sweep.grid import Cell, Sweep
from prunedeploy.study.sweep.tasks import CellDone, CellFailed, Executor, Phase, Task
from prunedeploy_engines.errors import StoreError

if TYPE_CHECKING:
    from prunedeploy.study.sweep.plan import Plan, PlannedCell

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


@dataclass(frozen=True)
class SweepOutcome:
    """What a sweep has come to.

    Attributes:
        out: The output folder.
        cells: Models asked for, the networks as given included.
        trained: How many of them are trained and evaluated.
        timed: How many have a latency.
        failed: Cells that failed, with their errors.
        computed: Stages that were computed now, by name.
    """

    out: Path
    cells: int
    trained: int
    timed: int
    failed: Mapping[CellKey, str]
    computed: Mapping[str, int]


def standings(rows: Sequence[Row]) -> dict[CellKey, Standing]:
    """What rows say of each cell; cells without a row are left out."""
    found: dict[CellKey, Standing] = {}
    for row in rows:
        before = found.get(row.cell, Standing())
        found[row.cell] = Standing(
            before.trained or row.params is not None, before.timed or row.time_ms is not None, row.error
        )
    return found


def read_standings(sweep: Sweep, out: Path) -> dict[CellKey, Standing]:
    """What is there of a sweep, nothing changed; empty if it was never begun.

    Raises:
        ConfigError: Its rows belong to another configuration.
    """
    path = out / ROWS
    return standings(read_rows(path, sweep.configuration_hash).rows) if path.exists() else {}


def open_cells(cells: Sequence[Cell], there: Mapping[CellKey, Standing], retry: bool) -> list[Cell]:
    """The cells that something is left to do for: failed ones only if they are to be tried again."""
    left = []
    for cell in cells:
        standing = there.get(cell.key, Standing())
        finished = standing.trained and standing.timed
        if not finished and (retry or standing.error is None):
            left.append(cell)
    return left


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
        left = open_cells(cells, there, retry)
        run = _Run(sweep, file, there, store, progress)
        with closing(executors("train", out / LOG)) as executor:
            executor.prepare(sum(not there.get(cell.key, Standing()).trained for cell in left))
            # Only now: workers load PyTorch at the same time.
            from prunedeploy.study.sweep.order import training_order
            from prunedeploy.study.sweep.plan import plan_sweep
            from prunedeploy.study.sweep.samples import make_samples

            plan = plan_sweep(left, stages, progress)
            run.record_impossible(plan)
            to_train = [one for one in plan.cells if one.error is None and run.is_to_be_trained(one)]
            run.do("train", training_order(to_train, sweep.config.seeds), executor)
            to_time = [one for one in plan.cells if run.is_to_be_timed(one)]
            with closing(executors("time", out / LOG)) as executor_of_times:
                run.do("time", to_time, executor_of_times)
        if made := make_samples(sweep, cells, samples, stages, out, progress):
            run.computed["samples"] = made
        now = standings(file.rows)
    mine = {cell.key: now.get(cell.key, Standing()) for cell in cells}
    return SweepOutcome(
        out,
        len(mine),
        sum(one.trained for one in mine.values()),
        sum(one.timed for one in mine.values()),
        {key: one.error for key, one in mine.items() if one.error is not None},
        run.computed,
    )


@dataclass
class _Run:
    """One call of `run_sweep`."""

    sweep: Sweep
    file: RowFile
    there: dict[CellKey, Standing]
    store: Path
    progress: Progress

    def __post_init__(self) -> None:
        self.computed: dict[str, int] = {}
        self._failed: set[CellKey] = set()

    def record_impossible(self, plan: Plan) -> None:
        """Rows for cells that the plan already knows cannot be done."""
        for planned in plan.cells:
            if planned.error is not None:
                self._fail(planned.cell.key, planned.error, planned.cell.label)

    def is_to_be_trained(self, planned: PlannedCell) -> bool:
        """Its row is missing, or its latency is and the network to measure is not in the store."""
        standing = self.there.get(planned.cell.key, Standing())
        return not standing.trained or (planned.timing is not None and not planned.is_trained)

    def is_to_be_timed(self, planned: PlannedCell) -> bool:
        """It is trained, can be timed here, and has not been."""
        standing = self.there.get(planned.cell.key, Standing())
        known_to_fail = planned.cell.key in self._failed
        return standing.trained and not standing.timed and planned.timing is not None and not known_to_fail

    def do(self, phase: Phase, cells: Sequence[PlannedCell], executor: Executor) -> None:
        """Have the tasks of a phase done, and append a row for each."""
        labels = {planned.cell.key: planned.cell.label for planned in cells}
        tasks = [self._task(planned, phase) for planned in cells]
        what = "train and evaluate models" if phase == "train" else "measure latency of models"
        with self.progress.task(what, len(tasks)) as advance, closing(executor.run(tasks)) as events:
            for event in events:
                if isinstance(event, CellDone):
                    self._finish(event.cell, phase, event.values)
                    advance(1)
                elif isinstance(event, CellFailed):
                    self._fail(event.cell, event.error, labels[event.cell])
                    advance(1)
                elif event.computed:
                    self.computed[event.name] = self.computed.get(event.name, 0) + 1

    def _task(self, planned: PlannedCell, phase: Phase) -> Task:
        stages = planned.training if phase == "train" else planned.stages
        missing = frozenset(stage.digest for stage in stages if not stage.is_done) if phase == "train" else frozenset()
        configuration = json.dumps(as_dict(planned.cell.config))
        cell = planned.cell
        return Task(cell.key, phase, cell.is_reference, configuration, str(self.store), missing)

    def _finish(self, key: CellKey, phase: Phase, values: Mapping[str, Any]) -> None:
        before = self.there.get(key, Standing())
        if phase == "train" and before.trained:
            return  # computed again for the sake of its latency
        self._append(key, **values)
        timed = before.timed or phase == "time"
        self.there[key] = Standing(True, timed)

    def _fail(self, key: CellKey, error: str, label: str) -> None:
        self._failed.add(key)
        self.progress.message(f"failed: {label}: {error}")
        self._append(key, error=error)

    def _append(self, key: CellKey, **values: Any) -> None:
        name, ratio, run = key
        finished = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self.file.append(
            Row(
                configuration=name,
                ratio=ratio,
                run=run,
                configuration_hash=self.sweep.configuration_hash,
                finished=finished,
                **values,
            )
        )


@contextmanager
def _opened(sweep: Sweep, out: Path) -> Iterator[RowFile]:
    """The row file of an output folder that is empty or this sweep's."""
    if out.is_dir():
        others = sorted(path.name for path in out.iterdir())
        if others and ROWS not in others:
            raise StoreError(f"holds something else ({others[0]})", out, "choose another --out")
    elif out.exists():
        raise StoreError("is not a folder", out, "choose another --out")
    with RowFile(out / ROWS, sweep.configuration_hash) as file:
        about = {"configuration_hash": sweep.configuration_hash, **as_dict(sweep.config)}
        write_json(out / ABOUT, {"schema_version": 1, **about})
        yield file
