"""One loaded bundle: tensors or images in, boxes or detections out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from prunedeploy_engines.detection.detections import Detections
from prunedeploy_engines.detection.letterbox import LetterboxGeometry, unit_pixels
from prunedeploy_engines.errors import BundleError, RuntimeUnavailableError
from prunedeploy_engines.runtimes.opening import RUNTIMES, unavailable_reason
from prunedeploy_engines.serving.core.batching import Batcher
from prunedeploy_engines.serving.core.decoding import decode_image
from prunedeploy_engines.serving.core.errors import InvalidRequestError, ModelUnavailableError
from prunedeploy_engines.serving.core.settings import ServingSettings
from prunedeploy_engines.serving.telemetry.observer import Observer
from prunedeploy_engines.serving.telemetry.stage_times import StageTimes

if TYPE_CHECKING:
    from PIL import Image

    from prunedeploy_engines.bundle import Bundle
    from prunedeploy_engines.runtimes.runner import Float32Array, Images, Runner

VERSION = "1"
"""A bundle is replaced under its name, so there is one version of a model at a time."""


class ServedModel:
    """A bundle with its runners; made by `open_model`.

    Attributes:
        name: That clients know it by.
        version: Always `VERSION`.
        bundle: What it was made from.
        runtime: What runs it.
        precision: Which of the bundle's files.
        about: What the runner says of itself.
        takes_uint8: The network takes bytes; see `infer`.
    """

    version = VERSION

    def __init__(
        self,
        name: str,
        bundle: Bundle,
        runtime: str,
        runner: Runner,
        batcher: Batcher,
        settings: ServingSettings,
        pool: Executor,
    ) -> None:
        self.name = name
        self.bundle = bundle
        self.runtime = runtime
        self.precision = settings.precision
        self.about: dict[str, Any] = runner.describe()
        self.takes_uint8 = runner.uint8_input
        self._settings = settings
        self._batcher = batcher
        self._pool = pool
        self._successor: ServedModel | None = None

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of the network input, in pixels."""
        return self.bundle.input_size

    @property
    def max_batch(self) -> int:
        """Images that are computed together at most; requests may have more."""
        return self._batcher.max_batch

    @property
    def platform(self) -> str:
        """The protocol's word for what runs it."""
        return {"onnxruntime": "onnxruntime_onnx", "tensorrt": "tensorrt_plan"}.get(self.runtime, self.runtime)

    async def infer(
        self, images: Images, *, deadline: float | None = None
    ) -> tuple[dict[str, Float32Array], StageTimes]:
        """Run the network.

        Args:
            images: ``(N, 3, H, W)`` RGB, letterboxed; float32 in [0, 1], or uint8. A network that takes uint8 gets
                those bytes as they are; another sees what `detect` would show it.
            deadline: By `time.monotonic`; None: after the settings' time.

        Returns:
            ``boxes`` ``(N, M, 4)`` xyxy in input pixels and ``scores`` ``(N, M, C)``; the times of it.

        Raises:
            InvalidRequestError: Another shape or type.
            ServingError: See `Batcher.infer`.
        """
        if self._successor is not None:
            return await self._successor.infer(images, deadline=deadline)
        wanted = (3, *self.input_size)
        if images.ndim != 4 or images.shape[1:] != wanted or images.dtype not in (np.float32, np.uint8):
            kinds = f"(N, {', '.join(map(str, wanted))}) float32 or uint8"
            raise InvalidRequestError(f"images must be {kinds}, got {images.shape} {images.dtype}")
        if not len(images):
            raise InvalidRequestError("images has no image")
        if images.dtype == np.uint8:
            pixels: Any = images
            images = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)) if self.takes_uint8 else unit_pixels(pixels)
        (boxes, scores), times = await self._batcher.infer(images, self._deadline(deadline))
        return {"boxes": boxes, "scores": scores}, times

    async def decode(self, opened: Image.Image) -> npt.NDArray[np.uint8]:
        """Decode an opened image beside the event loop; see `decode_image`."""
        return await self._in_pool(decode_image, opened)

    async def detect(
        self,
        images: Sequence[npt.NDArray[np.uint8]],
        *,
        score_threshold: float | None = None,
        iou_threshold: float | None = None,
        deadline: float | None = None,
    ) -> tuple[list[Detections], StageTimes]:
        """Find objects; the same functions as `Bundle.detect`.

        Args:
            images: ``(H, W, 3)`` uint8 RGB each, of any size.
            score_threshold: In [0, 1]; None takes the bundle's.
            iou_threshold: In [0, 1]; None takes the bundle's.
            deadline: By `time.monotonic`; None: after the settings' time.

        Returns:
            Detections of each image, in its pixels; the times of it, without decoding.

        Raises:
            ServingError: See `Batcher.infer`.
        """
        if self._successor is not None:
            return await self._successor.detect(
                images, score_threshold=score_threshold, iou_threshold=iou_threshold, deadline=deadline
            )
        if not images:
            raise InvalidRequestError("there is no image")
        deadline = self._deadline(deadline)
        begun = time.monotonic()
        batch, geometries = await self._in_pool(self._prepared, images)
        prepared = time.monotonic()
        if self._successor is not None:  # replaced meanwhile, perhaps by one of another input size
            return await self._successor.detect(
                images, score_threshold=score_threshold, iou_threshold=iou_threshold, deadline=deadline
            )
        (boxes, scores), times = await self._batcher.infer(batch, deadline)
        answered = time.monotonic()
        found = await self._in_pool(self._found, boxes, scores, geometries, score_threshold, iou_threshold)
        times.preprocess_s, times.postprocess_s = prepared - begun, time.monotonic() - answered
        return found, times

    def replaced_by(self, successor: ServedModel) -> None:
        """Let another one answer what comes from now on through this object."""
        self._successor = successor

    async def close(self) -> None:
        """Answer what was accepted, then release the runners."""
        self._batcher.refuse()
        await asyncio.get_running_loop().run_in_executor(None, self._batcher.close)

    def _deadline(self, deadline: float | None) -> float:
        return time.monotonic() + self._settings.timeout_s if deadline is None else deadline

    async def _in_pool(self, function: Any, *arguments: Any) -> Any:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, partial(function, *arguments))
        except RuntimeError as error:
            if "after shutdown" in str(error):
                raise ModelUnavailableError("the server is stopping") from None
            raise

    def _prepared(self, images: Sequence[npt.NDArray[np.uint8]]) -> tuple[Images, list[LetterboxGeometry]]:
        boxed = [self.bundle.prepare(image, uint8=self.takes_uint8) for image in images]
        tensors = [tensor for tensor, _ in boxed]
        batch: Any = tensors[0][None] if len(tensors) == 1 else np.stack(tensors)
        return batch, [geometry for _, geometry in boxed]

    def _found(
        self,
        boxes: Float32Array,
        scores: Float32Array,
        geometries: Sequence[LetterboxGeometry],
        score_threshold: float | None,
        iou_threshold: float | None,
    ) -> list[Detections]:
        return [
            self.bundle.detections(*one, score_threshold=score_threshold, iou_threshold=iou_threshold)
            for one in zip(boxes, scores, geometries, strict=True)
        ]


