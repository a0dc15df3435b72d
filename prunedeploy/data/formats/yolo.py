"""YOLO's text labels: one ``.txt`` per image, a line per object, numbers from 0 to 1 of the image's width and height.

A line is ``class cx cy w h``, or ``class x1 y1 x2 y2 x3 y3 ...``, a polygon, of which the box around it is taken. An
image without a label file has no objects. What is where says

* a ``data.yaml`` (Ultralytics, Roboflow, CVAT, FiftyOne): ``names``, ``train``, ``val``, ``test`` and ``path``;
* or Darknet's ``obj.data``: ``names``, ``train`` and ``valid`` are files, of class names and of paths of images;
* or, with nothing but ``classes.txt`` beside ``images/`` and ``labels/`` (Label Studio), the folders themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from prunedeploy.data.class_names import read_names
from prunedeploy.data.formats.labels import (
    LabelledBox,
    LabelledImage,
    Labels,
    as_problem,
    first_existing,
    images_below,
    read_text,
    upright_size,
)
from prunedeploy.data.formats.layout import Layout, SplitFiles
from prunedeploy.data.formats.yolo_labels import label_files, read_label_file
from prunedeploy.data.records import Problem
from prunedeploy_engines.errors import DataError, PrunedeployError

LOOKED_AT = 50
"""So many images of each split show whether there are labels at all."""


@dataclass(frozen=True)
class YoloLayout:
    """A data set with YOLO's labels.

    Attributes:
        source: ``data.yaml``, ``obj.data`` or ``classes.txt``.
        class_names: In the order of the class indices.
        splits: Where the images of each split are, by the file's own names (``train``, ``val``, ``test``; ``all`` if
            nothing divides them): folders, images, or text files that list images.
        keypoints: Lines go on behind the box: with keypoints (``kpt_shape`` in the data.yaml), not with a polygon.
    """

    source: Path
    class_names: Sequence[str]
    splits: Mapping[str, Sequence[Path]]
    keypoints: bool = False

    def read(self, split: str) -> Labels:
        """Read the labels of one split, and the size of every image from its header."""
        labels = Labels(self.source, self.class_names)
        labelled = 0
        for image in self._images(split, labels.problems):
            boxes: list[LabelledBox] = []
            try:
                height, width = upright_size(image)
                if (file := first_existing(label_files(image))) is not None:
                    labelled += 1
                    classes = len(self.class_names)
                    boxes += read_label_file(file, height, width, classes, labels.problems, self.keypoints)
            except DataError as error:
                labels.problems.append(as_problem(error, image))
                continue
            labels.images.append(LabelledImage(image, height, width, boxes))
        if labels.images and not labelled:
            first = next(label_files(labels.images[0].path))
            what = f"none of the {len(labels.images)} images of {split!r} has a label file ({first} is the first)"
            labels.problems.append(Problem(self.source, what, "put the labels there, or correct the paths"))
        return labels

    def layout(self) -> Layout:
        """The same for whoever does not care about the format."""
        splits = {
            name: SplitFiles(places[0], places[0].parent, partial(self.read, name))
            for name, places in self.splits.items()
        }
        return Layout("YOLO", self.source, splits)

    def has_labels(self) -> bool:
        """Whether one of the first images of a split has a label file."""
        images = (image for split in self.splits for image in islice(self._images(split, []), LOOKED_AT))
        return any(first_existing(label_files(image)) is not None for image in images)

    def _images(self, split: str, problems: list[Problem]) -> Iterator[Path]:
        seen: set[Path] = set()
        for place in self.splits[split]:
            for image in images_of(place, problems):
                if image not in seen:
                    seen.add(image)
                    yield image


def find_yolo(folder: Path) -> YoloLayout | None:
    """Look for a data set with YOLO's labels; None if the folder is none.

    Raises:
        DataError: The folder describes one, but not so that it can be read, or there are several.
    """
    described = [path for path in sorted(folder.glob("*.y*ml")) if path.suffix in {".yaml", ".yml"}]
    documents = {path: document for path in described if (document := _description(path)) is not None}
    darknet = sorted(folder.glob("*.data"))
    found = [*documents, *darknet]
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise DataError(f"{names} each describe a data set", folder, "give the one that counts, or remove the others")
    if documents:
        return _from_yaml(found[0], documents[found[0]])
    if darknet:
        return _from_darknet(found[0])
    listed = first_existing([folder / "classes.txt", folder / "obj.names"])
    if listed is not None and (folder / "images").is_dir() and (folder / "labels").is_dir():
        return YoloLayout(listed, _names_of(listed), {"all": [folder / "images"]})
    return None


def _description(path: Path) -> dict[str, Any] | None:
    """The content of a YAML file that describes a data set, None if it is about something else."""
    try:
        document = yaml.safe_load(path.read_bytes())
    except (OSError, yaml.YAMLError, ValueError):
        return None
    is_one = isinstance(document, dict) and {"train", "val", "test", "names", "nc"} & document.keys()
    return document if is_one and ({"train", "val"} & document.keys() or "names" in document) else None


def _from_yaml(path: Path, document: Mapping[str, Any]) -> YoloLayout:
    root = path.parent
    if isinstance(given := document.get("path"), str):
        # Written on somebody else's machine more often than not; the file then lies in the data set itself.
        root = first_existing([path.parent / given, path.parent / Path(given).name]) or path.parent
    splits = {}
    for split, value in (("train", document.get("train")), ("val", document.get("val", document.get("valid"))),
                         ("test", document.get("test"))):  # fmt: skip
        places = [value] if isinstance(value, str) else value or []
        if not isinstance(places, list) or not all(isinstance(place, str) for place in places):
            raise DataError(f"{split} is {value!r}", path, "give a folder, a text file of images, or a list of these")
        try:
            if places:
                splits[split] = [_placed(root, path, split, place) for place in places]
        except DataError:
            # Roboflow names a test split whether there is one or not; training and validation must be there.
            if split != "test" or len(splits) < 2:
                raise
    if not splits:
        raise DataError("names no images: it has neither train nor val", path, "add the folders of the splits")
    # Some name one folder twice, as coco128.yaml does: what was trained on shows nothing when it is measured.
    splits = {name: places for name, places in splits.items() if name == "train" or places != splits.get("train")}
    return YoloLayout(path, _yaml_names(path, document), splits, keypoints="kpt_shape" in document)


def _placed(root: Path, source: Path, split: str, place: str) -> Path:
    """Where a folder or list of a data.yaml is; Roboflow writes ``../train/images`` beside a folder ``train``."""
    below = place.replace("\\", "/")
    while below.startswith(("../", "./")):
        below = below.partition("/")[2]
    found = first_existing([root / place, source.parent / place, root / below, source.parent / below])
    if found is None:
        raise DataError(f"{split}: there is no {place}", source, "correct the path, or remove the split")
    return found.resolve()


def _yaml_names(path: Path, document: Mapping[str, Any]) -> list[str]:
    names = document.get("names")
    if isinstance(names, dict) and sorted(names) == list(range(len(names))):
        names = [names[index] for index in range(len(names))]
    if not isinstance(names, list) or not names:
        raise DataError("has no names of classes", path, "add `names: [first, second, ...]` in the order of the labels")
    names = [str(name) for name in names]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"names has {twice!r} twice", path, "make class names unique")
    count = document.get("nc")
    if count is not None and count != len(names):
        raise DataError(f"nc is {count!r}, but there are {len(names)} names", path, "correct one of them")
    return names


def _from_darknet(path: Path) -> YoloLayout:
    """Read ``key = value`` lines; relative paths are tried from the file's folder and from the folder above."""
    lines = [line.partition("=") for line in read_text(path).splitlines() if "=" in line]
    values = {key.strip(): value.strip() for key, _, value in lines if not key.lstrip().startswith("#")}
    files = {}
    for key in ("names", "train", "valid"):
        if key in values:
            found = resolved(path.parent, values[key])
            if found is None:
                raise DataError(f"{key}: there is no {values[key]}", path, "correct the path")
            files[key] = found
    if "names" not in files:
        raise DataError("has no names", path, "add `names = obj.names`, a file with one class name per line")
    splits = {split: [files[key]] for split, key in (("train", "train"), ("val", "valid")) if key in files}
    if not splits:
        raise DataError("names no images: it has neither train nor valid", path, "add the lists of images")
    return YoloLayout(path, _names_of(files["names"]), splits)


