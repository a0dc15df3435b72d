"""What a split of a data set is in memory, what was wrong with it, and the key of its content."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from prunedeploy_engines.errors import DataError

Spoilt = Literal["split", "image", "box", "edge", "figures"]
"""What a problem costs: the whole split, an image, a box, what of a box lies outside its image, or the worth of what is
measured."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a data set.

    Attributes:
        file: The file it is wrong in.
        what: What is wrong, naming image id and annotation id where there are any.
        fix: What to do about it.
        spoils: What cannot be used because of it.
        kind: A few words for all problems of its kind, e.g. ``box of zero area``; empty: taken from ``what``.
        count: How many records it is about.
    """

    file: Path
    what: str
    fix: str
    spoils: Spoilt = "split"
    kind: str = ""
    count: int = 1

    def __str__(self) -> str:
        return f"{self.file}: {self.what}; {self.fix}"

    @property
    def group(self) -> str:
        """Its kind; or ``what`` without that which differs between two of a kind: numbers and quoted names."""
        pattern = r"'[^']*'|\"[^\"]*\"|-?\d+(\.\d+)?(e-?\d+)?|\b(nan|inf)\b"
        return self.kind or re.sub(pattern, "#", self.what)


@dataclass(frozen=True)
class ImageRecord:
    """One image and its annotations; ``n`` may be 0.

    Attributes:
        image_id: The JSON's id.
        path: The image file (it need not exist: the loaders report that).
        height: Height in pixels as the JSON says, the frame of the boxes.
        width: Width in pixels as the JSON says.
        boxes_xywh: ``(n, 4)`` float32, absolute pixels of the original image, inside it.
        class_ids: ``(n,)`` int64, network class indices.
        iscrowd: ``(n,)`` bool; crowd boxes are not training targets and are ignored regions in COCO's mAP.
        areas: ``(n,)`` float32, COCO's ``area`` (of the segmentation) in square pixels; None: width * height.
    """

    image_id: int
    path: Path
    height: int
    width: int
    boxes_xywh: NDArray[np.float32]
    class_ids: NDArray[np.int64]
    iscrowd: NDArray[np.bool_]
    areas: NDArray[np.float32] | None = None

    @property
    def boxes_xyxy(self) -> NDArray[np.float32]:
        """``(n, 4)`` float32 corners in absolute pixels of the original image."""
        return np.concatenate([self.boxes_xywh[:, :2], self.boxes_xywh[:, :2] + self.boxes_xywh[:, 2:]], axis=1)


@dataclass(frozen=True)
class CocoDataset:
    """A split in memory, in the order of its JSON.

    Attributes:
        images: The images.
        class_names: Name of each network class.
        category_ids: The JSON's category id of each network class; -1 for a class that the JSON does not
            have.
        json_path: Where it was read from: a JSON, or what stands for the labels of another format.
        problems: What was left out of it or clipped.
        labels_sha256: Digest of the labels where they are not JSON, but many files; see `content_key`.
    """

    images: list[ImageRecord]
    class_names: list[str]
    category_ids: list[int]
    json_path: Path
    problems: Sequence[Problem] = ()
    labels_sha256: str | None = None

    def __len__(self) -> int:
        return len(self.images)


def content_key(dataset: CocoDataset) -> str:
    """Return 64 hex digits that change with the labels, the classes, or an image's name, size or time.

    A subset has a key of its own. Images are not read: 118,000 of them take about a second.
    """
    digest = hashlib.sha256()
    if dataset.labels_sha256 is not None:
        digest.update(bytes.fromhex(dataset.labels_sha256))
    else:
        try:
            digest.update(hashlib.sha256(dataset.json_path.read_bytes()).digest())
        except OSError as error:
            raise DataError(f"cannot be read ({error.strerror})", dataset.json_path, "put it back") from error
    digest.update(json.dumps([dataset.class_names, dataset.category_ids]).encode())
    for image in dataset.images:
        try:
            status = image.path.stat()
            size, changed = status.st_size, status.st_mtime_ns
        except OSError:  # a missing image is content too: adding it later must change the key
            size, changed = -1, -1
        digest.update(json.dumps([image.image_id, image.path.name, size, changed]).encode())
    return digest.hexdigest()
