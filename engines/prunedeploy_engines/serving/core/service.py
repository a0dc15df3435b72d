"""What HTTP and gRPC share: the models by their protocol names, limits for both together, the token, and who counts.

A bundle is two models to clients of the Open Inference Protocol. ``NAME`` takes tensors and gives the network's own
boxes and scores. ``NAME-detect`` takes encoded images and gives detections, so that a client needs neither letterbox
nor suppression.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy.typing as npt

from prunedeploy_engines.detection.nms import padded
from prunedeploy_engines.errors import PrunedeployError
from prunedeploy_engines.serving.core.admission import LoopLag, Visit
from prunedeploy_engines.serving.core.descriptions import model_config, model_metadata
from prunedeploy_engines.serving.core.errors import (
    InvalidRequestError,
    ModelUnavailableError,
    ServingError,
    check_in_time,
)
from prunedeploy_engines.serving.core.limits import BodyBudget
from prunedeploy_engines.serving.core.model_inputs import files_of, images_of
from prunedeploy_engines.serving.core.repository import ModelRepository, ModelState
from prunedeploy_engines.serving.core.security import Token
from prunedeploy_engines.serving.core.served_model import VERSION, ServedModel
from prunedeploy_engines.serving.core.settings import ServingSettings
from prunedeploy_engines.serving.core.shared_memory import SharedBytes, SharedRegions
from prunedeploy_engines.serving.core.tensors import InferRequest, InputTensor, fraction, raw_data, timeout_s
from prunedeploy_engines.serving.telemetry.request_notes import RequestNotes
from prunedeploy_engines.serving.telemetry.telemetry import Telemetry
from prunedeploy_engines.version import __version__

DETECT = "-detect"
_EXTENSIONS = ("binary_tensor_data", "model_repository", "model_configuration", "statistics")

_REFUSED = {
    "sequence_id": "sequences are not offered",
    "shared_memory_region": "it belongs to an input or output, not to the request",
}
_log = logging.getLogger(__name__)

Outputs = dict[str, npt.NDArray[Any]]


class Service:
    """Finds models by their protocol names and runs requests, the same for REST and gRPC.

    Args:
        repository: The repository of the bundles.

    Attributes:
        settings: The server's settings.
        budget: Counts the bodies that are held.
        regions: Shared memory of clients.
        token: Who may ask.
        telemetry: Is told of every answered request.

    Raises:
        ConfigError: Traces are asked for, and OpenTelemetry is not installed.
    """

    def __init__(self, repository: ModelRepository) -> None:
        self.repository = repository
        self.settings: ServingSettings = repository.settings
        self.budget = BodyBudget(self.settings.max_body_bytes)
        self.regions = SharedRegions(self.settings.shared_memory, self.settings.max_body_bytes)
        self.token = Token(self.settings.token)
        self._lag = LoopLag()
        self.telemetry = Telemetry(repository.metrics, self.settings.otlp_endpoint)

    def about(self) -> dict[str, Any]:
        """Name, version and extensions of the server, as the protocol's JSON."""
        shared = ("system_shared_memory",) if self.regions.offered else ()
        return {"name": "prunedeploy", "version": __version__, "extensions": [*_EXTENSIONS, *shared]}

    def bundle_of(self, name: str) -> str:
        """The bundle behind a protocol name; an unknown name is returned as it is."""
        base = name.removesuffix(DETECT)
        return base if name not in self.repository.names and base in self.repository.names else name

    def get(self, name: str, version: str | None) -> tuple[ServedModel, bool]:
        """The served model of a protocol name, and whether it is the one for encoded images.

        Raises:
            ServingError: See `ModelRepository.get`.
        """
        bundle = self.bundle_of(name)
        return self.repository.get(bundle, version), bundle != name

    def index(self, ready: bool) -> list[ModelState]:
        """The state of both names of every bundle; a bundle that is called like another's second model takes its place.

        Args:
            ready: Only those that can be asked.
        """
        first = self.repository.index()
        second = [replace(state, name=state.name + DETECT) for state in first]
        second = [state for state in second if state.name not in self.repository.names]
        return [state for state in (*first, *second) if state.state == "READY" or not ready]

    def metadata(self, name: str, version: str | None) -> dict[str, Any]:
        """Name, versions, platform, inputs and outputs, as the protocol's JSON.

        Raises:
            ServingError: See `ModelRepository.get`.
        """
        return model_metadata(name, *self.get(name, version))

    def config(self, name: str, version: str | None) -> dict[str, Any]:
        """A model's configuration, as far as Triton's model configuration extension has words for it.

        Raises:
            ServingError: See `ModelRepository.get`.
        """
        return model_config(self.metadata(name, version), self.settings)

    def statistics(self, name: str | None = None, version: str | None = None) -> dict[str, Any]:
        """Counts and times in the form of Triton's statistics extension, of one model or of all that are loaded.

        Raises:
            ServingError: See `ModelRepository.get`.
        """
        if name is not None:
            self.get(name, version)
        names = [state.name for state in self.index(ready=True)] if name is None else [name]
        known = self.repository.metrics.statistics
        return {"model_stats": [known.as_json(one, VERSION, self.bundle_of(one)) for one in names]}

    async def load(self, name: str) -> None:
        """Load or replace the bundle behind a protocol name.

        Raises:
            UnknownModelError: There is none.
            ModelUnavailableError: It cannot be loaded; why stands in the server's log only, since that names files.
        """
        try:
            await self.repository.load(self.bundle_of(name))
        except ServingError:
            raise
        except PrunedeployError as error:
            _log.error("model %s cannot be loaded: %s", self.bundle_of(name), error)
            raise ModelUnavailableError(f"model {name} cannot be loaded", fix="see the server's log") from None

    async def unload(self, name: str) -> None:
        """Unload the bundle behind a protocol name; what it has accepted is answered first.

        Raises:
            UnknownModelError: There is none.
        """
        await self.repository.unload(self.bundle_of(name))

    def deadline(self, notes: RequestNotes, *seconds: float | None) -> float:
        """When an answer must be on its way, by `time.monotonic`.

        Args:
            notes: Say when the request's head came.
            seconds: What the request allows, from then on; the soonest counts, or the default.
        """
        given = min((one for one in seconds if one is not None), default=self.settings.timeout_s)
        return notes.begun + given - min(self._lag.allowance_s(), given / 4)

    @contextmanager
    def visit(
        self, name: str, version: str | None, notes: RequestNotes, timeout: float | None = None
    ) -> Iterator[Visit]:
        """Let a request to a model in by its head; what it brings may not have come yet.

        Args:
            name: Protocol name.
            version: Version.
            notes: Of the request.
            timeout: Seconds that the protocol itself allows; None leaves the deadline to what `infer` is given.

        Raises:
            ServingError: See `ModelRepository.get` and `Admission.visit`.
        """
        model, encoded = self.get(name, version)
        deadline = None if timeout is None else self.deadline(notes, timeout)
        with model.admission.visit("files" if encoded else "tensors", deadline) as visit:
            yield visit

    def check_by_head(self, notes: RequestNotes, timeout: float | None) -> None:
        """Refuse a request that no model could take now, whichever it is for.

        Args:
            notes: Of the request.
            timeout: Seconds that the protocol itself allows; None leaves the deadline open.

        Raises:
            ServingError: See `Admission.visit`.
        """
        deadline = None if timeout is None else self.deadline(notes, timeout)
        refusal: ServingError | None = None
        for model in self.repository.loaded():
            try:
                return model.admission.look(deadline)
            except ServingError as error:
                refusal = error
        if refusal is not None:
            raise refusal

    def know(
        self, visit: Visit, notes: RequestNotes, parameters: Mapping[str, Any], images: int, *timeouts: float | None
    ) -> None:
        """Hold a request to what its beginning says; it is refused if that cannot be kept.

        Args:
            visit: Of the request.
            notes: Of the request.
            parameters: Of the whole request, ``timeout`` among them.
            images: In the request, as far as it can be told.
            timeouts: Seconds that the protocol itself allows.

        Raises:
            ServingError: See `Visit.know`.
        """
        visit.know(self.deadline(notes, timeout_s(parameters), *timeouts), min(images, self.settings.max_images))

    async def infer(self, request: InferRequest, notes: RequestNotes, visit: Visit) -> Outputs:
        """Run a request.

        Args:
            request: A request of either protocol.
            notes: Are told model, images and times.
            visit: Of the request, after `know`.

        Returns:
            Arrays by name, in the order of the model's metadata or of the request.

        Raises:
            ServingError: It is not as the model wants it, or not answered; see `ServedModel`.
        """
        model, encoded = self.get(request.model, request.version)
        notes.model, notes.version = request.model, VERSION
        for parameter, why in _REFUSED.items():
            if request.parameters.get(parameter):
                raise InvalidRequestError(f"parameters.{parameter}: {why}")
        deadline = visit.deadline or self.deadline(notes)
        names = ("boxes", "scores", "classes", "num_detections") if encoded else ("boxes", "scores")
        wanted = names if request.outputs is None else tuple(output.name for output in request.outputs)
        for index, name in enumerate(wanted):
            if name not in names:
                raise InvalidRequestError(f"outputs[{index}].name is none of {', '.join(names)}")
        only = "image" if encoded else "images"
        if len(request.inputs) != 1 or request.inputs[0].name != only:
            raise InvalidRequestError(f"inputs must be one tensor, named {only}")
        places = {one.name: (one.place, f"outputs[{number}]") for number, one in enumerate(request.outputs or ())}
        for place, field in places.values():
            if place is not None:
                self.regions.check(place, field, writing=True)
        given = self._in_memory(request.inputs[0])
        if encoded:
            files = files_of(given)
            score, iou = fraction(request.parameters, "score_threshold"), fraction(request.parameters, "iou_threshold")
            fields = [f"inputs[0].data[{index}]" for index in range(len(files))]
            found, _ = await model.detect(files, fields, score, iou, deadline, notes, visit.queued)
            outputs = padded([(one.boxes_xyxy, one.scores, one.class_ids) for one in found])
        else:
            images = images_of(given, model.input_shape, self.settings.max_images)
            notes.images = len(images)
            answer = model.infer(images, deadline)
            visit.queued()
            (boxes, scores), notes.times = await answer
            outputs = {"boxes": boxes, "scores": scores}
        check_in_time(deadline)
        for name, (place, field) in places.items():
            if place is not None:
                self.regions.write(place, outputs[name], field)
        return {name: outputs[name] for name in wanted}

    def _in_memory(self, tensor: InputTensor) -> InputTensor:
        """A tensor with its data, wherever these lie; there is one per request, so this bounds what is copied."""
        if not isinstance(tensor.data, SharedBytes):
            return tensor
        raw = self.regions.read(tensor.data, "inputs[0]")
        data = raw_data(tensor.datatype, tensor.shape, math.prod(tensor.shape), raw, "inputs[0]")
        return replace(tensor, data=data)


def refuse_content(parameters: Iterable[str]) -> None:
    """Refuse files and configurations: a client names a model, it does not bring one.

    Raises:
        InvalidRequestError: A parameter is anything but ``unload_dependents``.
    """
    for name in parameters:
        if name != "unload_dependents":
            raise InvalidRequestError(
                f"parameters.{name[:40]} is not taken: models come from the folders that the server was started with"
            )
