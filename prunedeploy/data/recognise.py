"""Which format a data folder has, by looking, and which of its splits is for training and which for test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prunedeploy.data.formats.coco_folders import find_coco
from prunedeploy.data.formats.layout import Layout, SplitFiles
from prunedeploy.data.formats.voc import find_voc
from prunedeploy.data.formats.yolo import find_yolo
from prunedeploy_engines.errors import DataError

LAYOUTS = (
    "COCO JSON (train.json + train/ and test.json + test/, annotations/instances_*.json, or one JSON + images/), "
    "YOLO labels with a data.yaml, or Pascal VOC's Annotations/"
)


@dataclass(frozen=True)
class Splits:
    """What `find_splits` found; ``undivided`` is set exactly if there is neither a train nor a test split.

    ``validation`` is not read by a build: it is set where there is a test split beside it.
    """

    train: SplitFiles | None = None
    test: SplitFiles | None = None
    undivided: SplitFiles | None = None
    validation: SplitFiles | None = None
    format: str = "COCO"

    @property
    def named(self) -> dict[str, SplitFiles]:
        """Those that a build reads, by name."""
        pairs = (("train", self.train), ("test", self.test), ("undivided", self.undivided))
        return {name: files for name, files in pairs if files is not None}


def find_splits(folder: Path | str) -> Splits:
    """Find what is for training and what for test in a folder.

    A validation split is taken for test where there is no test split; ``trainval`` for training where there is one.

    Raises:
        DataError: No such folder; nothing in it that can be read, or what could be two formats.
    """
    layout = find_layout(Path(folder))
    train, test, validation = chosen(list(layout.splits))
    get = layout.splits.get
    return Splits(get(train), get(test), get("all"), get(validation), layout.format)


def find_layout(folder: Path) -> Layout:
    """Recognise a folder.

    Raises:
        DataError: As `find_splits`.
    """
    if not folder.is_dir():
        raise DataError("no such data folder", folder, "give the folder that holds images and labels")
    coco, voc = find_coco(folder), find_voc(folder)
    found = [] if coco is None else [("COCO", coco)]
    if voc is not None:
        found.append(("Pascal VOC", voc.layout()))
    try:
        yolo = find_yolo(folder)
    except DataError:
        if not found:  # a stray YAML file does not spoil a data set that is there
            raise
        yolo = None
    if yolo is not None and (not found or yolo.has_labels()):
        found.append(("YOLO", yolo.layout()))
    if len(found) > 1:
        named = [f"{name} by {layout.evidence.relative_to(folder)}" for name, layout in found]
        raise DataError(
            f"could be two formats: {' and '.join(named[:2])}", folder, "remove the labels that do not count"
        )
    if not found:
        raise _unknown(folder)
    return found[0][1]


def chosen(names: Sequence[str]) -> tuple[str, str, str]:
    """Which split is for training, which for test, and which is kept for validation; empty where there is none."""
    train = "trainval" if "trainval" in names and ("test" in names or "train" not in names) else "train"
    test = "test" if "test" in names else "val"
    if (train, test) == ("trainval", "val"):  # the one is part of the other
        test = ""
    kept = "val" if train == "train" and test == "test" else ""
    return tuple(name if name in names else "" for name in (train, test, kept))  # type: ignore[return-value]


def _unknown(folder: Path) -> DataError:
    jsons = sorted([*folder.glob("*.json"), *folder.glob("annotations/*.json")])
    if any(folder.glob("labels/**/*.txt")) or any(folder.glob("*/labels/*.txt")):
        what, fix = "has YOLO labels, but nothing that names their classes", "add a data.yaml with train, val and names"
    elif jsons:
        what, fix = f"no COCO JSON in this folder ({jsons[0].name} has no images and annotations)", f"give {LAYOUTS}"
    else:
        what, fix = "no COCO JSON in this folder, and no labels of YOLO or Pascal VOC", f"give {LAYOUTS}"
    return DataError(what, folder, fix)
