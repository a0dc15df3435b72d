"""From rows to the grid of a study: the runs of every configuration at every ratio."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
from numpy.typing import NDArray

from prunedeploy.study.rows.rows import CellKey, Row
from prunedeploy.study.statistics.design import (
    MAP_ENSEMBLE,
    MAP_PGD,
    MAP_PGD_CONF50,
    PAPER_CONFIGURATIONS,
    REFERENCES,
    TIME_MS,
    Metric,
)
from prunedeploy_engines.errors import ConfigError

Floats = NDArray[np.float64]
Bench = tuple[str, str | None]
"""Machine and runtime: times are compared on one bench only."""


@dataclass(frozen=True)
class Study:
    """Rows as a grid.

    Attributes:
        rows: All of them, in the order of the file. Where a cell has several finished rows with a value, the last one
            counts; a failed row never hides a finished one.
        bench: Whose times are used; None: no row has a time.
        map_metric: Which robust mAP is meant.
    """

    rows: tuple[Row, ...]
    bench: Bench | None
    map_metric: Metric = MAP_PGD

    @cached_property
    def configurations(self) -> tuple[str, ...]:
        """Names, those of the paper first and in its order, the references left out."""
        found = {row.configuration: None for row in self.rows if row.configuration not in REFERENCES}
        of_paper = [name for name in PAPER_CONFIGURATIONS if name in found]
        return (*of_paper, *(name for name in found if name not in of_paper))

    @cached_property
    def ratios(self) -> tuple[float, ...]:
        """Pruning ratios, ascending."""
        return tuple(sorted({row.ratio for row in self.rows if row.configuration not in REFERENCES}))

    @cached_property
    def runs(self) -> tuple[int, ...]:
        """Runs (seeds), ascending."""
        return tuple(sorted({row.run for row in self.rows if row.configuration not in REFERENCES}))

    def by_run(self, metric: Metric, configuration: str, ratio: float) -> Mapping[int, float]:
        """Values of one cell of the grid by run, ascending; empty if there are none."""
        return self._values.get((metric.field, configuration, ratio), {})

    def values(self, metric: Metric, configuration: str, ratio: float) -> Floats:
        """The same without the runs, ``(runs,)``."""
        return np.array(list(self.by_run(metric, configuration, ratio).values()), np.float64)

    def has(self, metric: Metric) -> bool:
        """Whether any cell of the grid has a value."""
        return any(self.by_run(metric, name, ratio) for name in self.configurations for ratio in self.ratios)

    @cached_property
    def failed(self) -> tuple[Row, ...]:
        """The last row of every cell that has none without an error."""
        done = {row.cell for row in self.rows if row.error is None}
        return tuple({row.cell: row for row in self.rows if row.cell not in done}.values())

    @cached_property
    def missing(self) -> tuple[CellKey, ...]:
        """Cells of the grid configurations x ratios x runs with no row at all."""
        there = {row.cell for row in self.rows}
        grid = map(CellKey._make, product(self.configurations, self.ratios, self.runs))
        return tuple(cell for cell in grid if cell not in there)

    @cached_property
    def benches(self) -> Mapping[Bench, int]:
        """How many rows have a time, by bench, the most first."""
        return dict(_benches(self.rows).most_common())

    @cached_property
    def _values(self) -> dict[tuple[str, str, float], dict[int, float]]:
        found: dict[tuple[str, str, float], dict[int, float]] = {}
        for row in self.rows:
            for field in (MAP_PGD.field, MAP_PGD_CONF50.field, MAP_ENSEMBLE.field, TIME_MS.field):
                value = getattr(row, field)
                if value is None or (field == TIME_MS.field and _bench(row) != self.bench):
                    continue
                found.setdefault((field, row.configuration, row.ratio), {})[row.run] = value
        return {key: dict(sorted(cell.items())) for key, cell in found.items()}


def study_from_rows(rows: Iterable[Row], machine: str | None = None) -> Study:
    """Arrange rows as a grid. Robust mAP is at COCO's usual score threshold, unless more rows have it at 0.5.

    Args:
        rows: The rows of one sweep.
        machine: Whose times count; None: the machine and runtime with the most rows. Times of others are left out.

    Raises:
        ConfigError: There is no row about a pruned model, or none with a time of that machine.
    """
    rows = tuple(rows)
    if all(row.configuration in REFERENCES for row in rows):
        raise ConfigError("there is no result row to report on", fix="let the sweep finish a model first")
    benches = _benches(rows)
    if machine is not None:
        benches = Counter({bench: count for bench, count in benches.items() if bench[0] == machine})
        if not benches:
            known = ", ".join(sorted({name for name, _ in _benches(rows)})) or "none"
            raise ConfigError("no row has a time of this machine", machine, f"give one of: {known}")
    usual, at_half = (sum(getattr(row, m.field) is not None for row in rows) for m in (MAP_PGD, MAP_PGD_CONF50))
    bench = max(benches, key=benches.__getitem__, default=None)
    return Study(rows, bench, MAP_PGD if usual >= at_half else MAP_PGD_CONF50)


def _bench(row: Row) -> Bench:
    return row.machine or "", row.runtime


def _benches(rows: Sequence[Row]) -> Counter[Bench]:
    return Counter(_bench(row) for row in rows if row.time_ms is not None)
