"""Say everything that is wrong with a COCO folder in one go, and what is in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from prunedeploy.data.coco import find_splits
from prunedeploy.data.coco_json import read_coco
from prunedeploy.data.reading import check_header, read_record
from prunedeploy.data.records import CocoDataset, Problem
from prunedeploy_engines.errors import DataError

# COCO's own limits, in square pixels of the original image: cocodataset.org/#detection-eval.
_SMALL_AREA, _LARGE_AREA = 32**2, 96**2


@dataclass(frozen=True)
class SplitSummary:
    """What one split holds; faulty records are not counted.

    Attributes:
        split: ``train``, ``test`` or ``undivided``.
        json_path: Its JSON.
        images: Images that the JSON names.
        images_without_boxes: Those that have no box at all.
        boxes: Boxes, without crowd boxes.
        crowd_boxes: Regions with too many objects to tell apart.
        boxes_per_class: Number of boxes, without crowd boxes, of each class, by name.
        boxes_by_size: COCO's three sizes, from the annotated area: ``small`` (below 32 x 32 pixels),
            ``medium``, ``large`` (96 x 96 and above).
        image_sizes: How many images have each ``width x height``, the ten most frequent first; then
            ``others``.
    """

    split: str
    json_path: Path
    images: int
    images_without_boxes: int
    boxes: int
    crowd_boxes: int
    boxes_per_class: dict[str, int]
    boxes_by_size: dict[str, int]
    image_sizes: dict[str, int]


@dataclass(frozen=True)
class CocoReport:
    """What `inspect_coco` found.

    Attributes:
        folder: The folder.
        problems: Everything that is wrong; empty if the folder can be used.
        splits: What each readable split holds.
    """

    folder: Path
    problems: list[Problem] = field(default_factory=list)
    splits: list[SplitSummary] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return plain values that ``json`` can write."""
        return TypeAdapter(CocoReport).dump_python(self, mode="json")

    def lines(self) -> Iterator[str]:
        """Yield the report for people, line by line: what is there, then what is wrong."""
        for split in self.splits:
            yield (
                f"{split.split}: {split.images} images ({split.images_without_boxes} without boxes), "
                f"{split.boxes} boxes and {split.crowd_boxes} crowd boxes "
                f"of {len(split.boxes_per_class)} classes"
            )
            yield "  boxes by size: " + ", ".join(f"{number} {name}" for name, number in split.boxes_by_size.items())
            yield "  boxes by class: " + ", ".join(f"{name} {n}" for name, n in split.boxes_per_class.items())
            yield "  image sizes: " + ", ".join(f"{size} ({n})" for size, n in split.image_sizes.items())
        yield from (str(problem) for problem in self.problems)
        count = len(self.problems)
        yield "nothing is wrong" if count == 0 else f"{count} problem{'s' * (count > 1)}"


def inspect_coco(folder: Path | str, class_names: Sequence[str] | None = None, decode: bool = False) -> CocoReport:
    """Read every JSON and every image header of a COCO folder.

    Args:
        folder: See `prunedeploy.data.coco.find_splits`.
        class_names: The network's classes, to check that it has all categories; None: the training split's
            categories are what the test split may use.
        decode: Decode every image too. Finds damage behind the header; about 5 ms per photo.
    """
    folder = Path(folder)
    report = CocoReport(folder)
    try:
        splits = find_splits(folder)
    except DataError as error:
        report.problems.append(Problem(folder, error.what, error.fix or "check the folder"))
        return report
    seen: dict[Path, str] = {}
    for name, files in (("train", splits.train), ("test", splits.test), ("undivided", splits.undivided)):
        if files is None:
            continue
        dataset, problems = read_coco(files.json_path, files.image_folder, class_names)
        report.problems.extend(problems)
        if dataset is None:
            continue
        class_names = class_names or dataset.class_names
        report.problems.extend(_image_problems(dataset, decode))
        report.problems.extend(_shared_images(dataset, name, seen))
        report.splits.append(summarise(dataset, name))
    return report


def _image_problems(dataset: CocoDataset, decode: bool) -> Iterator[Problem]:
    for record in dataset.images:
        try:
            (read_record if decode else check_header)(record)
        except DataError as error:
            named = f"image {record.image_id}"
            what = error.what if named in error.what else f"{named}: {error.what}"
            yield Problem(record.path, what, error.fix or "put the image there, or remove it from the JSON")


def _shared_images(dataset: CocoDataset, split: str, seen: dict[Path, str]) -> Iterator[Problem]:
    """Yield images that two records name; between splits, that is testing on what was trained on."""
    for record in dataset.images:
        path = record.path.resolve()
        if path in seen:
            where = "twice in this split" if seen[path] == split else f"in {seen[path]} and in {split}"
            yield Problem(record.path, f"image {record.image_id}: this file is {where}", "keep it in one place")
        seen.setdefault(path, split)


def summarise(dataset: CocoDataset, split: str) -> SplitSummary:
    """Count what one split holds."""
    single = [~record.iscrowd for record in dataset.images]
    classes = [record.class_ids[keep] for record, keep in zip(dataset.images, single, strict=True)]
    areas = [
        (record.boxes_xywh.prod(axis=1) if record.areas is None else record.areas)[keep]
        for record, keep in zip(dataset.images, single, strict=True)
    ]
    per_class = np.bincount(np.concatenate(classes), minlength=len(dataset.class_names))
    area = np.concatenate(areas)
    small, large = int((area < _SMALL_AREA).sum()), int((area >= _LARGE_AREA).sum())
    sizes = Counter(f"{record.width} x {record.height}" for record in dataset.images)
    frequent = dict(sizes.most_common(10))
    others = len(dataset.images) - sum(frequent.values())
    return SplitSummary(
        split=split,
        json_path=dataset.json_path,
        images=len(dataset.images),
        images_without_boxes=sum(len(record.class_ids) == 0 for record in dataset.images),
        boxes=len(area),
        crowd_boxes=sum(int(record.iscrowd.sum()) for record in dataset.images),
        boxes_per_class=dict(zip(dataset.class_names, per_class.tolist(), strict=True)),
        boxes_by_size={"small": small, "medium": len(area) - small - large, "large": large},
        image_sizes=frequent | ({"others": others} if others else {}),
    )
