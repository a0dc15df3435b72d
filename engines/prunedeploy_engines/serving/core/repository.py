"""The models by name: loaded, replaced and unloaded without losing a request.

Names and folders are fixed by whoever starts the server; a request can only choose a name.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from prunedeploy_engines.bundle import load_bundle
from prunedeploy_engines.errors import PrunedeployError
from prunedeploy_engines.serving.core.errors import ModelUnavailableError, UnknownModelError
from prunedeploy_engines.serving.core.image_room import ImageRoom
from prunedeploy_engines.serving.core.served_model import VERSION, ServedModel
from prunedeploy_engines.serving.core.settings import ServingSettings

if TYPE_CHECKING:
    from prunedeploy_engines.serving.telemetry.metrics import Metrics

State = Literal["READY", "LOADING", "UNLOADING", "UNAVAILABLE"]
UNLOADED = "unloaded"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelState:
    """What the protocol's index says of a model; ``reason`` is empty where all is well."""

    name: str
    version: str
    state: State
    reason: str = ""


class ModelRepository:
    """All models of a server; its methods run on the server's event loop.

    Loading and unloading go on to their end even when whoever asked for it is gone: neither may stop half-way.

    Args:
        bundles: Folders by name.
        settings: The server's settings.
        metrics: Are told of queues, batches and states.

    Attributes:
        stopping: The server was told to stop; what comes over open connections is still answered.
    """

    def __init__(self, bundles: Mapping[str, Path], settings: ServingSettings, metrics: Metrics) -> None:
        self.settings = settings
        self.metrics = metrics
        self._folders = dict(bundles)
        self._served: dict[str, ServedModel] = {}
        self._states = {name: ModelState(name, VERSION, "UNAVAILABLE", "not loaded") for name in bundles}
        self._locks = {name: asyncio.Lock() for name in bundles}
        self._tasks: set[asyncio.Task[None]] = set()
        self._room = ImageRoom(settings.max_pixels)
        self.stopping = False

    @property
    def names(self) -> tuple[str, ...]:
        """All names, loaded or not."""
        return tuple(self._folders)

    def ready(self) -> bool:
        """Every model answers but those that were unloaded on request, and the server is not stopping."""
        wanted = [state.state for state in self._states.values() if state.reason != UNLOADED]
        return not self.stopping and bool(wanted) and all(state == "READY" for state in wanted)

    def index(self) -> list[ModelState]:
        """Every model and its state, in the order they were named in."""
        return list(self._states.values())

    def loaded(self) -> list[ServedModel]:
        """Those that answer."""
        return list(self._served.values())

    def get(self, name: str, version: str | None = None) -> ServedModel:
        """The model of a name, whatever is replaced later: it answers, or its successor does.

        Raises:
            UnknownModelError: There is no such name or version.
            ModelUnavailableError: It is not loaded.
        """
        self._known(name)
        if version not in (None, "", VERSION):
            raise UnknownModelError(f"model {name} has version {VERSION} only, not {version[:20]!r}")
        served = self._served.get(name)
        if served is None:
            raise ModelUnavailableError(f"model {name} is not loaded")
        return served

    async def load(self, name: str) -> None:
        """Load a model, or replace the loaded one by what its folder holds now.

        Every file is verified and the runners are warmed up before the first request goes to the new one; what the old
        one has accepted, the old one answers. If it cannot be loaded, the old one stays.

        Raises:
            UnknownModelError: There is no such name.
            ModelUnavailableError: The server is stopping.
            PrunedeployError: It cannot be loaded; the line is for the operator, since it names files.
        """
        self._known(name)
        await self._to_its_end(self._load(name))

    async def unload(self, name: str) -> None:
        """Unload a model; what it has accepted is answered first. Nothing happens if it is not loaded.

        Raises:
            UnknownModelError: There is no such name.
        """
        self._known(name)
        await self._to_its_end(self._unload(name))

    def stop_being_ready(self) -> None:
        """Tell whoever asks that the server stops; requests are still answered."""
        self.stopping = True

    async def close(self) -> None:
        """Unload everything; what was accepted is answered."""
        self.stop_being_ready()
        await asyncio.gather(*(self.unload(name) for name in self._folders))
        self._room.close()

    async def _load(self, name: str) -> None:
        async with self._locks[name]:
            if self.stopping:
                raise ModelUnavailableError("the server is stopping")
            old = self._served.get(name)
            if old is None:
                self._set(name, "LOADING")
            try:
                new = await asyncio.to_thread(self._open, name)
            except BaseException as error:
                if old is None:
                    self._set(name, "UNAVAILABLE", "it could not be loaded")
                if isinstance(error, Exception) and not isinstance(error, PrunedeployError):
                    _log.exception("model %s could not be loaded", name)
                raise
            self._served[name] = new
            self._set(name, "READY")
            if old is not None:
                old.replaced_by(new)
                await old.close()

    async def _unload(self, name: str) -> None:
        async with self._locks[name]:
            served = self._served.pop(name, None)
            if served is None:
                return
            self._set(name, "UNLOADING")
            try:
                await served.close()
            finally:
                self._set(name, "UNAVAILABLE", UNLOADED)

    async def _to_its_end(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)  # the loop itself holds tasks weakly
        task.add_done_callback(self._ended)
        await asyncio.shield(task)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # is seen as retrieved; whoever waits gets it, and nobody may wait

    def _open(self, name: str) -> ServedModel:
        return ServedModel(name, load_bundle(self._folders[name]), self.settings, self._room, self.metrics)

    def _known(self, name: str) -> None:
        if name not in self._folders:
            raise UnknownModelError(f"there is no model {name[:100]!r}", fix=f"ask for {', '.join(self._folders)}")

    def _set(self, name: str, state: State, reason: str = "") -> None:
        self._states[name] = ModelState(name, VERSION, state, reason)
        self.metrics.model_state(name, state == "READY")
