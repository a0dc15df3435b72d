"""One letterboxed image with its boxes, and a batch of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prunedeploy.data.reading import read_record
from prunedeploy.data.records import ImageRecord
from prunedeploy.data.transforms import clip_boxes
from prunedeploy_engines.detection.letterbox import LetterboxGeometry, letterbox, letterbox_boxes

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Batch:
    """What one step trains or measures on.

    Attributes:
        images: ``(B, 3, H, W)`` float32 RGB in [0, 1], letterboxed.
        targets: ``(T, 6)`` float32: index of the image in the batch, class index, then centre x, centre y,
            width and height as fractions of the input's width and height. Without crowd boxes. T may be 0.
        image_ids: The JSON's id of each image.
        geometries: Where each image lies in the input; empty for training batches, which are augmented.
        skipped: Images that could not be used while this batch was made, and why.
    """

    images: Tensor
    targets: Tensor
    image_ids: list[int]
    geometries: list[LetterboxGeometry] = field(default_factory=list)
    skipped: dict[Path, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """One letterboxed image, its boxes in input pixels, and its classes."""

    image: NDArray[np.uint8]
    boxes_xyxy: NDArray[np.float32]
    class_ids: NDArray[np.int64]
    geometry: LetterboxGeometry


def load_sample(
    record: ImageRecord, input_size: tuple[int, int], greyscale: bool, colour: Colour, stretch: bool = False
) -> Sample:
    """Read and letterbox (or stretch) one image.

    Its crowd boxes and those that leave nothing in the input are left out.

    Raises:
        DataError: The image is missing, cannot be decoded, or has another size than the JSON says.
    """
    pixels = read_record(record, greyscale)
    image, geometry = letterbox(pixels, input_size, colour, stretch)
    wanted = ~record.iscrowd
    boxes = letterbox_boxes(record.boxes_xyxy[wanted], geometry).astype(np.float32)
    boxes, kept = clip_boxes(boxes, *input_size, min_area_kept=0.0, min_side_px=1e-3)
    return Sample(image, boxes, record.class_ids[wanted][kept], geometry)


def make_targets(boxes: list[NDArray[np.float32]], classes: list[NDArray[np.int64]], size: tuple[int, int]) -> Tensor:
    """Return ``(T, 6)`` float32 targets, of ``(n_i, 4)`` xyxy boxes in input pixels per image."""
    counts = [len(entry) for entry in boxes]
    targets = np.empty((sum(counts), 6), np.float32)
    if len(targets):
        xyxy = np.concatenate(boxes)
        extent = np.array([size[1], size[0]], np.float32)
        targets[:, 0] = np.repeat(np.arange(len(boxes)), counts)
        targets[:, 1] = np.concatenate(classes)
        targets[:, 2:4] = (xyxy[:, :2] + xyxy[:, 2:]) / 2 / extent
        targets[:, 4:6] = (xyxy[:, 2:] - xyxy[:, :2]) / extent
    return torch.from_numpy(targets)
