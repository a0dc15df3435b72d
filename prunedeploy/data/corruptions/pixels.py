"""What all corruptions share: pixels as fractions and back, luma, and bilinear enlargement."""

from __future__ import annotations

from math import ceil

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
"""An image ``(H, W, C)``, C 3 (RGB) or 1 (grey)."""
Values = NDArray[np.floating]
"""Its pixels, or a layer of it, as fractions in [0, 1]."""

_LUMA = np.array([0.299, 0.587, 0.114])


def unit(image: Pixels) -> NDArray[np.float64]:
    """Pixels as fractions in [0, 1]; float64, as the published definitions compute."""
    return image / 255.0


def pixels(values: Values) -> Pixels:
    """Clip fractions to [0, 1] and make pixels of them.

    Rounded down, as the reference implementation does it; the millionth keeps 127 from becoming 126 because
    127 / 255 * 255 is a hair less.
    """
    return (np.clip(values, 0, 1) * 255 + 1e-6).astype(np.uint8)


def luma(image: Values) -> Values:
    """Rec. 601 luma of ``(H, W, 3)``, or the one channel of a grey image: ``(H, W, 1)``."""
    return image if image.shape[2] == 1 else (image @ _LUMA.astype(image.dtype))[..., None]


def zoomed(image: Values, factor: float) -> Values:
    """Enlarge the middle of an image, with a size of at least the image's.

    Args:
        image: ``(H, W, C)``.
        factor: At least 1.

    Returns:
        ``(H', W', C)``: of the middle ``ceil(H / factor)`` rows and ``ceil(W / factor)`` columns as many times
        ``factor``, rounded; corners on corners, bilinear between.
    """
    for axis in (0, 1):
        kept = ceil(image.shape[axis] / factor)
        start = (image.shape[axis] - kept) // 2
        place = np.linspace(0, kept - 1, round(kept * factor))
        before = np.minimum(place.astype(np.intp), max(kept - 2, 0))
        share = (place - before).astype(image.dtype).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        low = np.take(image, start + before, axis)
        high = np.take(image, start + np.minimum(before + 1, kept - 1), axis)
        high -= low
        high *= share
        image = high
        image += low
    return image
