"""What the cells of a sweep run in: a context that only plans, one that is observed, and data opened once for many."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prunedeploy.config import BuildConfig, as_dict
from prunedeploy.pipeline.context import BuildContext, StageResult, open_context
from prunedeploy.pipeline.imported import with_imported_network
from prunedeploy.pipeline.progress import Progress
from prunedeploy.pipeline.store.key import StageKey, canonical_json, read_record
from prunedeploy.pipeline.store.store import Store
from prunedeploy_engines.errors import StoreError


class Contexts:
    """Opens contexts, and the data of successive configurations that share it only once."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._last: tuple[str, int, BuildContext] | None = None

    def fields(self, config: BuildConfig, store: Store) -> dict[str, Any]:
        """What a `BuildContext` of a configuration is made of; it has no results yet.

        Raises:
            PrunedeployError: As `open_context`.
        """
        config = with_imported_network(config, store.root).with_divided_steps()
        data = as_dict(config.data)
        del data["greyscale"]  # read image by image
        key = canonical_json([as_dict(config.model), data, config.device, config.threads, config.pretrain.start])
        last = self._last
        if last is None or last[0] != key or (last[1] != config.seed and _is_drawn(last[2])):
            last = self._last = key, config.seed, open_context(config, store, self._progress)
        return {**vars(last[2]), "config": config, "store": store, "results": []}


def _is_drawn(context: BuildContext) -> bool:
    """Which images are for training depends on the seed: it is a subset, or there is one JSON for both."""
    return context.config.data.train_images is not None or context.training.json_path == context.test.json_path


@dataclass(frozen=True)
class PlannedStage:
    """A stage that a cell needs.

    Attributes:
        name: Name of the stage.
        digest: Digest of its key.
        seconds: What computing it took; None if the store does not have it.
        bytes: What it takes on the disk; likewise.
    """

    name: str
    digest: str
    seconds: float | None
    bytes: int | None

    @property
    def is_done(self) -> bool:
        """The store has it."""
        return self.seconds is not None


@dataclass
class PlanningContext(BuildContext):
    """Computes keys and nothing else: a key depends on the digests of earlier keys, not on their results.

    Attributes:
        known: Stages that were looked up in the store, by digest; shared by the cells of a sweep.
        planned: Stages of this cell, in their order.
    """

    known: dict[str, PlannedStage] = field(default_factory=dict)
    planned: list[PlannedStage] = field(default_factory=list)

    @contextmanager
    def stage(
        self,
        name: str,
        version: int,
        config: Mapping[str, Any],
        inputs: Mapping[str, str],
        *,
        machine: str | None = None,
        **_: Any,
    ) -> Iterator[StageResult]:
        """Give where the result is or will be, and nothing to compute."""
        key = StageKey(name, version, config, inputs, machine)
        folder = self.store.folder(key)
        stage = self.known.get(key.digest)
        if stage is None:
            stage = self.known[key.digest] = _look_up(folder, key)
        self.planned.append(stage)
        result = StageResult(name, folder, key.digest, seconds=stage.seconds or 0.0)
        self.results.append(result)
        yield result


def _look_up(folder: Path, key: StageKey) -> PlannedStage:
    """By the record alone: whether the files are whole is seen when they are used."""
    try:
        record = read_record(folder)
    except StoreError:
        return PlannedStage(key.name, key.digest, None, None)
    return PlannedStage(key.name, key.digest, float(record["seconds"]), int(record["bytes"]))


@dataclass
class ObservedContext(BuildContext):
    """Says of every stage that it is done.

    Attributes:
        observe: Called with it.
    """

    observe: Callable[[StageResult], None] = lambda result: None

    @contextmanager
    def stage(self, *key: Any, **more: Any) -> Iterator[StageResult]:
        """As `BuildContext.stage`."""
        with super().stage(*key, **more) as result:
            yield result
        self.observe(result)
