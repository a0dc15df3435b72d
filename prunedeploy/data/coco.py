"""Data sets in memory: load a split, or what is for training and what for test; divide them.

Nothing here opens an image of a COCO JSON; `prunedeploy.data.loader` does, and `prunedeploy.data.check` looks at the
files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from prunedeploy.data.coco_json import read_coco
from prunedeploy.data.formats.layout import SplitFiles
from prunedeploy.data.recognise import find_splits
from prunedeploy.data.records import CocoDataset, Problem
from prunedeploy_engines.errors import DataError

TRAIN_FRACTION = 0.8
"""Share of an undivided data set that is for training if no number is given."""


@dataclass(frozen=True)
class Allowed:
    """What is left out of a split instead of refusing it.

    Attributes:
        bad_boxes: Boxes that cannot be used.
        bad_images: Images that cannot be used, where the labels show it already.
        only_known_classes: Boxes of classes that the network does not have.
    """

    bad_boxes: bool = False
    bad_images: bool = False
    only_known_classes: bool = False

    def refuses(self, problem: Problem) -> bool:
        """Whether a problem costs the whole split."""
        known_class = self.only_known_classes and problem.kind.startswith("box of another class")
        passes = {"box": self.bad_boxes or known_class, "image": self.bad_images, "edge": True, "figures": True}
        return not passes.get(problem.spoils, False)

    def in_training(self) -> Allowed:
        """The same for a training split: what is wrong with one record costs that record."""
        return replace(self, bad_boxes=True, bad_images=True)


def load_coco(
    json_path: Path | str,
    image_folder: Path | str,
    class_names: Sequence[str] | None = None,
    allowed: Allowed = Allowed(),
) -> CocoDataset:
    """Read a COCO instances JSON and check every record of it.

    Args:
        json_path: The JSON.
        image_folder: The folder that ``file_name`` is relative to; its parent is tried too.
        class_names: The network's classes; the JSON's categories are mapped to them by name (Darknet's and
            COCO's names of the same class are the same). The JSON may have fewer. None: the JSON's categories
            by id.
        allowed: What is left out instead of ending with an error.

    Returns:
        The split, boxes clipped to their images, crowd boxes flagged, images without boxes included.

    Raises:
        DataError: The first problem that is not allowed, and how many more there are.
    """
    return _load(SplitFiles(Path(json_path), Path(image_folder)), class_names, allowed)


def _load(files: SplitFiles, class_names: Sequence[str] | None, allowed: Allowed) -> CocoDataset:
    dataset, problems = read_coco(files, class_names, allowed.only_known_classes)
    if refused := refused_problems(dataset, problems, allowed):
        first, more = refused[0], len(refused) - 1
        fix = first.fix
        if dataset is not None and first.spoils in ("box", "image"):
            word = "boxes" if first.spoils == "box" else "images"
            fix += f", or leave such {word} out with data.allow_bad_{word}=true (evaluate: --allow-bad-{word})"
        rest = f" ({more} more problem{'s' * (more > 1)}: `prunedeploy data check` lists them)" if more else ""
        raise DataError(first.what, first.file, fix + rest)
    assert dataset is not None  # its problems are refused
    return dataset


def refused_problems(dataset: CocoDataset | None, problems: Sequence[Problem], allowed: Allowed) -> list[Problem]:
    """Those of the problems that `read_coco` found that cost the split; one more if no box is left of many."""
    if dataset is None:
        return list(problems)
    refused = [problem for problem in problems if allowed.refuses(problem)]
    lost = sum(problem.count for problem in problems if problem.spoils == "box")
    if lost and not refused and not any(len(image.class_ids) for image in dataset.images):
        first = next(problem for problem in problems if problem.spoils == "box")
        what = f"not one of its {lost} boxes can be used; the first: {first.what}"
        refused.append(Problem(dataset.json_path, what, first.fix, kind="not one box can be used"))
    return refused


def load_splits(
    folder: Path | str,
    class_names: Sequence[str] | None = None,
    train_images: int | None = None,
    seed: int = 0,
    allowed: Allowed = Allowed(),
) -> tuple[CocoDataset, CocoDataset]:
    """Load what is for training and what is for test.

    Args:
        folder: See `find_splits`.
        class_names: See `load_coco`; None: the training JSON's categories, for both splits.
        train_images: Size of the training set. With both splits there, a seeded random subset of the training
            split if that is larger (its rest is not used). With one split only, the rest is for test; None: 80
            %.
        seed: Seed of the draw.
        allowed: What is left out of the test split; of a training split, and of one that is yet to be divided, bad
            records always are.

    Raises:
        DataError: See `find_splits`, `load_coco` and `train_test_subset`.
    """
    splits = find_splits(folder)
    if splits.train and splits.test:
        train = _load(splits.train, class_names, allowed.in_training())
        test = _load(splits.test, class_names or train.class_names, allowed)
        if train_images is not None and train_images < len(train.images):
            train, _ = train_test_subset(train, train_images, seed)
        return train, test
    only = splits.undivided or splits.train or splits.test
    assert only is not None  # find_splits raises otherwise
    dataset = _load(only, class_names, allowed if splits.test else allowed.in_training())
    if train_images is None:
        train_images = max(1, int(TRAIN_FRACTION * len(dataset.images)))
    return train_test_subset(dataset, train_images, seed)


def load_test_split(
    folder: Path | str,
    class_names: Sequence[str] | None = None,
    train_images: int | None = None,
    seed: int = 0,
    allowed: Allowed = Allowed(),
) -> CocoDataset:
    """Load what is for test, as `load_splits` does; a folder that only has a test split gives all of it."""
    splits = find_splits(folder)
    if splits.test is None or (class_names is None and splits.train is not None):
        return load_splits(folder, class_names, train_images, seed, allowed)[1]
    return _load(splits.test, class_names, allowed)


def train_test_subset(dataset: CocoDataset, train_images: int, seed: int) -> tuple[CocoDataset, CocoDataset]:
    """Draw ``train_images`` images for training; the rest is for test. Both keep the order of the JSON.

    What was left out of the data set stays with the first.

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
    drawn = set(np.random.default_rng([seed, total]).permutation(total)[:train_images].tolist())
    train = [image for index, image in enumerate(dataset.images) if index in drawn]
    test = [image for index, image in enumerate(dataset.images) if index not in drawn]
    return replace(dataset, images=train), replace(dataset, images=test, problems=())


def measured_subset(dataset: CocoDataset, images: int) -> CocoDataset:
    """Draw ``images`` of the test images to measure on, in the order of the JSON: the same ones whatever a run's seed.

    So runs that differ in their seeds alone are compared on the same images.

    Raises:
        DataError: There are not more images than asked for.
    """
    return train_test_subset(dataset, images, seed=0)[0]
