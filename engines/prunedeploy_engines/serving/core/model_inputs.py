"""What the two models of a bundle take, checked: letterboxed images, or files of images."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from prunedeploy_engines.serving.core.errors import InvalidRequestError
from prunedeploy_engines.serving.core.limits import check_count
from prunedeploy_engines.serving.core.tensors import BYTES, InputTensor

# Rounding in a client's resizing may leave [0, 1] a little; pixels of 0 to 255 leave it by far.
_SLACK = 0.01


def images_of(tensor: InputTensor, wanted: tuple[int, int, int], most: int) -> npt.NDArray[Any]:
    """The letterboxed images of a tensor, ``(N, channels, height, width)``, FP32 in [0, 1] or UINT8.

    Raises:
        ServingError: They are something else, or too many.
    """
    if tensor.datatype not in ("FP32", "UINT8"):
        raise InvalidRequestError("inputs[0].datatype: images must be FP32 in [0, 1], or UINT8")
    images = tensor.data
    if not isinstance(images, np.ndarray) or images.ndim != 4 or images.shape[1:] != wanted:
        shape = f"(N, {', '.join(map(str, wanted))})"
        raise InvalidRequestError(f"inputs[0].shape: images must be {shape}, got {list(tensor.shape)}")
    check_count(len(images), most, "inputs[0]")
    if tensor.datatype == "FP32":
        low, high = images.min(), images.max()
        # Written so that NaN, which min and max pass on, is refused too.
        if not (low >= -_SLACK and high <= 1 + _SLACK):
            raise InvalidRequestError("inputs[0]: images has values outside of [0, 1]", fix="divide by 255")
    return images


def files_of(tensor: InputTensor) -> list[bytes | memoryview]:
    """The encoded images of a tensor.

    Raises:
        InvalidRequestError: It has no such.
    """
    if tensor.datatype != BYTES or not isinstance(tensor.data, list) or len(tensor.shape) not in (1, 2):
        raise InvalidRequestError("inputs[0]: image must be BYTES (N,), each a JPEG, PNG or WebP file")
    return tensor.data


def interleaved(planes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """``(N, C, H, W)`` uint8 to ``(N, H, W, C)``, in row-major order."""
    count, channels, height, width = planes.shape
    pixels = np.empty((count, height, width, channels), np.uint8)
    for channel in range(channels):  # three times as fast as NumPy's own copy of the transposed array
        pixels[..., channel] = planes[:, channel]
    return pixels
