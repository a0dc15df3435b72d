"""The contract of everything that runs a detector: torch, ONNX Runtime, OpenVINO, TensorRT.

A subclass sets the attributes, gives `describe`, `_infer` and, if it holds something, `_release`; the
base class checks what goes in and what comes out, so that all runners reject the same mistakes with the same
words. What the file takes and gives (uint8 images, suppression in the graph) does not change the contract:
every runner takes float32 images and gives boxes and scores.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from prunedeploy_engines.detection.letterbox import to_uint8_input
from prunedeploy_engines.errors import EngineError
from prunedeploy_engines.runtimes.layer_times import LayerExecution, LayerTime, ranked_layers

if TYPE_CHECKING:
    from typing_extensions import Self

Float32Array = npt.NDArray[np.float32]
Images = npt.NDArray[np.float32] | npt.NDArray[np.uint8]
"""``(N, 3, H, W)`` float32 RGB in [0, 1], or ``(N, H, W, 3)`` uint8 RGB."""

DETECTION_COLUMNS = 6
"""A row of ``detections``: x1, y1, x2, y2 in input pixels, score, class id."""


class Runner(ABC):
    """A detector that is ready to infer; a context manager that releases it.

    Attributes:
        runtime: ``"onnxruntime"``, ``"openvino"``, ``"tensorrt"`` or ``"torch"``.
        input_size: (height, width) of the network input, in pixels.
        channels: 3, or 1 of a grey network, whose images have one channel wherever three are said.
        uint8_input: The model takes ``(N, H, W, 3)`` uint8 images and normalises them itself.
        nms_classes: C of a model with suppression in its graph; None for one that gives boxes and scores.
    """

    runtime: str
    input_size: tuple[int, int]
    channels: int = 3
    uint8_input: bool = False
    nms_classes: int | None = None
    _closed = False

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What runs, for a report.

        JSON values only; at least ``runtime``, ``version``, ``device``, ``precision`` (the file's) and
        ``computes_in``: the share of the convolutions by the precision that they are really computed in, e.g.
        ``{"int8": 0.97, "fp32": 0.03}``, or None where the runtime does not tell.
        """

    @abstractmethod
    def _infer(self, images: Any) -> tuple[Any, Any]:
        """Run the model.

        Args:
            images: Checked, of the model's own kind: uint8 where `uint8_input`, else float32.

        Returns:
            ``boxes`` and ``scores`` as `infer` gives them; with suppression in the graph ``detections``
            ``(N, K, 6)`` float32 and ``num_detections`` ``(N,)``, which the base class turns into them.
        """

    def _release(self) -> None:  # noqa: B027 - many runners hold nothing
        """Free what the runner holds; called once."""

    def infer(self, images: Images) -> tuple[Float32Array, Float32Array]:
        """Run the network.

        Args:
            images: ``(N, 3, H, W)`` float32 RGB, letterboxed, pixels in [0, 1], N >= 1. A model with
                `uint8_input` also takes ``(N, H, W, 3)`` uint8; float32 is rounded to 8 bits for it.

        Returns:
            Boxes ``(N, M, 4)`` float32 xyxy in input pixels, and scores ``(N, M, C)`` float32 in [0, 1]. The
            arrays are the caller's: the next call does not change them. With suppression in the graph M is
            its largest number of detections, and every score but the detections' own is 0.

        Raises:
            ValueError: Wrong shape or dtype (what came is printed), or the runner is closed.
        """
        images = self._checked(images)
        boxes, scores = self._infer(images)
        if self.nms_classes is not None:
            boxes, scores = boxes_and_scores(boxes, scores, self.nms_classes)
        check_outputs(boxes, scores, len(images))
        return boxes, scores

    def compute_call(self, images: Images) -> Callable[[], object]:
        """A function that runs the model once on these images and returns when it has ended.

        It leaves out what `infer` does around the model: on a GPU the images lie in its memory beforehand and
        the results stay there. Where there is nothing to move it is the model's run alone.

        Args:
            images: As for `infer`.
        """
        ready = np.ascontiguousarray(self._checked(images))
        return lambda: self._infer(ready)

    def profile(self, images: Images, *, top: int | None = 10, runs: int = 10) -> list[LayerTime]:
        """Measure single layers with the runtime's own profiler, which costs some time of its own.

        Args:
            images: As for `infer`.
            top: How many rows to return; None is all.
            runs: How often to run; one run before is not counted.

        Returns:
            The layers that cost most, in descending order.

        Raises:
            EngineError: There is no profiler for this runtime, or the model does not open or run.
        """
        return ranked_layers(self._layer_times(self._checked(images), runs), runs, top)

    def _layer_times(self, images: Any, runs: int) -> Iterable[LayerExecution]:
        """Every execution of every layer in ``runs`` runs; ``images`` are as for `_infer`."""
        raise EngineError(f"there is no profiler of single layers for {self.runtime}")

    def _checked(self, images: Images) -> Images:
        """The images in the model's own kind."""
        if self._closed:
            raise ValueError(f"{type(self).__name__} is closed")
        if not isinstance(images, np.ndarray):
            raise ValueError(f"images must be a numpy array, got {type(images).__name__}")
        takes_as_is = self.uint8_input and images.dtype == np.uint8
        shape, dtype = (self.channels, *self.input_size), "float32"
        if takes_as_is:
            shape, dtype = (*self.input_size, self.channels), "uint8"
        if images.ndim != 4 or len(images) == 0 or images.shape[1:] != shape or images.dtype != dtype:
            expected = f"(N, {', '.join(map(str, shape))}) {dtype} with N >= 1"
            raise ValueError(f"images must be {expected}, got {images.shape} {images.dtype}")
        return to_uint8_input(images) if self.uint8_input and not takes_as_is else images

    def close(self) -> None:
        """Free what the runner holds; a second call does nothing."""
        if not self._closed:
            self._closed = True
            self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def boxes_and_scores(
    detections: npt.NDArray[Any], num_detections: npt.NDArray[Any], classes: int
) -> tuple[Float32Array, Float32Array]:
    """What a graph with suppression gives, in the form of one without.

    Args:
        detections: ``(N, K, 6)``: x1, y1, x2, y2, score, class id; rows from ``num_detections`` on are empty.
        num_detections: ``(N,)`` whole numbers in [0, K].
        classes: C.

    Returns:
        Boxes ``(N, K, 4)`` and scores ``(N, K, C)``, 0 but for each detection's own class.

    Raises:
        ValueError: Other shapes (they are printed), or a number or a class id outside its range.
    """
    detections, counts = np.asarray(detections, np.float32), np.asarray(num_detections)
    if detections.ndim != 3 or detections.shape[2] != DETECTION_COLUMNS or counts.shape != detections.shape[:1]:
        raise ValueError(
            f"the network must give detections (N, K, 6) and num_detections (N,), "
            f"got {detections.shape} and {counts.shape}"
        )
    length = detections.shape[1]
    if len(counts) and not 0 <= counts.min() <= counts.max() <= length:
        raise ValueError(f"num_detections must be in [0, {length}], got {counts.min()} to {counts.max()}")
    scores = np.zeros((*detections.shape[:2], classes), np.float32)
    filled = np.arange(length) < counts[:, None]  # (N, K)
    image, row = np.nonzero(filled)
    class_ids = detections[image, row, 5].astype(np.int64)
    if len(class_ids) and not 0 <= class_ids.min() <= class_ids.max() < classes:
        raise ValueError(f"class ids must be in [0, {classes}), got {class_ids.min()} to {class_ids.max()}")
    scores[image, row, class_ids] = detections[image, row, 4]
    return np.where(filled[..., None], detections[..., :4], np.float32(0)), scores


def check_outputs(boxes: Float32Array, scores: Float32Array, batch: int) -> None:
    """Refuse outputs that are not ``(N, M, 4)`` boxes and ``(N, M, C)`` scores, both float32.

    Raises:
        ValueError: As above; the message says what came.
    """
    fits = boxes.ndim == scores.ndim == 3 and boxes.shape[2] == 4 and boxes.shape[:2] == scores.shape[:2]
    if not fits or len(boxes) != batch or boxes.dtype != np.float32 or scores.dtype != np.float32:
        raise ValueError(
            f"the network must give boxes ({batch}, M, 4) and scores ({batch}, M, C), both float32, "
            f"got {boxes.shape} {boxes.dtype} and {scores.shape} {scores.dtype}"
        )
