"""Every stage of a sweep, which of them are in the store, and what the others will take.

Nothing is computed: see `PlanningContext`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from statistics import fmean

from prunedeploy.config import BuildConfig, as_dict
from prunedeploy.pipeline.context import BuildContext, StageResult
from prunedeploy.pipeline.networks import unpruned_networks
from prunedeploy.pipeline.progress import Progress
from prunedeploy.pipeline.stages.granularity import check_reachable, cut_settings
from prunedeploy.pipeline.store.key import canonical_json
from prunedeploy.pipeline.store.store import Store
from prunedeploy.study.rows.rows import CellKey
from prunedeploy.study.sweep.cell import timed_stage, timing_runtime, trained_stages
from prunedeploy.study.sweep.contexts import Contexts, PlannedStage, PlanningContext
from prunedeploy.study.sweep.grid import Cell
from prunedeploy_engines.errors import ConfigError, PruningError

Unpruned = tuple[StageResult, StageResult]


@dataclass(frozen=True)
class PlannedCell:
    """A cell and its stages.

    Attributes:
        cell: A cell of the grid.
        training: All stages but the measurement of latency.
        timing: That one; None where no configured runtime runs here.
        error: Why the cell cannot be done at all; then it has no stages.
        network: Where the finished network is; None if the store does not have it.
    """

    cell: Cell
    training: tuple[PlannedStage, ...] = ()
    timing: PlannedStage | None = None
    error: str | None = None
    network: StageResult | None = None

    @property
    def stages(self) -> tuple[PlannedStage, ...]:
        """All of them."""
        return self.training + (() if self.timing is None else (self.timing,))

    @property
    def is_trained(self) -> bool:
        """The store has everything but the measurement."""
        return all(stage.is_done for stage in self.training)


@dataclass(frozen=True)
class StageCount:
    """The stages of one name.

    Attributes:
        name: Name of the stage.
        total: How many different ones.
        done: How many the store has.
        seconds_left: What the others will take one after the other; None: none of this name was measured yet.
        bytes_left: What they will take on the disk; likewise.
    """

    name: str
    total: int
    done: int
    seconds_left: float | None
    bytes_left: float | None


@dataclass(frozen=True)
class Plan:
    """The stages of some cells, a shared one counted once.

    Attributes:
        cells: In the order of the grid.
    """

    cells: tuple[PlannedCell, ...]

    @cached_property
    def stages(self) -> dict[str, tuple[PlannedStage, CellKey]]:
        """By digest, with the first cell that needs it."""
        found: dict[str, tuple[PlannedStage, CellKey]] = {}
        for planned in self.cells:
            for stage in planned.stages:
                found.setdefault(stage.digest, (stage, planned.cell.key))
        return found

    @property
    def done(self) -> int:
        """How many stages the store has."""
        return sum(stage.is_done for stage, _ in self.stages.values())

    @property
    def bytes_done(self) -> int:
        """What these take on the disk."""
        return sum(stage.bytes or 0 for stage, _ in self.stages.values())

    def counts(self, measured_in: Plan | None = None) -> list[StageCount]:
        """By name, in the order of a cell's stages.

        Args:
            measured_in: Whose stages estimates are taken from; None: this one's.
        """
        measured = _Measured((measured_in or self).stages.values())
        by_name = defaultdict[str, list[tuple[PlannedStage, CellKey]]](list)
        for stage, key in self.stages.values():
            by_name[stage.name].append((stage, key))
        counts = []
        for name, stages in by_name.items():
            left = [measured.like(name, key) for stage, key in stages if not stage.is_done]
            known = [one for one in left if one is not None]
            seconds, size = sum(seconds for seconds, _ in known), sum(size for _, size in known)
            estimate = (seconds, size) if len(known) == len(left) else (None, None)
            counts.append(StageCount(name, len(stages), len(stages) - len(left), *estimate))
        return counts


class _Measured:
    """What stages took, by what they have in common: configuration and ratio, then configuration, then name alone."""

    def __init__(self, stages: Iterable[tuple[PlannedStage, CellKey]]) -> None:
        self._found = defaultdict[tuple[object, ...], list[PlannedStage]](list)
        for stage, key in stages:
            for shared in (0, 1, 2) if stage.is_done else ():
                self._found[(stage.name, *key[:shared])].append(stage)

    def like(self, name: str, key: CellKey) -> tuple[float, float] | None:
        """Mean seconds and bytes of the most similar stages; None if there are none of this name."""
        for shared in (2, 1, 0):
            if stages := self._found.get((name, *key[:shared])):
                return fmean(stage.seconds or 0.0 for stage in stages), fmean(stage.bytes or 0 for stage in stages)
        return None


def plan_sweep(cells: Iterable[Cell], store: Store, progress: Progress) -> Plan:
    """Look up every stage of some cells.

    Raises:
        PrunedeployError: The data or the network cannot be used. A cell whose ratio cannot be reached is no error here.
    """
    contexts, unpruned = Contexts(progress), partial(_unpruned, {})
    unreachable: dict[str, str | None] = {}
    known: dict[str, PlannedStage] = {}
    planned = []
    for cell in cells:
        context = PlanningContext(**contexts.fields(cell.config, store), known=known)
        # The same in all runs.
        cut = canonical_json([as_dict(cell.config.model), cut_settings(cell.config), cell.config.sparse_weights])
        if cut not in unreachable:
            unreachable[cut] = _why_unreachable(cell.config)
        if error := unreachable[cut]:
            planned.append(PlannedCell(cell, error=error))
            continue
        stages = trained_stages(context, cell.is_reference, unpruned)
        training = tuple(context.planned)
        runtime = timing_runtime(context)
        if runtime is not None:
            timed_stage(context, stages, runtime)
        timing = next(iter(context.planned[len(training) :]), None)
        network = stages.network if known[stages.network.digest].is_done else None
        planned.append(PlannedCell(cell, training, timing, network=network))
    return Plan(tuple(planned))


def _why_unreachable(config: BuildConfig) -> str | None:
    try:
        check_reachable(config)
    except (PruningError, ConfigError) as error:
        return str(error)
    return None


def _unpruned(found: dict[str, tuple[Unpruned, list[PlannedStage]]], context: BuildContext) -> Unpruned:
    """The networks before the cut, planned once for all cells that share them: their keys hash whole weight files."""
    assert isinstance(context, PlanningContext), "a context that computes has results of its own to record"
    config = context.config
    blocks = [as_dict(block) for block in (config.model, config.data, config.pretrain)]
    key = canonical_json([*blocks, config.seed, config.device, config.threads])
    if key not in found:
        before = len(context.planned)
        found[key] = unpruned_networks(context), context.planned[before:]
        return found[key][0]
    networks, stages = found[key]
    context.planned += stages
    context.results += networks
    return networks
