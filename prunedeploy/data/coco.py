"""COCO folders: find the splits, load them, divide them.

Nothing here opens an image; `prunedeploy.data.loader` does, and `prunedeploy.data.check` looks at the files.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from prunedeploy.data.coco_json import read_coco
from prunedeploy.data.records import CocoDataset
from prunedeploy_engines.errors import DataError

TRAIN_FRACTION = 0.8
"""Share of an undivided data set that is for training if no number is given."""


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
    (``annotations/instances_train2017.json`` + ``train2017/``, ``instances_val2017.json`` + ``val2017/``, the
    newest year there is); or a single JSON (in the folder or in ``annotations/``) + ``images/``, which is
    undivided. A folder may hold only one of the two splits.

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


def load_coco(json_path: Path | str, image_folder: Path | str, class_names: Sequence[str] | None = None) -> CocoDataset:
    """Read a COCO instances JSON and check every record of it.

    Args:
        json_path: The JSON.
        image_folder: The folder that ``file_name`` is relative to; its parent is tried too.
        class_names: The network's classes; the JSON's categories are mapped to them by name (Darknet's and
            COCO's names of the same class are the same). The JSON may have fewer. None: the JSON's categories
            by id.

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


def load_splits(
    folder: Path | str,
    class_names: Sequence[str] | None = None,
    train_images: int | None = None,
    seed: int = 0,
) -> tuple[CocoDataset, CocoDataset]:
    """Load what is for training and what is for test.

    Args:
        folder: See `find_splits`.
        class_names: See `load_coco`; None: the training JSON's categories, for both splits.
        train_images: Size of the training set. With both splits there, a seeded random subset of the training
            split if that is larger (its rest is not used). With one JSON only, the rest is for test; None: 80
            %.
        seed: Seed of the draw.

    Raises:
        DataError: See `find_splits`, `load_coco` and `train_test_subset`.
    """
    splits = find_splits(folder)
    if splits.train and splits.test:
        train = load_coco(splits.train.json_path, splits.train.image_folder, class_names)
        test = load_coco(splits.test.json_path, splits.test.image_folder, class_names or train.class_names)
        if train_images is not None and train_images < len(train.images):
            train, _ = train_test_subset(train, train_images, seed)
        return train, test
    only = splits.undivided or splits.train or splits.test
    assert only is not None  # find_splits raises otherwise
    dataset = load_coco(only.json_path, only.image_folder, class_names)
    if train_images is None:
        train_images = max(1, int(TRAIN_FRACTION * len(dataset.images)))
    return train_test_subset(dataset, train_images, seed)


def load_test_split(
    folder: Path | str,
    class_names: Sequence[str] | None = None,
    train_images: int | None = None,
    seed: int = 0,
) -> CocoDataset:
    """Load what is for test, as `load_splits` does; a folder that only has a test split gives all of it."""
    splits = find_splits(folder)
    if splits.test is None or (class_names is None and splits.train is not None):
        return load_splits(folder, class_names, train_images, seed)[1]
    return load_coco(splits.test.json_path, splits.test.image_folder, class_names)


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
    drawn = set(np.random.default_rng([seed, total]).permutation(total)[:train_images].tolist())
    train = [image for index, image in enumerate(dataset.images) if index in drawn]
    test = [image for index, image in enumerate(dataset.images) if index not in drawn]
    return replace(dataset, images=train), replace(dataset, images=test)


def measured_subset(dataset: CocoDataset, images: int) -> CocoDataset:
    """Draw ``images`` of the test images to measure on, in the order of the JSON: the same ones whatever a run's seed.

    So runs that differ in their seeds alone are compared on the same images.

    Raises:
        DataError: There are not more images than asked for.
    """
    return train_test_subset(dataset, images, seed=0)[0]
