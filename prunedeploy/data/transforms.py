"""Training augmentation, every draw keyed by (seed, epoch, image id).

An image's augmentation depends on nothing else: not on the batch, the number of loader workers, or where
training was resumed. Measuring never augments.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from prunedeploy.config import AugmentConfig


def augment(
    image: NDArray[np.uint8],
    boxes_xyxy: NDArray[np.float32],
    class_ids: NDArray[np.int64],
    rng: np.random.Generator,
    settings: AugmentConfig,
    pad_colour: tuple[int, int, int] = (127, 127, 127),
) -> tuple[Tensor, NDArray[np.float32], NDArray[np.int64]]:
    """Flip, zoom, shift and recolour one letterboxed image.

    Args:
        image: ``(H, W, 3)`` uint8 RGB.
        boxes_xyxy: ``(n, 4)`` float32, pixels of ``image``.
        class_ids: ``(n,)`` int64.
        rng: From `prunedeploy.data.draws.generator_for`. As many numbers are drawn whatever the settings are, so that
            switching one kind of augmentation off leaves the others as they were.
        settings: What may happen.
        pad_colour: Colour of what zooming out uncovers, uint8 RGB.

    Returns:
        New image ``(3, H, W)`` uint8 (planes, as networks take them), boxes clipped to it, and their classes.
        Boxes that lost too much are gone. The inputs are not modified.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image must be (H, W, 3) uint8, got {image.shape} {image.dtype}")
    if boxes_xyxy.shape != (len(class_ids), 4):
        raise ValueError(f"boxes_xyxy must be ({len(class_ids)}, 4) for as many class ids, got {boxes_xyxy.shape}")
    draws = rng.random(9)
    height, width = image.shape[:2]

    flip = bool(draws[0] < settings.flip_probability)
    zoom = settings.scale_min * (settings.scale_max / settings.scale_min) ** draws[1]
    stretch = np.sqrt(settings.aspect ** (2 * draws[2] - 1))
    scale_x, scale_y = zoom * stretch, zoom / stretch
    # Centred, then shifted by at most `translate` of the canvas to either side.
    shift_x = (1 - scale_x) * width / 2 + (2 * draws[3] - 1) * settings.translate * width
    shift_y = (1 - scale_y) * height / 2 + (2 * draws[4] - 1) * settings.translate * height
    columns, rows = AxisMap.nearest(width, scale_x, shift_x), AxisMap.nearest(height, scale_y, shift_y)

    matrix = colour_matrix(
        hue=(2 * draws[5] - 1) * settings.hue,
        saturation=settings.saturation ** (2 * draws[6] - 1),
        exposure=settings.exposure ** (2 * draws[7] - 1),
    )
    result = zoom_and_shift(recolour(image, matrix), rows, columns, pad_colour)
    if flip:
        result = result.flip(2)

    boxes = boxes_xyxy.astype(np.float32, copy=True)
    boxes[:, 0::2] = boxes[:, 0::2] * columns.scale + columns.shift
    boxes[:, 1::2] = boxes[:, 1::2] * rows.scale + rows.shift
    if flip:
        boxes[:, 0::2] = width - boxes[:, 2::-2]
    boxes, kept = clip_boxes(boxes, height, width, settings.min_area_kept, settings.min_side_px)
    return result, boxes, class_ids[kept]


@dataclass(frozen=True)
class AxisMap:
    """Whole source pixels [source_start, source_stop) fill whole target pixels [target_start, target_stop).

    Whole on both sides, so that pixels and boxes follow exactly the same map.
    """

    source_start: int
    source_stop: int
    target_start: int
    target_stop: int

    @classmethod
    def nearest(cls, size: int, scale: float, shift: float) -> AxisMap:
        """Return the map nearest to ``x -> scale * x + shift`` on an axis of ``size`` pixels."""
        low, high = round(shift), round(shift + scale * size)
        start = min(max(0, low), size - 1)
        stop = max(min(size, high), start + 1)
        # An end of the image that is in view is used up to its last pixel.
        source_start = 0 if low >= 0 else min(max(0, round((start - shift) / scale)), size - 1)
        source_stop = size if high <= size else min(size, round((stop - shift) / scale))
        source_stop = max(source_stop, source_start + 1)
        return cls(source_start, source_stop, start, stop)

    @property
    def scale(self) -> float:
        """Target pixels per source pixel."""
        return (self.target_stop - self.target_start) / (self.source_stop - self.source_start)

    @property
    def shift(self) -> float:
        """Where source coordinate 0 comes to lie."""
        return self.target_start - self.scale * self.source_start


