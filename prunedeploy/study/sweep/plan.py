"""Every stage of a sweep, which of them are in the store, and what the others will take.

Nothing is computed: see `PlanningContext`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean

from prunedeploy.config import as_dict
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
        network: Where the finished network is or will be; None if there is an error.
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

    @property
    def has_network(self) -> bool:
        """The store has the finished network."""
        digest = None if self.network is None else self.network.digest
        return any(stage.is_done and stage.digest == digest for stage in self.training)


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
        by_name: dict[str, list[tuple[PlannedStage, CellKey]]] = {}
        for stage, key in self.stages.values():
            by_name.setdefault(stage.name, []).append((stage, key))
        counts = []
        for name, stages in by_name.items():
            left = [measured.like(stage.name, key) for stage, key in stages if not stage.is_done]
            known = [one for one in left if one is not None]
            unknown = len(known) < len(left)
            counts.append(
                StageCount(
                    name,
                    len(stages),
                    len(stages) - len(left),
                    None if unknown else sum(seconds for seconds, _ in known),
                    None if unknown else sum(size for _, size in known),
                )
            )
        return counts


class _Measured:
    """What stages took, by what they have in common: configuration and ratio, then configuration, then name alone."""

    def __init__(self, stages: Iterable[tuple[PlannedStage, CellKey]]) -> None:
        self._found: dict[tuple[object, ...], list[PlannedStage]] = {}
        for stage, key in stages:
            if stage.is_done:
                for group in self._groups(stage.name, key):
                    self._found.setdefault(group, []).append(stage)

    def like(self, name: str, key: CellKey) -> tuple[float, float] | None:
        """Mean seconds and bytes of the most similar stages; None if there are none of this name."""
        for group in self._groups(name, key):
            if stages := self._found.get(group):
                return fmean(stage.seconds or 0.0 for stage in stages), fmean(stage.bytes or 0 for stage in stages)
        return None

    @staticmethod
    def _groups(name: str, key: CellKey) -> Iterator[tuple[object, ...]]:
        yield name, key[0], key[1]
        yield name, key[0]
        yield (name,)


def plan_sweep(cells: Iterable[Cell], store: Store, progress: Progress) -> Plan:
    """Look up every stage of some cells.

    Raises:
        PrunedeployError: The data or the network cannot be used. A cell whose ratio cannot be reached is no error here.
    """
    contexts, shared, unreachable = Contexts(progress), _Unpruned(), _Unreachable()
    known: dict[str, PlannedStage] = {}
    planned = []
    for cell in cells:
        context = PlanningContext(**contexts.fields(cell.config, store), known=known)
        if error := unreachable(cell):
            planned.append(PlannedCell(cell, error=error))
            continue
        stages = trained_stages(context, cell.is_reference, shared)
        training = tuple(context.planned)
        runtime = timing_runtime(context)
        if runtime is not None:
            timed_stage(context, stages, runtime)
        timing = next(iter(context.planned[len(training) :]), None)
        planned.append(PlannedCell(cell, training, timing, network=stages.network))
    return Plan(tuple(planned))


@dataclass
class _Unreachable:
    """Why a cell's ratio cannot be reached, worked out once for all runs."""

    _found: dict[str, str | None] = field(default_factory=dict)

    def __call__(self, cell: Cell) -> str | None:
        key = canonical_json([as_dict(cell.config.model), cut_settings(cell.config), cell.config.sparse_weights])
        if key not in self._found:
            try:
                check_reachable(cell.config)
            except (PruningError, ConfigError) as error:
                self._found[key] = str(error)
            else:
                self._found[key] = None
        return self._found[key]


@dataclass
class _Unpruned:
    """The networks before the cut, planned once for all cells that share them: their keys hash whole weight files."""

    _found: dict[str, tuple[Unpruned, list[PlannedStage]]] = field(default_factory=dict)

    def __call__(self, context: BuildContext) -> Unpruned:
        assert isinstance(context, PlanningContext), "a context that computes has results of its own to record"
        config = context.config
        blocks = [as_dict(block) for block in (config.model, config.data, config.pretrain)]
        key = canonical_json([*blocks, config.seed, config.device, config.threads])
        if key not in self._found:
            before = len(context.planned)
            networks = unpruned_networks(context)
            self._found[key] = networks, context.planned[before:]
        else:
            networks, stages = self._found[key]
            context.planned += stages
            context.results += networks
        return networks
