"""Read a COCO instances document, check every record, and collect everything that is wrong with it.

Format: https://cocodataset.org/#format-data (section "Object Detection"). Boxes are ``[x, y, width, height]``
in absolute pixels of the image whose size the document states. Labels of other formats come here as such documents too.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, TypeGuard, cast

import numpy as np

from prunedeploy.data.categories import is_root, match_categories
from prunedeploy.data.coco_boxes import Box, FaultyError, sound_box
from prunedeploy.data.formats.layout import SplitFiles
from prunedeploy.data.image_names import found_images
from prunedeploy.data.records import CocoDataset, ImageRecord, Problem, Spoilt

MOST_PIXELS = 10**6
"""No side of an image is longer."""

_AGAIN = "export it again as COCO instances JSON"


def read_coco(
    files: SplitFiles, class_names: Sequence[str] | None = None, only_known_classes: bool = False
) -> tuple[CocoDataset | None, list[Problem]]:
    """Read a split and collect all problems, leaving faulty records out.

    Args:
        files: The split.
        class_names: The network's classes; None: the categories of the document by id.
        only_known_classes: Leave boxes of other classes out.

    Returns:
        The split, None if nothing of it can be used; and what is wrong with it, in the order of the document.
    """
    return _Reader(files, only_known_classes).read(class_names)


class _UnreadableError(Exception):
    """The document cannot be read any further; the reason is already among the problems."""


class _Reader:
    """Reads one document and collects its problems."""

    def __init__(self, files: SplitFiles, only_known_classes: bool) -> None:
        self.files = files
        self.image_folder = files.image_folder
        self.only_known_classes = only_known_classes
        self.labels_sha256: str | None = None
        self.problems: list[Problem] = []
        self.faulty_images: set[int] = set()

    def note(self, what: str, fix: str, spoils: Spoilt = "split", kind: str = "", file: str | None = None) -> None:
        self.problems.append(Problem(Path(file or self.files.json_path), what, fix, spoils, kind))

    def abort(self, what: str, fix: str) -> NoReturn:
        self.note(what, fix)
        raise _UnreadableError

    def read(self, class_names: Sequence[str] | None) -> tuple[CocoDataset | None, list[Problem]]:
        try:
            document = self.document()
            boxed = Counter(
                category
                for entry in document["annotations"]
                if (category := _as_int(entry.get("category_id"))) is not None
            )
            names, category_ids, class_of = self.categories(document["categories"], class_names, boxed)
            frames = self.frames(document["images"])
            boxes = self.annotations(document["annotations"], frames, class_of)
        except _UnreadableError:
            return None, self.problems
        if not frames:
            count = len(document["images"])
            self.note(f"not one of its {count} images can be used", "correct what else is reported about it")
            return None, self.problems
        images = [_record(frame, boxes.get(image_id, [])) for image_id, frame in frames.items()]
        left_out = [problem for problem in self.problems if problem.spoils != "split"]
        dataset = CocoDataset(images, names, category_ids, self.files.json_path, left_out, self.labels_sha256)
        return dataset, self.problems

    def document(self) -> dict[str, list[Any]]:
        if self.files.read_labels is not None:
            return self.document_of_labels()
        try:
            document = json.loads(self.files.json_path.read_bytes())
        except OSError as error:
            self.abort(f"cannot be read ({error.strerror or error})", "check the path and its permissions")
        except (ValueError, RecursionError) as error:  # JSON syntax and text encoding are ValueErrors
            self.abort(f"is not valid JSON ({error})", _AGAIN)
        if not isinstance(document, dict):
            self.abort(f"holds a {type(document).__name__}, not an object", _AGAIN)
        for key, may_be_empty in (("images", False), ("annotations", True), ("categories", False)):
            value = document.get(key)
            if not isinstance(value, list):
                self.abort(f"has no list {key!r}", _AGAIN)
            if not value and not may_be_empty:
                self.abort(f"the list {key!r} is empty", "a data set needs at least one entry in it")
            wrong = [position for position, entry in enumerate(value) if not isinstance(entry, dict)]
            if wrong:
                self.abort(f"{key}[{wrong[0]}] is not an object", _AGAIN)
        return document

    def document_of_labels(self) -> dict[str, list[Any]]:
        assert self.files.read_labels is not None
        labels = self.files.read_labels()
        self.problems += labels.problems
        if not labels.images:
            first = f" ({labels.problems[0].file}: {labels.problems[0].what})" if labels.problems else ""
            self.abort(f"has no usable image{first}", "put the images there, or remove the split")
        self.image_folder = labels.image_folder()
        document = labels.document()
        digest = hashlib.sha256()
        for key, entries in document.items():
            # Where a label was read from is not what it says: the same data set elsewhere has the same content.
            said = [
                {name: value for name, value in entry.items() if name not in ("file", "where")} for entry in entries
            ]
            digest.update(json.dumps([key, said]).encode())
        self.labels_sha256 = digest.hexdigest()
        return document

    def categories(
        self, entries: list[dict[str, Any]], class_names: Sequence[str] | None, boxed: Mapping[int, int]
    ) -> tuple[list[str], list[int], dict[int, int | None]]:
        """Return class names, category id per class, and class index (or None) of each category id.

        Args:
            entries: The document's categories.
            class_names: The network's classes; None: the categories of the document by id.
            boxed: Number of annotations by category id.
        """
        names: dict[int, str] = {}
        for position, entry in enumerate(entries):
            category_id, name = _as_int(entry.get("id")), entry.get("name")
            if category_id is None or not isinstance(name, str):
                self.abort(f"categories[{position}] lacks an integer id or a name", "give it both")
            if is_root(entry, entries) and not boxed.get(category_id):
                continue  # it may even have the name of a class
            if category_id in names or name in names.values():
                self.abort(f"category {category_id} ({name!r}) occurs twice", "make ids and names unique")
            names[category_id] = name
        if class_names is None:
            ordered = sorted(names)
            return [names[key] for key in ordered], ordered, {key: index for index, key in enumerate(ordered)}
        index_of = match_categories(names.values(), class_names)
        unknown = {key: name for key, name in names.items() if index_of[name] is None and boxed.get(key)}
        self.note_unknown(unknown, len(class_names), boxed)
        class_of = {key: index_of[name] for key, name in names.items()}
        known = [index for index in class_of.values() if index is not None]
        if len(set(known)) < len(known):
            self.abort("two categories have the name of one network class", "merge them in the JSON")
        id_of = {index: key for key, index in class_of.items() if index is not None}
        return list(class_names), [id_of.get(index, -1) for index in range(len(class_names))], class_of

    def note_unknown(self, unknown: Mapping[int, str], classes: int, boxed: Mapping[int, int]) -> None:
        if self.only_known_classes:
            for key, name in unknown.items():
                what = f"{boxed[key]} boxes of category {key} ({name!r}), which the network does not have"
                self.problems.append(
                    Problem(self.files.json_path, what, "left out", "box", f"box of another class: {name}", boxed[key])
                )
        elif unknown:
            word = "category" if len(unknown) == 1 else "categories"
            named = ", ".join(f"{key} ({name!r})" for key, name in unknown.items())
            self.note(
                f"the network ({classes} classes) does not have {word} {named}",
                "use a network with these classes, or leave their boxes out with data.only_known_classes=true",
                kind="category that the network does not have",
            )

    def frames(self, entries: list[dict[str, Any]]) -> dict[int, ImageRecord]:
        """Return the images by id, still without boxes."""
        names = [name for entry in entries if _is_name(name := entry.get("file_name"))]
        paths = found_images(names, self.image_folder)
        frames: dict[int, ImageRecord] = {}
        for position, entry in enumerate(entries):
            name, image_id = entry.get("file_name"), _as_int(entry.get("id"))
            height, width = _as_int(entry.get("height")), _as_int(entry.get("width"))
            if image_id is None:
                said = f"images[{position}] has no integer id, but {str(entry.get('id'))[:40]!r}"
                self.note(said, "number the images", kind="image without an integer id")
                continue
            if not -(2**63) <= image_id < 2**63:
                said = f"image id {image_id} does not fit into 64 bits"
                self.note(said, "number the images from 1", kind="image id that does not fit into 64 bits")
                self.faulty_images.add(image_id)
                continue
            if image_id in frames:
                again = frames[image_id].path == paths.get(cast(str, name))
                self.note(f"image id {image_id} occurs twice", "make image ids unique", "image" if again else "split")
                continue
            self.faulty_images.add(image_id)  # until shown to be sound
            if not _is_name(name):
                self.note(f"image {image_id} has no file_name", "give it one", "image")
            elif (path := paths[name]) is None:
                self.note(
                    f"image {image_id}: {name!r} leads out of the data folder", "use a relative file_name", "image"
                )
            elif height is None or width is None or not (1 <= height <= MOST_PIXELS and 1 <= width <= MOST_PIXELS):
                said = f"image {image_id} has height {entry.get('height')!r} and width {entry.get('width')!r}"
                self.note(said, "give positive integers", "image", "image without a size")
            else:
                self.faulty_images.discard(image_id)
                frames[image_id] = ImageRecord(image_id, path, height, width, *_NO_BOXES)
        return frames

    def annotations(
        self,
        entries: list[dict[str, Any]],
        frames: Mapping[int, ImageRecord],
        class_of: Mapping[int, int | None],
    ) -> dict[int, list[tuple[Box, int]]]:
        """Return the sound boxes of each image id, with their class indices."""
        boxes: dict[int, list[tuple[Box, int]]] = {}
        seen: dict[int, Mapping[str, Any]] = {}
        for position, entry in enumerate(entries):
            annotation_id, image_id = _as_int(entry.get("id")), _as_int(entry.get("image_id"))
            category, file = _as_int(entry.get("category_id")), entry.get("file")
            named = entry.get("where") or (
                f"annotations[{position}]" if annotation_id is None else f"annotation {annotation_id}"
            )
            if annotation_id is not None and annotation_id in seen:
                same = seen[annotation_id] == entry
                self.note(
                    f"annotation id {annotation_id} occurs twice",
                    "make annotation ids unique",
                    "box" if same else "split",
                )
                continue
            if annotation_id is not None:
                seen[annotation_id] = entry
            if image_id in self.faulty_images:
                pass  # the image has been named already
            elif image_id is None or image_id not in frames:
                self.note(
                    f"{named} is of unknown image {str(entry.get('image_id'))[:40]}",
                    "add the image, or remove it", "box", "box of an unknown image",
                )  # fmt: skip
            elif category is None or category not in class_of:
                self.note(
                    f"{named} has unknown category {str(entry.get('category_id'))[:40]}",
                    "add the category", "box", "box of an unknown category",
                )  # fmt: skip
            else:
                of = named if file else f"{named} of image {image_id}"
                class_id = class_of[category]
                try:
                    box = sound_box(entry, frames[image_id])
                except FaultyError as fault:
                    self.note(f"{of} {fault.what}", fault.fix, "box", fault.kind, file)
                    continue
                if box is None or class_id is None:  # None has been named once, in `categories`
                    continue
                if box.cut_px:
                    said = f"{of} leaves its image by {box.cut_px:g} pixels, bbox {entry['bbox']}"
                    self.note(said, "clipped to its image", "edge", "box that leaves its image slightly", file)
                boxes.setdefault(image_id, []).append((box, class_id))
        return boxes


_NO_BOXES = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.bool_), np.zeros(0, np.float32)


def _as_int(value: object) -> int | None:
    """An integer, also as ``1.0``, which spreadsheets make of it; else None."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _is_name(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and bool(value) and "\0" not in value


def _record(frame: ImageRecord, boxes: Iterable[tuple[Box, int]]) -> ImageRecord:
    rows = list(boxes)
    if not rows:
        return frame
    return replace(
        frame,
        boxes_xywh=np.array([box.xywh for box, _ in rows], np.float32),
        class_ids=np.array([class_id for _, class_id in rows], np.int64),
        iscrowd=np.array([box.crowd for box, _ in rows], np.bool_),
        areas=np.array([box.area for box, _ in rows], np.float32),
    )