def zoom_and_shift(
    image: NDArray[np.uint8], rows: AxisMap, columns: AxisMap, pad_colour: tuple[int, int, int]
) -> Tensor:
    """Move a part of ``(H, W, 3)`` uint8 pixels to a part of a new canvas ``(3, H, W)`` uint8.

    Bilinear, antialiased when shrinking; a mere shift copies pixels.
    """
    source = torch.from_numpy(image).permute(2, 0, 1)  # (3, H, W), a view
    part = source[:, rows.source_start : rows.source_stop, columns.source_start : columns.source_stop]
    size = (rows.target_stop - rows.target_start, columns.target_stop - columns.target_start)
    if part.shape[1:] != size:
        # torch takes interleaved uint8 pixels and gives planes; three times as fast as Pillow and a
        # transposition.
        part = torch.nn.functional.interpolate(part[None], size=size, mode="bilinear", antialias=True)[0]
    canvas = torch.empty(3, *image.shape[:2], dtype=torch.uint8)
    if size != image.shape[:2]:
        for channel, value in zip(canvas, pad_colour, strict=True):
            channel.fill_(value)
    canvas[:, rows.target_start : rows.target_stop, columns.target_start : columns.target_stop] = part
    return canvas


def recolour(image: NDArray[np.uint8], matrix: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Apply a 3 x 3 matrix to ``(H, W, 3)`` uint8 RGB pixels; rounds, and clips to [0, 255]."""
    if np.array_equal(matrix, np.eye(3)):
        return image
    coefficients = tuple(float(value) for row in matrix for value in (*row, 0.0))
    return np.array(Image.fromarray(image).convert("RGB", coefficients))


def clip_boxes(
    boxes_xyxy: NDArray[np.float32], height: int, width: int, min_area_kept: float, min_side_px: float
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Clip boxes to the canvas and drop those that lose too much.

    Returns:
        The boxes that stay, ``(k, 4)`` float32, and which of the ``n`` those are, ``(n,)`` bool.
    """
    limits = np.array([width, height, width, height], np.float32)
    clipped = np.clip(boxes_xyxy, 0, limits)
    sides = clipped[:, 2:] - clipped[:, :2]
    area = np.prod(boxes_xyxy[:, 2:] - boxes_xyxy[:, :2], axis=1)
    kept = (sides >= min_side_px).all(axis=1) & (np.prod(sides, axis=1) >= min_area_kept * area)
    return clipped[kept], kept


# NTSC 1953: YIQ from RGB. Y is Rec. 601 luma; a hue shift is a rotation of the (I, Q) plane.
_YIQ_FROM_RGB = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_RGB_FROM_YIQ = np.linalg.inv(_YIQ_FROM_RGB)


def colour_matrix(hue: float, saturation: float, exposure: float) -> NDArray[np.float64]:
    """Return the 3 x 3 matrix that does to RGB what Darknet does in HSV, in one linear step.

    Args:
        hue: Shift as a fraction of the colour circle, in [-0.5, 0.5].
        saturation: Factor on the distance from grey.
        exposure: Factor on brightness.

    Returns:
        ``rgb_out = matrix @ rgb_in``. Exactly diagonal for hue 0 and saturation 1, so that grey stays grey.
    """
    if hue == 0 and saturation == 1:
        return np.eye(3) * exposure
    cos, sin = np.cos(2 * np.pi * hue) * saturation, np.sin(2 * np.pi * hue) * saturation
    turn = np.array([[1.0, 0.0, 0.0], [0.0, cos, sin], [0.0, -sin, cos]])  # red towards green
    matrix: NDArray[np.float64] = exposure * (_RGB_FROM_YIQ @ turn @ _YIQ_FROM_RGB)
    return matrix