def _names_of(path: Path) -> list[str]:
    try:
        return read_names(path)
    except PrunedeployError as error:
        raise DataError(error.what, path, error.fix) from None


def images_of(place: Path, problems: list[Problem]) -> Iterator[Path]:
    """The images of a folder, of a text file that lists them, or the image itself.

    Args:
        place: One of the three.
        problems: A line of a list whose image is nowhere is added.
    """
    if place.is_dir():
        yield from images_below(place)
        return
    if place.suffix.lower() != ".txt":
        yield place
        return
    for number, line in enumerate(read_text(place).splitlines(), 1):
        if name := line.strip():
            image = resolved(place.parent, name)
            if image is None:
                what = f"line {number}: there is no {name}"
                problems.append(
                    Problem(
                        place, what, "correct the path, or remove the line", "image", "listed image that is not there"
                    )
                )
            else:
                yield image


def resolved(folder: Path, name: str) -> Path | None:
    """Find a file that a list names, if need be by the end of its path: lists are written on other machines.

    Args:
        folder: The list's own.
        name: As written, with either kind of slash.
    """
    parts = Path(name.replace("\\", "/")).parts
    tails = [Path(*parts[start:]) for start in range(len(parts))]
    tails = [tail for tail in tails if tail.parts and ".." not in tail.parts] or [Path(name)]
    return first_existing(base / tail for tail in tails for base in (folder, folder.parent))
