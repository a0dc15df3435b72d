"""A data set with YOLO's or Pascal VOC's labels, written as a COCO folder that everything else here reads."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from prunedeploy.data.formats.labels import LabelledBox, LabelledImage, Labels
from prunedeploy.data.formats.voc import VocLayout, find_voc
from prunedeploy.data.formats.yolo import YoloLayout, find_yolo
from prunedeploy.data.records import Problem
from prunedeploy_engines.errors import DataError
from prunedeploy_engines.files import write_whole_folder

CLIPPED_PX = 1.0
"""A box that leaves its image by more than this is clipped like the others, and named."""


@dataclass(frozen=True)
class ConvertedSplit:
    """What became of one split.

    Attributes:
        name: ``train``, ``test``, ``val`` (kept, but not read here) or ``instances``, if nothing divides the set.
        source: The splits of the original that it is made of, e.g. ``trainval``.
        images: Images.
        boxes: Boxes.
        problems: What was left out or clipped.
    """

    name: str
    source: str
    images: int
    boxes: int
    problems: Sequence[Problem]


@dataclass(frozen=True)
class Conversion:
    """What `convert` did: the format that was found, its class names, and the splits that were written."""

    format: str
    class_names: Sequence[str]
    splits: Sequence[ConvertedSplit]


def convert(folder: Path, out: Path) -> Conversion:
    """Write ``train.json`` + ``train/`` and ``test.json`` + ``test/``, or ``instances.json`` + ``images/``.

    Images are hard links where the file system has them, else copies. ``trainval`` is taken for training where there is
    a test split, ``val`` for test where there is none.

    Raises:
        DataError: The folder is neither, or both; or there is nothing usable in it.
        StoreError: ``out`` is not empty or cannot be written; nothing is left behind.
    """
    name, layout = _layout(folder)

    def fill(work: Path) -> list[ConvertedSplit]:
        return [_write(work, target, source, layout.read(source)) for target, source in _chosen(list(layout.splits))]

    return Conversion(name, layout.class_names, write_whole_folder(out, fill))


def _layout(folder: Path) -> tuple[str, YoloLayout | VocLayout]:
    if not folder.is_dir():
        raise DataError("no such data folder", folder, "give the folder that holds the images and labels")
    yolo, voc = find_yolo(folder), find_voc(folder)
    if yolo is not None and voc is not None:
        what = f"could be two formats: YOLO's, by {yolo.source.name}, and Pascal VOC's, by its XML files"
        raise DataError(what, folder, "remove the labels that do not count")
    if yolo is not None:
        return "YOLO", yolo
    if voc is not None:
        return "Pascal VOC", voc
    fix = "give a folder with a data.yaml, an obj.data or classes.txt (YOLO), or with Annotations/*.xml (Pascal VOC)"
    raise DataError("has neither YOLO's nor Pascal VOC's labels", folder, fix)


def _chosen(names: Sequence[str]) -> list[tuple[str, str]]:
    """Which split becomes which: pairs of the new name and the original's."""
    if "all" in names:
        return [("instances", "all")]
    train = "trainval" if "trainval" in names and "test" in names else "train"
    test = "test" if "test" in names else "val"
    pairs = [
        ("train", train),
        ("test", test),
        ("val", "val" if "val" not in (train, test) and train == "train" else ""),
    ]
    return [(target, source) for target, source in pairs if source in names]


def _write(work: Path, target: str, source: str, labels: Labels) -> ConvertedSplit:
    images = [replace(image, boxes=_inside(image, labels.problems)) for image in labels.images]
    if not images:
        first = f": {labels.problems[0]}" if labels.problems else ""
        raise DataError(
            f"split {source!r} has no usable image{first}", labels.source, "correct it, or remove the split"
        )
    sound = replace(labels, images=images)
    document, base = sound.document(), sound.image_folder()
    folder = work / ("images" if target == "instances" else target)
    for entry in document["images"]:
        path = folder / entry["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        _link_or_copy(base / entry["file_name"], path)
    (work / f"{target}.json").write_text(json.dumps(document), encoding="utf-8")
    return ConvertedSplit(target, source, len(images), len(document["annotations"]), tuple(labels.problems))


def _inside(image: LabelledImage, problems: list[Problem]) -> list[LabelledBox]:
    """The boxes clipped to their image; those of which nothing is left go, and are named."""
    kept = []
    for box in image.boxes:
        x, y, width, height = box.xywh
        left, top = min(max(x, 0.0), image.width), min(max(y, 0.0), image.height)
        right, bottom = min(max(x + width, 0.0), image.width), min(max(y + height, 0.0), image.height)
        said = f"{box.where}: box {', '.join(f'{value:g}' for value in box.xywh)}"
        if right <= left or bottom <= top:
            problems.append(Problem(image.path, f"{said} has no area inside its image", "left out"))
            continue
        if max(-x, -y, x + width - image.width, y + height - image.height) > CLIPPED_PX:
            problems.append(Problem(image.path, f"{said} leaves its image", "clipped"))
        kept.append(replace(box, xywh=(left, top, right - left, bottom - top)))
    return kept


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
