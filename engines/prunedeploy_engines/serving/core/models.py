"""The two models that a bundle is to clients of the Open Inference Protocol.

``NAME`` takes tensors and gives the network's own boxes and scores. ``NAME-detect`` takes encoded images and gives
detections, so that a client needs neither letterbox nor suppression.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from prunedeploy_engines.detection.detections import Detections
from prunedeploy_engines.serving.core.errors import InvalidRequestError, TooLargeError
from prunedeploy_engines.serving.core.image_room import ImageRoom
from prunedeploy_engines.serving.core.repository import ModelRepository, ModelState
from prunedeploy_engines.serving.core.served_model import ServedModel
from prunedeploy_engines.serving.core.settings import ServingSettings
from prunedeploy_engines.serving.core.tensors import BYTES, InferAnswer, InferRequest, InputTensor, fraction, timeout_s
from prunedeploy_engines.serving.telemetry.request_notes import RequestNotes
from prunedeploy_engines.version import __version__

DETECT = "-detect"
SERVER = {
    "name": "prunedeploy",
    "version": __version__,
    "extensions": ["binary_tensor_data", "model_repository"],
}

# Rounding in a client's resizing may leave [0, 1] a little; pixels of 0 to 255 leave it by far.
_SLACK = 0.01
_REFUSED = {"sequence_id": "sequences are not offered", "shared_memory_region": "shared memory is not offered"}


class ProtocolModels:
    """Finds models by their protocol names and runs requests, the same for REST and gRPC.

    Args:
        repository: The repository of the bundles.
        settings: Limits and the default deadline.
        room: For decoded images.
    """

    def __init__(self, repository: ModelRepository, settings: ServingSettings, room: ImageRoom) -> None:
        self.repository = repository
        self.settings = settings
        self.room = room

    def names(self) -> list[str]:
        """Both names of every bundle; a bundle that is called like another's second model takes its place."""
        bundles = self.repository.names
        return [*bundles, *(name + DETECT for name in bundles if name + DETECT not in bundles)]

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

    def index(self) -> list[ModelState]:
        """The state of every protocol name, in the order of `names`."""
        bundles = {state.name: state for state in self.repository.index()}
        return [replace(bundles[self.bundle_of(name)], name=name) for name in self.names()]

    def metadata(self, name: str, version: str | None) -> dict[str, Any]:
        """Name, versions, platform, inputs and outputs, as the protocol's JSON.

        Raises:
            ServingError: See `ModelRepository.get`.
        """
        model, encoded = self.get(name, version)
        height, width = model.input_size
        if encoded:
            inputs = [("image", BYTES, [-1])]
            outputs = [
                ("boxes", "FP32", [-1, -1, 4]),
                ("scores", "FP32", [-1, -1]),
                ("classes", "INT64", [-1, -1]),
                ("num_detections", "INT32", [-1]),
            ]
        else:
            # Either type is taken, see `_raw`; it names the one that reaches the network without a detour.
            inputs = [("images", "UINT8" if model.takes_uint8 else "FP32", [-1, 3, height, width])]
            classes = len(model.bundle.class_names)
            outputs = [("boxes", "FP32", [-1, -1, 4]), ("scores", "FP32", [-1, -1, classes])]
        return {
            "name": name,
            "versions": [model.version],
            "platform": "ensemble" if encoded else model.platform,
            "inputs": [_described(*one) for one in inputs],
            "outputs": [_described(*one) for one in outputs],
        }

    def deadline(self, *seconds: float | None) -> float:
        """When a request must be answered, by `time.monotonic`: the soonest of what it asks for, or the default."""
        given = [one for one in seconds if one is not None]
        return time.monotonic() + min(given, default=self.settings.timeout_s)

    async def infer(self, request: InferRequest, notes: RequestNotes, *other_timeouts: float | None) -> InferAnswer:
        """Run a request.

        Args:
            request: A request of either protocol.
            notes: Are told model, images and times.
            other_timeouts: Seconds that the protocol itself allows, beside the parameter ``timeout``.

        Raises:
            ServingError: It is not as the model wants it, or not answered; see `ServedModel`.
        """
        model, encoded = self.get(request.model, request.version)
        notes.model, notes.version = request.model, model.version
        for parameter, why in _REFUSED.items():
            if request.parameters.get(parameter):
                raise InvalidRequestError(f"parameters.{parameter}: {why}")
        deadline = self.deadline(timeout_s(request.parameters), *other_timeouts)
        names = ("boxes", "scores", "classes", "num_detections") if encoded else ("boxes", "scores")
        wanted = names if request.outputs is None else tuple(output.name for output in request.outputs)
        for index, name in enumerate(wanted):
            if name not in names:
                raise InvalidRequestError(f"outputs[{index}].name is none of {', '.join(names)}")
        tensor = self._only_input(request.inputs, "image" if encoded else "images")
        run = self._detect if encoded else self._raw
        outputs = await run(model, tensor, request, deadline, notes)
        return InferAnswer(request.model, model.version, request.id, {name: outputs[name] for name in wanted})

    def check_count(self, count: int, field: str) -> None:
        """Refuse no images, and more than one request may have.

        Raises:
            InvalidRequestError: None.
            TooLargeError: Too many.
        """
        if count < 1:
            raise InvalidRequestError(f"{field} has no image")
        if count > self.settings.max_images:
            raise TooLargeError(f"{field} has {count} images, more than the limit of {self.settings.max_images}")

    def _only_input(self, inputs: Sequence[InputTensor], name: str) -> InputTensor:
        if len(inputs) != 1 or inputs[0].name != name:
            raise InvalidRequestError(f"inputs must be one tensor, named {name}")
        return inputs[0]

    async def _raw(
        self, model: ServedModel, tensor: InputTensor, request: InferRequest, deadline: float, notes: RequestNotes
    ) -> dict[str, npt.NDArray[Any]]:
        wanted = (3, *model.input_size)
        shape = f"(N, {', '.join(map(str, wanted))})"
        if tensor.datatype not in ("FP32", "UINT8"):
            raise InvalidRequestError("inputs[0].datatype: images must be FP32 in [0, 1], or UINT8")
        images = tensor.data
        if not isinstance(images, np.ndarray) or images.ndim != 4 or images.shape[1:] != wanted:
            raise InvalidRequestError(f"inputs[0].shape: images must be {shape}, got {list(tensor.shape)}")
        self.check_count(len(images), "inputs[0]")
        notes.images = len(images)
        if tensor.datatype == "FP32":
            low, high = images.min(), images.max()
            # Written so that NaN, which min and max pass on, is refused too.
            if not (low >= -_SLACK and high <= 1 + _SLACK):
                raise InvalidRequestError("inputs[0]: images has values outside of [0, 1]", fix="divide by 255")
        outputs, times = await model.infer(images, deadline=deadline)
        notes.times = times
        return outputs

    async def _detect(
        self, model: ServedModel, tensor: InputTensor, request: InferRequest, deadline: float, notes: RequestNotes
    ) -> dict[str, npt.NDArray[Any]]:
        if tensor.datatype != BYTES or not isinstance(tensor.data, list) or len(tensor.shape) not in (1, 2):
            raise InvalidRequestError("inputs[0]: image must be BYTES (N,), each a JPEG, PNG or WebP file")
        score, iou = fraction(request.parameters, "score_threshold"), fraction(request.parameters, "iou_threshold")
        fields = [f"inputs[0].data[{index}]" for index in range(len(tensor.data))]
        found, *_ = await self.detect(model, tensor.data, fields, score, iou, deadline, notes)
        return padded(found)

    async def detect(
        self,
        model: ServedModel,
        images: Sequence[bytes | memoryview],
        fields: Sequence[str],
        score_threshold: float | None,
        iou_threshold: float | None,
        deadline: float,
        notes: RequestNotes,
        keep: bool = False,
    ) -> tuple[list[Detections], list[tuple[int, int]], list[npt.NDArray[np.uint8]]]:
        """Decode images and find objects in them.

        Args:
            model: Where.
            images: JPEG, PNG or WebP.
            fields: Where each stands in the request, for messages.
            score_threshold: In [0, 1]; None takes the bundle's.
            iou_threshold: In [0, 1]; None takes the bundle's.
            deadline: By `time.monotonic`.
            notes: Are told images and times.
            keep: Return the pixels, to draw into them.

        Returns:
            Detections of each image, its (height, width), and its pixels if they are kept.

        Raises:
            ServingError: See `ImageRoom.decoded` and `ServedModel.detect`.
        """
        self.check_count(len(images), "the request")
        notes.images = len(images)
        begun = time.monotonic()
        async with self.room.decoded(model, images, fields, deadline) as pixels:
            decoded = time.monotonic()
            found, times = await model.detect(
                pixels, score_threshold=score_threshold, iou_threshold=iou_threshold, deadline=deadline
            )
            times.decode_s = decoded - begun
            notes.times = times
            return found, [(one.shape[0], one.shape[1]) for one in pixels], pixels if keep else []


def padded(found: Sequence[Detections]) -> dict[str, npt.NDArray[Any]]:
    """Stack detections of several images, with zeros up to the largest number K.

    Returns:
        ``boxes`` ``(N, K, 4)`` float32 xyxy in pixels of each image, ``scores`` ``(N, K)`` float32, ``classes``
        ``(N, K)`` int64 and ``num_detections`` ``(N,)`` int32.
    """
    most = max(map(len, found))
    boxes = np.zeros((len(found), most, 4), np.float32)
    scores = np.zeros((len(found), most), np.float32)
    classes = np.zeros((len(found), most), np.int64)
    for row, one in enumerate(found):
        boxes[row, : len(one)] = one.boxes_xyxy
        scores[row, : len(one)] = one.scores
        classes[row, : len(one)] = one.class_ids
    counts = np.array([len(one) for one in found], np.int32)
    return {"boxes": boxes, "scores": scores, "classes": classes, "num_detections": counts}


def _described(name: str, datatype: str, shape: list[int]) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape}
