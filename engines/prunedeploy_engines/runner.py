"""The contract of everything that runs a detector: torch, ONNX Runtime, TensorRT.

A subclass gives `runtime`, `input_size`, `describe`, `_infer` and, if it holds something, `_release`; the
base class checks what goes in and what comes out, so that the three runners reject the same mistakes with
the same words.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from typing_extensions import Self

Float32Array = npt.NDArray[np.float32]


class Runner(ABC):
    """A detector that is ready to infer; a context manager that releases it."""

    _closed = False

    @property
    @abstractmethod
    def runtime(self) -> str:
        """``"onnxruntime"``, ``"tensorrt"`` or ``"torch"``."""

    @property
    @abstractmethod
    def input_size(self) -> tuple[int, int]:
        """(height, width) of the network input, in pixels."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What runs, for a report.

        JSON values only; at least ``runtime``, ``version``, ``precision``, ``device``.
        """

    @abstractmethod
    def _infer(self, images: Float32Array) -> tuple[Float32Array, Float32Array]:
        """Do what `infer` promises, for images that have been checked."""

    def _release(self) -> None:  # noqa: B027 - many runners hold nothing
        """Free what the runner holds; called once."""

    def infer(self, images: Float32Array) -> tuple[Float32Array, Float32Array]:
        """Run the network.

        Args:
            images: ``(N, 3, H, W)`` float32 RGB, letterboxed, pixels in [0, 1], N >= 1.

        Returns:
            Boxes ``(N, M, 4)`` float32 xyxy in input pixels, and scores ``(N, M, C)`` float32 in [0, 1]. The
            arrays are the caller's: the next call does not change them.

        Raises:
            ValueError: Wrong shape or dtype (what came is printed), or the runner is closed.
        """
        if self._closed:
            raise ValueError(f"{type(self).__name__} is closed")
        check_images(images, self.input_size)
        boxes, scores = self._infer(images)
        check_outputs(boxes, scores, len(images))
        return boxes, scores

    def close(self) -> None:
        """Free what the runner holds; a second call does nothing."""
        if not self._closed:
            self._closed = True
            self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_images(images: Float32Array, input_size: tuple[int, int]) -> None:
    """Refuse what is not ``(N, 3, *input_size)`` float32 with N >= 1; the message says what came.

    Raises:
        ValueError: As above.
    """
    if not isinstance(images, np.ndarray):
        raise ValueError(f"images must be a numpy array, got {type(images).__name__}")
    fits = images.ndim == 4 and len(images) > 0 and images.shape[1:] == (3, *input_size)
    if not fits or images.dtype != np.float32:
        expected = f"(N, 3, {input_size[0]}, {input_size[1]}) float32 with N >= 1"
        raise ValueError(f"images must be {expected}, got {images.shape} {images.dtype}")


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
