"""Say everything that is wrong with a data folder in one go, and what is in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from prunedeploy.data.coco import Allowed, refused_problems
from prunedeploy.data.coco_json import read_coco
from prunedeploy.data.left_out import CLIPPED, LEFT_OUT, ProblemRow, problem_rows
from prunedeploy.data.reading import check_header, read_record
from prunedeploy.data.recognise import find_splits
from prunedeploy.data.records import CocoDataset, Problem
from prunedeploy_engines.errors import DataError

# COCO's own limits, in square pixels of the original image: cocodataset.org/#detection-eval.
_SMALL_AREA, _LARGE_AREA = 32**2, 96**2


@dataclass(frozen=True)
class SplitSummary:
    """What one split holds; faulty records are not counted.

    Attributes:
        split: ``train``, ``test`` or ``undivided``.
        json_path: Its JSON, or what stands for its labels.
        images: Images that it names.
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
        format: What it was taken for; empty if it was not recognised.
        problems: Everything that is wrong.
        rows: The same, counted: of every split and kind.
        splits: What each readable split holds.
    """

    folder: Path
    format: str = ""
    problems: list[Problem] = field(default_factory=list)
    rows: list[ProblemRow] = field(default_factory=list)
    splits: list[SplitSummary] = field(default_factory=list)

    @property
    def usable(self) -> bool:
        """Nothing is wrong that ends a build, or spoils its figures."""
        return all(row.becomes in (LEFT_OUT, CLIPPED) for row in self.rows)

    def as_json(self) -> dict[str, Any]:
        """Return plain values that ``json`` can write."""
        return {**TypeAdapter(CocoReport).dump_python(self, mode="json"), "usable": self.usable}

    def summary(self) -> Iterator[str]:
        """Yield what is there, for people, line by line."""
        for split in self.splits:
            yield (
                f"{split.split}: {split.images} images ({split.images_without_boxes} without boxes), "
                f"{split.boxes} boxes and {split.crowd_boxes} crowd boxes "
                f"of {len(split.boxes_per_class)} classes"
            )
            inside = split.json_path.is_relative_to(self.folder)
            yield f"  labels: {split.json_path.relative_to(self.folder) if inside else split.json_path}"
            yield "  boxes by size: " + ", ".join(f"{number} {name}" for name, number in split.boxes_by_size.items())
            yield "  boxes by class: " + ", ".join(f"{name} {n}" for name, n in split.boxes_per_class.items())
            yield "  image sizes: " + ", ".join(f"{size} ({n})" for size, n in split.image_sizes.items())

    def lines(self) -> Iterator[str]:
        """Yield the report for people: what is there, then what is wrong."""
        yield from self.summary()
        yield from (str(problem) for problem in self.problems)
        count = len(self.problems)
        yield "nothing is wrong" if count == 0 else f"{count} problem{'s' * (count > 1)}"

    def add(self, split: str, problems: Sequence[Problem], allowed: Allowed) -> None:
        """Take up the problems of one split."""

        def becomes(problem: Problem) -> str:
            if allowed.refuses(problem):
                key = {"box": " without data.allow_bad_boxes", "image": " without data.allow_bad_images"}
                return f"an error{key.get(problem.spoils, '')}"
            return {"edge": CLIPPED, "figures": "measured on what was trained on"}.get(problem.spoils, LEFT_OUT)

        self.problems.extend(problems)
        self.rows.extend(problem_rows(split, problems, becomes))


def inspect_coco(
    folder: Path | str,
    class_names: Sequence[str] | None = None,
    decode: bool = False,
    only_known_classes: bool = False,
) -> CocoReport:
    """Read all labels and every image header of a data folder.

    Args:
        folder: See `prunedeploy.data.recognise.find_splits`.
        class_names: The network's classes, to check that it has all categories; None: the training split's
            categories are what the test split may use.
        decode: Decode every image too. Finds damage behind the header; about 5 ms per photo.
        only_known_classes: As the configuration's ``data.only_known_classes``.
    """
    folder = Path(folder)
    allowed = Allowed(only_known_classes=only_known_classes)
    try:
        splits = find_splits(folder)
    except DataError as error:
        report = CocoReport(folder)
        report.add("", [Problem(Path(error.where or folder), error.what, error.fix or "check the folder")], allowed)
        return report
    report = CocoReport(folder, splits.format)
    seen: dict[Path, str] = {}
    for name, files in splits.named.items():
        dataset, problems = read_coco(files, class_names, only_known_classes)
        if dataset is not None:
            class_names = class_names or dataset.class_names
            problems = [*problems, *bad_images(dataset, decode), *_shared_images(dataset, name, seen)]
            report.splits.append(summarise(dataset, name))
        of_split = allowed if name == "test" else allowed.in_training()
        problems += [more for more in refused_problems(dataset, problems, of_split) if more not in problems]
        report.add(name, problems, of_split)
    return report


def bad_images(dataset: CocoDataset, decode: bool) -> Iterator[Problem]:
    """Yield the images that cannot be used, by their headers or, decoded, by all of their pixels."""
    for record in dataset.images:
        try:
            (read_record if decode else check_header)(record)
        except DataError as error:
            named = f"image {record.image_id}"
            what = error.what if named in error.what else f"{named}: {error.what}"
            fix = error.fix or "put the image there, or remove it from the JSON"
            yield Problem(record.path, what, fix, "image")


def _shared_images(dataset: CocoDataset, split: str, seen: dict[Path, str]) -> Iterator[Problem]:
    """Yield images that two records name; between splits, that is testing on what was trained on."""
    for record in dataset.images:
        path = record.path.resolve()
        if path in seen:
            where = "twice in this split" if seen[path] == split else f"in {seen[path]} and in {split}"
            what = f"image {record.image_id}: this file is {where}"
            yield Problem(record.path, what, "keep it in one place", "figures", f"file that is {where}")
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
