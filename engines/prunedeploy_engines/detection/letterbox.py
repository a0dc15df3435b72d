"""Letterbox: one scale for both axes, the rest padded; or the image stretched; and the inverse for boxes.

Training, evaluation and the device all call this one function, so that a box means the same everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

GREY = (128, 128, 128)


@dataclass(frozen=True)
class LetterboxGeometry:
    """Where an image lies inside a network input.

    Attributes:
        scale: The common scale before rounding to whole pixels, input pixels per image pixel; of a stretched image the
            smaller of its two.
        pad_left: Input pixels left of the image.
        pad_top: Input pixels above the image.
        resized_size: (height, width) of the image inside the input.
        image_size: (height, width) of the original image.
        input_size: (height, width) of the network input.
    """

    scale: float
    pad_left: int
    pad_top: int
    resized_size: tuple[int, int]
    image_size: tuple[int, int]
    input_size: tuple[int, int]

    @property
    def scale_xy(self) -> tuple[float, float]:
        """(x, y) scale after rounding; letterboxed, the two differ by up to half a pixel over the image's extent."""
        return self.resized_size[1] / self.image_size[1], self.resized_size[0] / self.image_size[0]


def letterbox_geometry(
    image_size: tuple[int, int], input_size: tuple[int, int], stretch: bool = False
) -> LetterboxGeometry:
    """Fit an image of ``image_size`` into ``input_size``; both (height, width), in pixels.

    With ``stretch`` it fills the input, whatever becomes of its aspect.

    Raises:
        ValueError: A side is not positive (both sizes are printed).
    """
    image_height, image_width = (int(side) for side in image_size)
    input_height, input_width = (int(side) for side in input_size)
    if min(image_height, image_width, input_height, input_width) < 1:
        raise ValueError(f"sizes must be positive, got image {image_size} and input {input_size}")
    scale = min(input_width / image_width, input_height / image_height)
    # A very long image must still be one pixel wide; rounding must never exceed the input.
    resized_width = min(input_width, max(1, round(image_width * scale)))
    resized_height = min(input_height, max(1, round(image_height * scale)))
    if stretch:
        resized_width, resized_height = input_width, input_height
    return LetterboxGeometry(
        scale=scale,
        pad_left=(input_width - resized_width) // 2,
        pad_top=(input_height - resized_height) // 2,
        resized_size=(resized_height, resized_width),
        image_size=(image_height, image_width),
        input_size=(input_height, input_width),
    )


def letterbox(
    image: npt.NDArray[np.uint8], size: tuple[int, int], colour: tuple[int, int, int] = GREY, stretch: bool = False
) -> tuple[npt.NDArray[np.uint8], LetterboxGeometry]:
    """Scale an image into a network input and pad the rest.

    Args:
        image: ``(H, W, 3)`` uint8 RGB, pixels in [0, 255].
        size: (height, width) of the network input.
        colour: RGB of the padding, 0 to 255 each.
        stretch: Fill the input instead, so that there is no padding.

    Returns:
        A new ``(height, width, 3)`` uint8 RGB array, and where the image lies in it. An image that already
        has the resized size keeps its pixels bit for bit; otherwise Pillow's bilinear filter (antialiased
        when shrinking).

    Raises:
        ValueError: ``image`` is not ``(H, W, 3)`` uint8 (its shape and dtype are printed).
    """
    _check_image(image)
    geometry = letterbox_geometry((image.shape[0], image.shape[1]), size, stretch)
    resized = _resize(image, geometry.resized_size)
    if geometry.resized_size == geometry.input_size:
        return (resized.copy() if resized is image else resized), geometry
    canvas = np.empty((*geometry.input_size, 3), dtype=np.uint8)
    canvas[:] = np.asarray(colour, dtype=np.uint8)
    top, left = geometry.pad_top, geometry.pad_left
    canvas[top : top + geometry.resized_size[0], left : left + geometry.resized_size[1]] = resized
    return canvas, geometry


def letterbox_boxes(boxes_xyxy: npt.ArrayLike, geometry: LetterboxGeometry) -> npt.NDArray[np.floating]:
    """Move boxes from the original image into the network input.

    Args:
        boxes_xyxy: ``(N, 4)`` or ``(4,)``, pixels of the original image.
        geometry: What `letterbox` returned for that image.

    Returns:
        New array of the same shape, input pixels; float32 stays float32, everything else becomes float64.
    """
    boxes = _as_boxes(boxes_xyxy)
    scale, padding = _scale_and_padding(geometry)
    return (boxes * scale + padding).astype(boxes.dtype, copy=False)