def open_model(name: str, bundle: Bundle, settings: ServingSettings, pool: Executor, observer: Observer) -> ServedModel:
    """Open the runners of a bundle and run each once, at the smallest and the largest batch.

    Args:
        name: That clients will know it by.
        bundle: Verified.
        settings: Runtime, precision, workers, batching.
        pool: For what is done to images before and after.
        observer: Is told of queue and batches.

    Raises:
        PrunedeployError: The runtime or device is not there, the bundle has no such file, or it does not load.
    """
    runtime = settings.runtime or usable_runtime(bundle)
    target = _device_target() if runtime == "tensorrt" else None

    def opened() -> Runner:
        runner = bundle.runner(
            runtime,
            settings.precision,
            threads=settings.threads,
            target=target,
            allow_spinning=False,  # spinning threads would take the cores from the server itself
            in_process=True,  # there is no PyTorch here, and a request is not to wait for pipes
        )
        try:
            for size in sorted({1, settings.max_batch}):
                runner.infer(np.zeros((size, 3, *bundle.input_size), np.float32))
        except BaseException:
            runner.close()
            raise
        return runner

    batcher = Batcher(
        name,
        opened,
        workers=settings.workers,
        max_batch=settings.max_batch,
        max_delay_s=settings.max_delay_ms / 1e3,
        max_queue=settings.max_queue,
        observer=observer,
    )
    return ServedModel(name, bundle, runtime, batcher.open(), batcher, settings, pool)


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
        raise RuntimeUnavailableError(f"no runtime for it is here: {reasons[fitting[0]]}", bundle.path)
    return usable


def _device_target() -> str | None:
    """What an engine must have been built for to run here; None without a GPU."""
    from prunedeploy_engines.runtimes.tensorrt.library import cuda_device

    device = cuda_device()
    return None if device is None else device.target
