"""A data set of any format that is read here, written as a COCO folder."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prunedeploy.data.check import bad_images
from prunedeploy.data.coco import Allowed, refused_problems
from prunedeploy.data.coco_json import read_coco
from prunedeploy.data.formats.layout import SplitFiles
from prunedeploy.data.recognise import chosen, find_layout
from prunedeploy.data.records import CocoDataset, Problem
from prunedeploy_engines.errors import DataError
from prunedeploy_engines.files import write_whole_folder


@dataclass(frozen=True)
class ConvertedSplit:
    """What became of one split.

    Attributes:
        name: ``train``, ``test``, ``val`` (kept, but not read here) or ``instances``, if nothing divides the set.
        source: The split of the original, e.g. ``trainval``.
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
    a test split, ``val`` for test where there is none. Bad records are left out of every split.

    Raises:
        DataError: The folder is of no known format, or of two; or a split has nothing usable in it.
        StoreError: ``out`` is not empty or cannot be written; nothing is left behind.
    """
    layout = find_layout(folder)
    train, test, kept = chosen(list(layout.splits))
    pairs = [("instances", "all")] if "all" in layout.splits else [("train", train), ("test", test), ("val", kept)]

    def fill(work: Path) -> Conversion:
        done: list[ConvertedSplit] = []
        first: CocoDataset | None = None
        for target, source in pairs:
            if source:
                dataset, problems = _usable(source, layout.splits[source], first)
                first = first or dataset
                boxes = _write(work, target, dataset, first.category_ids)
                done.append(ConvertedSplit(target, source, len(dataset.images), boxes, tuple(problems)))
        assert first is not None  # no layout is without splits
        return Conversion(layout.format, first.class_names, done)

    return write_whole_folder(out, fill)


def _usable(name: str, files: SplitFiles, first: CocoDataset | None) -> tuple[CocoDataset, list[Problem]]:
    """A split without the images that are not there or are none, and all that is left out of it."""
    dataset, problems = read_coco(files, None if first is None else first.class_names)
    refused = refused_problems(dataset, problems, Allowed().in_training())
    refused.sort(key=lambda problem: problem.spoils != "split")
    if dataset is not None and not refused:
        bad = list(bad_images(dataset, decode=False))
        missing = {problem.file for problem in bad}
        images = [record for record in dataset.images if record.path not in missing]
        if images:
            return replace(dataset, images=images), problems + bad
        refused = bad
    worst = refused[0]
    raise DataError(f"split {name!r} cannot be used: {worst.what}", worst.file, worst.fix)


def _write(work: Path, target: str, dataset: CocoDataset, category_ids: Sequence[int]) -> int:
    """Write one split; return its number of boxes."""
    base = Path(os.path.commonpath({record.path.parent.absolute() for record in dataset.images}))
    folder = work / ("images" if target == "instances" else target)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for record in dataset.images:
        name = record.path.absolute().relative_to(base).as_posix()
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        _link_or_copy(record.path, path)
        size = {"height": record.height, "width": record.width}
        images.append({"id": record.image_id, "file_name": name, **size})
        areas = record.boxes_xywh.prod(axis=1) if record.areas is None else record.areas
        for box, class_id, crowd, area in zip(record.boxes_xywh, record.class_ids, record.iscrowd, areas, strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": record.image_id,
                    "category_id": category_ids[class_id],
                    # The shortest number that is this one in float32: 40.1 and not 40.099998474121094.
                    "bbox": [float(str(value)) for value in box],
                    "area": float(str(area)),
                    "iscrowd": int(crowd),
                }
            )
    named = zip(category_ids, dataset.class_names, strict=True)
    categories = [{"id": category_id, "name": name} for category_id, name in named]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (work / f"{target}.json").write_text(json.dumps(document), encoding="utf-8")
    return len(annotations)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system, one without links, or two records of one image
        shutil.copyfile(source, target)
