"""One loaded bundle: tensors or images in, boxes or detections out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from prunedeploy_engines.detection.detections import Detections
from prunedeploy_engines.detection.letterbox import LetterboxGeometry, unit_pixels
from prunedeploy_engines.errors import BundleError, RuntimeUnavailableError
from prunedeploy_engines.runtimes.opening import RUNTIMES, unavailable_reason
from prunedeploy_engines.serving.core.admission import Admission
from prunedeploy_engines.serving.core.batch_parts import Output
from prunedeploy_engines.serving.core.batching import Batcher
from prunedeploy_engines.serving.core.decoding import decode_image
from prunedeploy_engines.serving.core.errors import DeadlineError
from prunedeploy_engines.serving.core.image_room import ImageRoom
from prunedeploy_engines.serving.core.limits import check_count
from prunedeploy_engines.serving.core.model_inputs import interleaved
from prunedeploy_engines.serving.core.settings import ServingSettings
from prunedeploy_engines.serving.telemetry.request_notes import RequestNotes, StageTimes

if TYPE_CHECKING:
    from prunedeploy_engines.bundle import Bundle
    from prunedeploy_engines.runtimes.runner import Float32Array, Images, Runner
    from prunedeploy_engines.serving.telemetry.metrics import Metrics

Pixels = npt.NDArray[np.uint8]

VERSION = "1"
"""A bundle is replaced under its name, so there is one version of a model at a time."""


class ServedModel:
    """A bundle with its runners, which are opened and each run once at the smallest and the largest batch.

    Args:
        name: That clients will know it by.
        bundle: Verified.
        settings: Runtime, precision, workers, batching.
        room: For images.
        metrics: Are told of queue and batches.

    Attributes:
        name: That clients know it by.
        bundle: What it was made from.
        runtime: What runs it.
        precision: Which of the bundle's files.
        admission: Lets requests in.
        takes_uint8: The network takes bytes; see `infer`.

    Raises:
        PrunedeployError: The runtime or device is not there, the bundle has no such file, or it does not load.
    """

    def __init__(self, name: str, bundle: Bundle, settings: ServingSettings, room: ImageRoom, metrics: Metrics) -> None:
        self.name = name
        self.bundle = bundle
        self.runtime = settings.runtime or usable_runtime(bundle)
        self.precision = settings.precision
        self._max_images = settings.max_images
        self._room = room
        self._successor: ServedModel | None = None
        self._batcher = Batcher(
            name,
            partial(_open_runner, bundle, self.runtime, settings),
            workers=settings.workers,
            max_batch=settings.max_batch,
            max_delay_s=settings.max_delay_ms / 1e3,
            max_queue=settings.max_queue,
            metrics=metrics,
        )
        self.admission = Admission(name, self._batcher, settings.max_queue)
        self.takes_uint8 = self._batcher.open().uint8_input

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """``(channels, height, width)`` of one image."""
        return self.bundle.manifest.input.channels, *self.bundle.input_size

    def infer(self, images: Images, deadline: float) -> asyncio.Future[tuple[Output, StageTimes]]:
        """Run the network.

        Args:
            images: ``(N, 3, H, W)`` RGB, letterboxed; float32 in [0, 1], or uint8. A network that takes uint8 gets
                those bytes as they are; another sees what `detect` would show it.
            deadline: By `time.monotonic`.

        Returns:
            A future, see `Batcher.infer`.
        """
        if images.dtype == np.uint8:
            pixels: Any = images
            images = interleaved(pixels) if self.takes_uint8 else unit_pixels(pixels)
        return self._batcher.infer(images, deadline)

    async def detect(
        self,
        images: Sequence[bytes | memoryview],
        fields: Sequence[str],
        score_threshold: float | None,
        iou_threshold: float | None,
        deadline: float,
        notes: RequestNotes,
        queued: Callable[[], object] = lambda: None,
    ) -> tuple[list[Detections], list[Pixels]]:
        """Decode images and find objects in them; the same functions as `Bundle.detect`.

        Args:
            images: JPEG, PNG or WebP.
            fields: Where each stands in the request, for messages.
            score_threshold: In [0, 1]; None takes the bundle's.
            iou_threshold: In [0, 1]; None takes the bundle's.
            deadline: By `time.monotonic`.
            notes: Are told images and times.
            queued: Is called when the images wait for a runner.

        Returns:
            Detections of each image, in its pixels; and these, ``(H, W, 3)`` uint8 RGB.

        Raises:
            ServingError: See `check_count`, `ImageRoom.opened`, `decode_image` and `Batcher.infer`.
        """
        check_count(len(images), self._max_images, "the request")
        notes.images = len(images)
        begun = time.monotonic()
        async with self._room.opened(images, fields, deadline) as opened:
            held: list[Any] = opened
            model = self
            while True:
                batch, geometries, preprocess_s = await model._batch_of(held, fields, deadline, notes)
                if model._successor is None:
                    break
                model = model._successor  # replaced meanwhile, perhaps by one of another input size
            decode_s = time.monotonic() - begun - preprocess_s
            answer = model._batcher.infer(batch, deadline)
            queued()
            (boxes, scores), times = await answer
            answered = time.monotonic()
            found = await self._room.beside(
                model._detections, boxes, scores, geometries, score_threshold, iou_threshold
            )
            times.decode_s, times.preprocess_s = decode_s, preprocess_s
            times.postprocess_s = time.monotonic() - answered
            notes.times = times
            return found, held

    def replaced_by(self, successor: ServedModel) -> None:
        """Let another one answer what comes from now on through this object."""
        self._successor = successor

    async def close(self) -> None:
        """Answer what was accepted, then release the runners."""
        self._batcher.refuse()
        await asyncio.get_running_loop().run_in_executor(None, self._batcher.close)

    async def _batch_of(
        self, images: list[Any], fields: Sequence[str], deadline: float, notes: RequestNotes
    ) -> tuple[Images, list[LetterboxGeometry], float]:
        """Make network input of images, beside the event loop and one by one, so that other requests get their turn.

        Args:
            images: Opened ones, which are replaced by their pixels; or pixels.
            fields: Where each stands in the request.
            deadline: By `time.monotonic`; what is too late is not decoded.
            notes: Are told what there is to say about a file.

        Returns:
            The input, where each image lies in it, and the seconds that it took beyond decoding.
        """
        tensors, geometries, seconds = [], [], 0.0
        for index, field in enumerate(fields):
            images[index], tensor, geometry, took = await self._room.beside(
                self._prepared, images[index], field, deadline, notes
            )
            tensors.append(tensor)
            geometries.append(geometry)
            seconds += took
        if len(tensors) == 1:
            return tensors[0][None], geometries, seconds
        begun = time.monotonic()
        batch = await self._room.beside(np.stack, tensors)
        return batch, geometries, seconds + time.monotonic() - begun

    def _prepared(
        self, image: Any, field: str, deadline: float, notes: RequestNotes
    ) -> tuple[Pixels, Any, LetterboxGeometry, float]:
        if time.monotonic() >= deadline:
            raise DeadlineError("the deadline passed before the images were decoded")
        pixels = image if isinstance(image, np.ndarray) else decode_image(image, field, notes.remarks.append)
        begun = time.monotonic()
        tensor, geometry = self.bundle.prepare(pixels, uint8=self.takes_uint8)
        return pixels, tensor, geometry, time.monotonic() - begun

    def _detections(
        self,
        boxes: Float32Array,
        scores: Float32Array,
        geometries: Sequence[LetterboxGeometry],
        score_threshold: float | None,
        iou_threshold: float | None,
    ) -> list[Detections]:
        score = self.bundle.score_threshold(self.precision) if score_threshold is None else score_threshold
        return [
            self.bundle.detections(*one, score_threshold=score, iou_threshold=iou_threshold)
            for one in zip(boxes, scores, geometries, strict=True)
        ]


def _open_runner(bundle: Bundle, runtime: str, settings: ServingSettings) -> Runner:
    device = None
    if runtime == "tensorrt":
        from prunedeploy_engines.runtimes.tensorrt.library import cuda_device

        device = cuda_device()
    runner = bundle.runner(
        runtime,
        settings.precision,
        threads=settings.threads,
        target=None if device is None else device.target,  # what an engine must have been built for to run here
        allow_spinning=False,  # spinning threads would take the cores from the server itself
        in_process=True,  # there is no PyTorch here, and a request is not to wait for pipes
    )
    try:
        for size in sorted({1, settings.max_batch}):
            runner.infer(np.zeros((size, runner.channels, *bundle.input_size), np.float32))
    except BaseException:
        runner.close()
        raise
    return runner


def usable_runtime(bundle: Bundle) -> str:
    """Name the first runtime that is installed and that the bundle has a file for.

    Raises:
        RuntimeUnavailableError: There is none; the line says what to install.
    """
    roles = {entry.role for entry in bundle.manifest.files.values()}
    fitting = [name for name in RUNTIMES if ("engine" if name == "tensorrt" else "onnx") in roles]
    if not fitting:
        raise BundleError("holds no model", bundle.path, "build the bundle again")
    reasons = {name: unavailable_reason(name) for name in fitting}
    usable = next((name for name, reason in reasons.items() if reason is None), None)
    if usable is None:
        raise RuntimeUnavailableError(f"no runtime for it is installed here: {reasons[fitting[0]]}", bundle.path)
    return usable