def unletterbox_boxes(
    boxes_xyxy: npt.ArrayLike, geometry: LetterboxGeometry, clip: bool = True
) -> npt.NDArray[np.floating]:
    """Move boxes from the network input back into the original image; the inverse of `letterbox_boxes`.

    Args:
        boxes_xyxy: ``(N, 4)`` or ``(4,)``, input pixels.
        geometry: What `letterbox` returned for that image.
        clip: Clip to the image: x to [0, width], y to [0, height].

    Returns:
        New array of the same shape, original image pixels; float32 stays float32, everything else becomes
        float64.
    """
    boxes = _as_boxes(boxes_xyxy)
    scale, padding = _scale_and_padding(geometry)
    moved = (boxes - padding) / scale
    if clip:
        height, width = geometry.image_size
        moved = moved.clip(0.0, np.array([width, height, width, height], dtype=float))
    return moved.astype(boxes.dtype, copy=False)


def to_input(image: npt.NDArray[np.uint8], channels: int = 3) -> npt.NDArray[np.float32]:
    """Turn ``(H, W, 3)`` uint8 RGB into a contiguous ``(channels, H, W)`` float32 array in [0, 1].

    A grey network takes one channel: the first of a grey image's three.
    """
    _check_image(image)
    return unit_pixels(np.ascontiguousarray(image[..., :channels].transpose(2, 0, 1)))


def batch_to_input(
    images: npt.NDArray[np.uint8] | Sequence[npt.NDArray[np.uint8]],
) -> npt.NDArray[np.float32]:
    """Turn N images ``(H, W, C)`` uint8 of one size, RGB or grey, into ``(N, C, H, W)`` float32 in [0, 1].

    Raises:
        ValueError: Not N images of one size (the shapes are printed).
    """
    if not isinstance(images, np.ndarray):
        shapes = {image.shape for image in images}
        if len(shapes) != 1:
            raise ValueError(f"a batch needs images of one shape (H, W, C), got {sorted(shapes)}")
        images = np.stack(images)
    if images.ndim != 4 or images.shape[3] not in (1, 3) or images.dtype != np.uint8:
        raise ValueError(f"images must be (N, H, W, 3) or (N, H, W, 1) uint8, got {images.shape} {images.dtype}")
    return unit_pixels(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def unit_pixels(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Bring uint8 pixels of any shape to float32 in [0, 1]: what 0 to 255 mean to a network is said here only."""
    # Division, not multiplication by 1/255, which gives 126 of the 256 values another last bit.
    return np.divide(pixels, np.float32(255), dtype=np.float32)


def to_uint8_input(images: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """``(N, C, H, W)`` float32 in [0, 1] to ``(N, H, W, C)`` uint8, rounded to the nearest of 256 values; NaN to 0."""
    rounded = np.fmin(np.fmax(np.rint(images * np.float32(255)), 0), 255).astype(np.uint8)
    return np.ascontiguousarray(rounded.transpose(0, 2, 3, 1))


def in_three_channels(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """``(N, H, W, 3)`` of ``(N, H, W, 3)`` or grey ``(N, H, W, 1)``."""
    return images if images.shape[3] == 3 else np.repeat(images, 3, axis=3)


def _check_image(image: npt.NDArray[np.uint8]) -> None:
    if not isinstance(image, np.ndarray) or image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        got = f"{image.shape} {image.dtype}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f"image must be (H, W, 3) uint8 RGB, got {got}")


def _scale_and_padding(geometry: LetterboxGeometry) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """One value each for x, y, x and y."""
    return np.array(geometry.scale_xy * 2), np.array((geometry.pad_left, geometry.pad_top) * 2, dtype=float)


def _as_boxes(boxes_xyxy: npt.ArrayLike) -> npt.NDArray[np.floating]:
    boxes = np.asarray(boxes_xyxy)
    if boxes.dtype != np.float32:
        boxes = boxes.astype(np.float64)
    if boxes.shape == (0,):  # an empty list
        boxes = boxes.reshape(0, 4)
    if boxes.ndim not in (1, 2) or boxes.shape[-1] != 4:
        raise ValueError(f"boxes must be (N, 4) or (4,), got {boxes.shape}")
    return boxes


def _resize(image: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    if image.shape[:2] == size:
        return image
    from PIL import Image  # here, so that importing the package stays cheap

    resized = Image.fromarray(np.ascontiguousarray(image)).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(resized)
