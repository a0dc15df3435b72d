"""COCO folders: find the splits, read the JSON, and refuse what cannot be trusted.

Nothing here opens an image; `prunedeploy.data.loader` does, and `prunedeploy.data.check` looks at the files.

Format: https://cocodataset.org/#format-data (section "Object Detection"). Boxes are ``[x, y, width, height]`` in
absolute pixels of the image whose size the JSON states.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from prunedeploy_engines.errors import DataError

EDGE_TOLERANCE_PX = 1.0
"""A box that leaves its image by at most this much was rounded: it is clipped. Official COCO has such boxes."""

# COCO renamed these when it grew from PASCAL VOC's classes; Darknet's coco.names kept the VOC names. Other
# differences (``potted plant`` and ``pottedplant``) are spaces only.
_DARKNET_NAME = {"motorcycle": "motorbike", "airplane": "aeroplane", "couch": "sofa", "tv": "tvmonitor"}

# The official instances_train2017.json has exactly two boxes of height zero: (image id, x, y). They are dropped;
# everywhere else a box without area is an error. See github.com/cocodataset/cocoapi issue 355.
_OFFICIAL_ZERO_AREA = {(200365, 296.65, 388.33), (550395, 9.98, 188.56)}


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a COCO folder.

    Attributes:
        file: The file it is wrong in.
        what: What is wrong, naming image id and annotation id where there are any.
        fix: What to do about it.
    """

    file: Path
    what: str
    fix: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}; {self.fix}"


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
        iscrowd: ``(n,)`` bool; crowd boxes are no training targets and are ignored regions in COCO's mAP.
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
    """A COCO split in memory, in the order of its JSON.

    Attributes:
        images: The images.
        class_names: Name of each network class.
        category_ids: The JSON's category id of each network class; -1 for a class that the JSON does not have.
        json_path: Where it was read from.
    """

    images: list[ImageRecord]
    class_names: list[str]
    category_ids: list[int]
    json_path: Path

    def __len__(self) -> int:
        return len(self.images)

    def content_key(self) -> str:
        """See `content_key`."""
        return content_key(self)


@dataclass(frozen=True)
class SplitFiles:
    """The JSON of one split and the folder that its file names are relative to."""

    json_path: Path
    image_folder: Path


@dataclass(frozen=True)
class Splits:
    """What `find_splits` found; ``undivided`` is set exactly if there is neither a train nor a test split."""

    train: SplitFiles | None = None
    test: SplitFiles | None = None
    undivided: SplitFiles | None = None


def find_splits(folder: Path | str) -> Splits:
    """Find the JSON files and image folders of a COCO folder.

    Accepted: ``train.json`` + ``train/`` and ``test.json`` + ``test/``; official COCO
    (``annotations/instances_train2017.json`` + ``train2017/``, ``instances_val2017.json`` + ``val2017/``, the newest
    year there is); or a single JSON (in the folder or in ``annotations/``) + ``images/``, which is undivided. A
    folder may hold only one of the two splits.

    Raises:
        DataError: No such folder, or nothing in it that is one of these layouts.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError("no such data folder", folder, "give the folder that holds the COCO JSON and the images")
    own = {name: _own_split(folder, name) for name in ("train", "test")}
    if any(own.values()):
        return Splits(train=own["train"], test=own["test"])
    train, val = _official_split(folder, "train"), _official_split(folder, "val")
    if train or val:
        return Splits(train=train, test=val)
    candidates = sorted(folder.glob("*.json")) or sorted(folder.glob("annotations/*.json"))
    if len(candidates) == 1:
        images = folder / "images"
        return Splits(undivided=SplitFiles(candidates[0], images if images.is_dir() else folder))
    found = f"{len(candidates)} JSON files and none is train.json or test.json" if candidates else "no COCO JSON"
    layouts = "train.json + train/ and test.json + test/, or annotations/instances_*.json, or one JSON + images/"
    raise DataError(f"{found} in this folder", folder, f"arrange it as {layouts}")


def _own_split(folder: Path, name: str) -> SplitFiles | None:
    json_path = folder / f"{name}.json"
    return SplitFiles(json_path, folder / name) if json_path.is_file() else None


def _official_split(folder: Path, name: str) -> SplitFiles | None:
    pattern = re.compile(rf"instances_({name}(\d{{4}}))\.json")
    years = [match for path in folder.glob("annotations/*.json") if (match := pattern.fullmatch(path.name))]
    if not years:
        return None
    newest = max(years, key=lambda match: int(match[2]))
    return SplitFiles(folder / "annotations" / newest[0], folder / newest[1])


def load_coco(
    json_path: Path | str, image_folder: Path | str, class_names: Sequence[str] | None = None
) -> CocoDataset:
    """Read a COCO instances JSON and check every record of it.

    Args:
        json_path: The JSON.
        image_folder: The folder that ``file_name`` is relative to; its parent is tried too.
        class_names: The network's classes; the JSON's categories are mapped to them by name (Darknet's and COCO's
            names of the same class are the same). The JSON may have fewer. None: the JSON's categories by id.

    Returns:
        The split, boxes clipped to their images, crowd boxes flagged, images without boxes included.

    Raises:
        DataError: The first problem, and how many more there are.
    """
    dataset, problems = read_coco(Path(json_path), Path(image_folder), class_names)
    if dataset is None or problems:
        first, more = problems[0], len(problems) - 1
        rest = f" ({more} more problem{'s' * (more > 1)}: `prunedeploy data coco` lists them)" if more else ""
        raise DataError(first.what, first.file, first.fix + rest)
    return dataset


def train_test_subset(dataset: CocoDataset, train_images: int, seed: int) -> tuple[CocoDataset, CocoDataset]:
    """Draw ``train_images`` images for training; the rest is for test. Both keep the order of the JSON.

    Raises:
        DataError: Fewer than ``train_images`` + 1 images: nothing would be left to test on.
    """
    total = len(dataset.images)
    if not 0 < train_images < total:
        raise DataError(
            f"cannot take {train_images} of {total} images for training",
            dataset.json_path,
            f"ask for 1 to {total - 1}: the rest is for test",
        )
    drawn = np.random.default_rng([seed, total]).permutation(total)[:train_images]
    chosen = np.zeros(total, np.bool_)
    chosen[drawn] = True
    train = [image for image, is_train in zip(dataset.images, chosen, strict=True) if is_train]
    test = [image for image, is_train in zip(dataset.images, chosen, strict=True) if not is_train]
    return replace(dataset, images=train), replace(dataset, images=test)


def content_key(dataset: CocoDataset) -> str:
    """Return 64 hex digits that change with the JSON, the classes, or any image's name, size or time of change.

    A subset has a key of its own. Images are not read: 118,000 of them take about a second.
    """
    digest = hashlib.sha256()
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
