"""Read a COCO instances JSON, check every record, and collect everything that is wrong with it.

Format: https://cocodataset.org/#format-data (section "Object Detection"). Boxes are ``[x, y, width, height]``
in absolute pixels of the image whose size the JSON states.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn, TypeGuard

import numpy as np

from prunedeploy.data.records import CocoDataset, ImageRecord, Problem

EDGE_TOLERANCE_PX = 1.0
"""A box that leaves its image by at most this much was rounded, as some of official COCO: it is clipped."""

# COCO renamed these when it grew from PASCAL VOC's classes; Darknet's coco.names kept the VOC names. Other
# differences (``potted plant`` and ``pottedplant``) are spaces only.
_DARKNET_NAME = {"motorcycle": "motorbike", "airplane": "aeroplane", "couch": "sofa", "tv": "tvmonitor"}

# The official instances_train2017.json has exactly two boxes of height zero: (image id, x, y). They are
# dropped; everywhere else a box without area is an error. See github.com/cocodataset/cocoapi issue 355.
_OFFICIAL_ZERO_AREA = {(200365, 296.65, 388.33), (550395, 9.98, 188.56)}


def read_coco(
    json_path: Path, image_folder: Path, class_names: Sequence[str] | None = None
) -> tuple[CocoDataset | None, list[Problem]]:
    """As `load_coco`, but collect all problems, leaving faulty records out. None if nothing can be read."""
    return _Reader(json_path, image_folder).read(class_names)


class _UnreadableError(Exception):
    """The JSON cannot be read any further; the reason is already among the problems."""


class _FaultyError(Exception):
    """One record is wrong; what comes after it can still be read."""

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(what)
        self.what, self.fix = what, fix


class _Reader:
    """Reads one JSON and collects its problems."""

    def __init__(self, json_path: Path, image_folder: Path) -> None:
        self.json_path = json_path
        self.image_folder = image_folder
        self.problems: list[Problem] = []
        self.faulty_images: set[int] = set()

    def note(self, what: str, fix: str) -> None:
        self.problems.append(Problem(self.json_path, what, fix))

    def abort(self, what: str, fix: str) -> NoReturn:
        self.note(what, fix)
        raise _UnreadableError

    def read(self, class_names: Sequence[str] | None) -> tuple[CocoDataset | None, list[Problem]]:
        try:
            document = self.document()
            names, category_ids, class_of = self.categories(document["categories"], class_names)
            frames = self.frames(document["images"])
            boxes = self.annotations(document["annotations"], frames, class_of)
        except _UnreadableError:
            return None, self.problems
        images = [_record(frame, boxes.get(image_id, [])) for image_id, frame in frames.items()]
        return CocoDataset(images, names, category_ids, self.json_path), self.problems

    def document(self) -> dict[str, list[Any]]:
        try:
            document = json.loads(self.json_path.read_bytes())
        except OSError as error:
            self.abort(f"cannot be read ({error.strerror or error})", "check the path and its permissions")
        except (ValueError, RecursionError) as error:  # JSON syntax and text encoding are ValueErrors
            self.abort(f"is not valid JSON ({error})", "export it again as COCO instances JSON")
        if not isinstance(document, dict):
            self.abort(f"holds a {type(document).__name__}, not an object", "export it as COCO instances JSON")
        for key, may_be_empty in (("images", False), ("annotations", True), ("categories", False)):
            value = document.get(key)
            if not isinstance(value, list):
                self.abort(f"has no list {key!r}", "export it as COCO instances JSON")
            if not value and not may_be_empty:
                self.abort(f"the list {key!r} is empty", "a data set needs at least one entry in it")
            wrong = [position for position, entry in enumerate(value) if not isinstance(entry, dict)]
            if wrong:
                self.abort(f"{key}[{wrong[0]}] is not an object", "export it as COCO instances JSON")
        return document

    def categories(
        self, entries: list[dict[str, Any]], class_names: Sequence[str] | None
    ) -> tuple[list[str], list[int], dict[int, int | None]]:
        """Return class names, category id per class, and class index (or None) of each category id."""
        names: dict[int, str] = {}
        for position, entry in enumerate(entries):
            category_id, name = entry.get("id"), entry.get("name")
            if not _is_int(category_id) or not isinstance(name, str):
                self.abort(f"categories[{position}] lacks an integer id or a name", "give it both")
            if category_id in names or name in names.values():
                self.abort(f"category {category_id} ({name!r}) is there twice", "make ids and names unique")
            names[category_id] = name
        if class_names is None:
            ordered = sorted(names)
            return [names[key] for key in ordered], ordered, {key: index for index, key in enumerate(ordered)}
        index_of = match_categories(names.values(), class_names)
        unknown = [f"{key} ({name!r})" for key, name in names.items() if index_of[name] is None]
        if unknown:
            word = "category" if len(unknown) == 1 else "categories"
            self.note(
                f"the network ({len(class_names)} classes) does not have {word} {', '.join(unknown)}",
                "use a network with these classes, or remove them from the JSON",
            )
        class_of = {key: index_of[name] for key, name in names.items()}
        id_of = {index: key for key, index in class_of.items() if index is not None}
        if len(id_of) + len(unknown) != len(class_of):
            self.abort("two categories have the name of one network class", "merge them in the JSON")
        return list(class_names), [id_of.get(index, -1) for index in range(len(class_names))], class_of

    def frames(self, entries: list[dict[str, Any]]) -> dict[int, ImageRecord]:
        """Return the images by id, still without boxes."""
        frames: dict[int, ImageRecord] = {}
        for position, entry in enumerate(entries):
            image_id, name = entry.get("id"), entry.get("file_name")
            height, width = entry.get("height"), entry.get("width")
            if not _is_int(image_id):
                self.note(f"images[{position}] has no integer id", "give it one")
                continue
            if image_id not in frames:
                self.faulty_images.add(image_id)  # until shown to be sound
            if image_id in frames:
                self.note(f"image id {image_id} is there twice", "make image ids unique")
            elif not isinstance(name, str) or not name or "\0" in name:
                self.note(f"image {image_id} has no file_name", "give it one")
            elif PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                self.note(f"image {image_id}: {name!r} leads out of the data folder", "use a relative file_name")
            elif not (_is_int(height) and _is_int(width) and height > 0 and width > 0):
                self.note(f"image {image_id} has height {height!r} and width {width!r}", "give positive integers")
            else:
                self.faulty_images.discard(image_id)
                frames[image_id] = ImageRecord(image_id, self.locate(name), height, width, *_NO_BOXES)
        return frames

    def locate(self, name: str) -> Path:
        path = self.image_folder / name
        beside = self.image_folder.parent / name
        return beside if not path.exists() and beside.exists() else path

    def annotations(
        self,
        entries: list[dict[str, Any]],
        frames: Mapping[int, ImageRecord],
        class_of: Mapping[int, int | None],
    ) -> dict[int, list[_Box]]:
        """Return the sound boxes of each image id."""
        boxes: dict[int, list[_Box]] = {}
        seen: set[int] = set()
        for position, entry in enumerate(entries):
            annotation_id, image_id = entry.get("id"), entry.get("image_id")
            category = entry.get("category_id")
            if not _is_int(annotation_id):
                self.note(f"annotations[{position}] has no integer id", "give it one")
                continue
            if annotation_id in seen:
                self.note(f"annotation id {annotation_id} is there twice", "make annotation ids unique")
            elif _is_int(image_id) and image_id in self.faulty_images:
                pass  # the image has been named already
            elif not _is_int(image_id) or image_id not in frames:
                what = f"annotation {annotation_id} is of unknown image {image_id!r}"
                self.note(what, "add the image, or remove it")
            elif not _is_int(category) or category not in class_of:
                self.note(f"annotation {annotation_id} has unknown category {category!r}", "add the category")
            else:
                class_id = class_of[category]
                try:
                    box = _box(entry, frames[image_id])
                except _FaultyError as fault:
                    self.note(f"annotation {annotation_id} of image {image_id} {fault.what}", fault.fix)
                else:
                    if box is not None and class_id is not None:  # None has been named once, in `categories`
                        boxes.setdefault(image_id, []).append((box, class_id, *_crowd_and_area(entry, box)))
            seen.add(annotation_id)
        return boxes


_Box = tuple[tuple[float, ...], int, bool, float]

_NO_BOXES = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.bool_), np.zeros(0, np.float32)


def _is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> TypeGuard[float]:
    if isinstance(value, int):  # JSON integers have no limit, floats have
        return not isinstance(value, bool) and abs(value) < 2**53
    return isinstance(value, float)


def _box(entry: Mapping[str, Any], frame: ImageRecord) -> tuple[float, ...] | None:
    """The box of an annotation as ``(x, y, width, height)`` inside its image; None for one to be dropped unnoticed.

    Raises:
        _FaultyError: Says what is wrong with it.
    """
    bbox = entry.get("bbox")
    if entry.get("iscrowd", 0) not in (0, 1):
        raise _FaultyError(f"has iscrowd {entry['iscrowd']!r}", "give 0 or 1")
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(_is_number(value) for value in bbox):
        raise _FaultyError(f"has bbox {str(bbox)[:80]}", "give four numbers: x, y, width, height")
    x, y, width, height = (float(value) for value in bbox)
    if not all(math.isfinite(value) for value in (x, y, width, height)):
        raise _FaultyError(f"has NaN or infinity in its bbox {bbox}", "correct or remove it")
    if width < 0 or height < 0:
        raise _FaultyError(f"has a negative size in its bbox {bbox}", "bbox is x, y, width, height, not corners")
    if (width == 0 or height == 0) and (frame.image_id, x, y) in _OFFICIAL_ZERO_AREA:
        return None
    if width == 0 or height == 0:
        raise _FaultyError(f"has a bbox of zero area {bbox}", "correct or remove it")
    over = max(-x, -y, x + width - frame.width, y + height - frame.height)
    left, top = min(max(x, 0.0), frame.width), min(max(y, 0.0), frame.height)
    right, bottom = min(x + width, float(frame.width)), min(y + height, float(frame.height))
    if over > EDGE_TOLERANCE_PX or right <= left or bottom <= top:
        what = f"has bbox {bbox} outside its image of {frame.width} x {frame.height} (width x height)"
        raise _FaultyError(what, "bbox is x, y, width, height in pixels")
    return (left, top, width, height) if over <= 0 else (left, top, right - left, bottom - top)


def _crowd_and_area(entry: Mapping[str, Any], box: tuple[float, ...]) -> tuple[bool, float]:
    area = entry.get("area")
    if not (_is_number(area) and math.isfinite(area) and area > 0):
        area = box[2] * box[3]
    return bool(entry.get("iscrowd", 0)), float(area)


def _record(frame: ImageRecord, boxes: list[_Box]) -> ImageRecord:
    if not boxes:
        return frame
    xywh, class_ids, iscrowd, areas = zip(*boxes, strict=True)
    return replace(
        frame,
        boxes_xywh=np.array(xywh, np.float32),
        class_ids=np.array(class_ids, np.int64),
        iscrowd=np.array(iscrowd, np.bool_),
        areas=np.array(areas, np.float32),
    )


def match_categories(categories: Iterable[str], class_names: Sequence[str]) -> dict[str, int | None]:
    """Return the class index of each category name, None where the network has no such class.

    Exact names first; then case, spaces, ``-`` and ``_`` do not count, and COCO's four renamed classes are
    known.
    """
    exact = {name: index for index, name in enumerate(class_names)}
    plain = {_plain(name): index for name, index in exact.items()}
    return {name: exact.get(name, plain.get(_plain(name))) for name in categories}


def _plain(name: str) -> str:
    squeezed = re.sub(r"[\s_-]+", "", name).lower()
    return _DARKNET_NAME.get(squeezed, squeezed)
