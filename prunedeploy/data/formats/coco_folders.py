"""COCO JSON in the folders of the tools that write it.

=================================================  ==============================================
annotations                                        images
=================================================  ==============================================
``train.json``, ``test.json``                      ``train/``, ``test/``
``annotations/instances_val2017.json``             ``val2017/``, or ``images/val2017/`` (Ultralytics)
``annotations/instances_Train.json``, ...          ``images/``, ``images/Train/`` (CVAT, Datumaro)
``train/_annotations.coco.json``, ...              beside it (Roboflow), or ``train/data/``
one JSON, e.g. ``labels.json``, ``result.json``    ``data/`` (FiftyOne), ``images/`` (Label Studio)
=================================================  ==============================================
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from prunedeploy.data.formats.layout import Layout, SplitFiles
from prunedeploy_engines.errors import DataError

SPLIT_NAMES = {
    "train": "train", "training": "train", "trainval": "trainval",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
"""The names that splits go by, and what they are called here."""

_IMAGE_FOLDERS = ("images", "data", "JPEGImages")
_OTHER_TASKS = ("captions", "image_info", "panoptic", "person_keypoints", "stuff")


def find_coco(folder: Path) -> Layout | None:
    """Look for COCO JSON in a folder; None if there is none.

    Raises:
        DataError: There are several files of one split, or several that no name tells apart.
    """
    own = {name: path for name in ("train", "test") if (path := folder / f"{name}.json").is_file()}
    if own:
        splits = {name: SplitFiles(path, folder / name) for name, path in own.items()}
        return Layout("COCO", next(iter(own.values())), splits)
    return _official(folder) or _single(folder) or _named(folder) or _folder_per_split(folder)


def is_coco(path: Path) -> bool:
    """Whether a file may be a COCO JSON, by what stands in it; it need not be valid."""
    try:
        content = path.read_bytes()
    except OSError:
        return False
    return b'"images"' in content and b'"annotations"' in content


def _official(folder: Path) -> Layout | None:
    """The newest year of ``instances_train2017.json`` and ``instances_val2017.json``."""
    splits: dict[str, SplitFiles] = {}
    for name in ("train", "val"):
        pattern = re.compile(rf"instances_({name}(\d{{4}}))\.json")
        years = [match for path in folder.glob("annotations/*.json") if (match := pattern.fullmatch(path.name))]
        if years:
            newest = max(years, key=lambda match: int(match[2]))
            images = _image_folder(folder, newest[1], default=folder / newest[1])
            splits[name] = SplitFiles(folder / "annotations" / newest[0], images)
    if not splits:
        return None
    below = any(files.image_folder.parent != folder for files in splits.values())
    return Layout(_as("Ultralytics") if below else "COCO", next(iter(splits.values())).json_path, splits)


def _single(folder: Path) -> Layout | None:
    candidates = sorted(folder.glob("*.json")) or sorted(folder.glob("annotations/*.json"))
    if len(candidates) > 1:
        candidates = [path for path in candidates if is_coco(path)]
    if len(candidates) != 1 or not is_coco(candidates[0]):
        return None
    (path,) = candidates
    subset = path.stem.removeprefix("instances_")
    from_cvat = path.parent != folder and subset != path.stem
    images = _image_folder(folder, *([subset] if from_cvat else []), default=folder)
    tool = {"labels.json": "FiftyOne", "result.json": "Label Studio"}.get(path.name)
    return Layout(_as("CVAT or Datumaro" if from_cvat else tool), path, {"all": SplitFiles(path, images)})


def _named(folder: Path) -> Layout | None:
    """A JSON per split, in the folder or in ``annotations``, that has the split's name in its own."""
    for place in (folder, folder / "annotations"):
        files = [path for path in sorted(place.glob("*.json")) if not path.stem.startswith(_OTHER_TASKS)]
        files = [path for path in files if path.stem.startswith("instances_")] or files
        by_split: dict[str, Path] = {}
        for path in filter(is_coco, files):
            names = [word for word in re.split(r"[^A-Za-z]+", path.stem) if word.lower() in SPLIT_NAMES]
            split = SPLIT_NAMES[names[0].lower()] if len(names) == 1 else path.stem
            if split in by_split:
                _refuse_several(folder, [by_split[split], path])
            by_split[split] = path
        strange = [path for split, path in by_split.items() if split not in SPLIT_NAMES.values()]
        if strange:
            _refuse_several(folder, strange if len(strange) > 1 else list(by_split.values()))
        if by_split:
            splits = {}
            for split, path in by_split.items():
                also = [name for name, meant in SPLIT_NAMES.items() if meant == split]
                images = _image_folder(folder, path.stem.removeprefix("instances_"), *also, default=folder)
                splits[split] = SplitFiles(path, images)
            first = next(iter(by_split.values()))
            return Layout(_as("CVAT or Datumaro" if first.stem.startswith("instances_") else None), first, splits)
    return None


def _folder_per_split(folder: Path) -> Layout | None:
    """A folder per split with a JSON in it, beside the images or a folder of them."""
    splits: dict[str, SplitFiles] = {}
    for below, split in _split_folders(folder):
        files = [path for path in sorted(below.glob("*.json")) if is_coco(path)]
        if len(files) > 1:
            _refuse_several(below, files)
        if files:
            if split in splits:
                _refuse_several(folder, [splits[split].json_path, files[0]])
            splits[split] = SplitFiles(files[0], _image_folder(below, default=below))
    if not splits:
        return None
    first = next(iter(splits.values())).json_path
    tool = {"_annotations.coco.json": "Roboflow", "labels.json": "FiftyOne"}.get(first.name)
    return Layout(_as(tool), first, splits)


def _split_folders(folder: Path) -> Iterator[tuple[Path, str]]:
    for below in sorted(folder.iterdir()):
        if below.is_dir() and (split := SPLIT_NAMES.get(below.name.lower().rstrip("0123456789"))):
            yield below, split


def _image_folder(folder: Path, *subsets: str, default: Path) -> Path:
    """The first of the folders that images are in: of the subset, of all."""
    names = [name for subset in subsets for name in dict.fromkeys((subset, subset.lower()))]
    places: Sequence[Path] = [
        *(base / name for name in names for base in (folder, folder / "images")),
        *(folder / name for name in _IMAGE_FOLDERS),
    ]
    return next((place for place in places if place.is_dir()), default)


def _as(tool: str | None) -> str:
    return "COCO" if tool is None else f"COCO, as {tool} arrange{'' if ' or ' in tool else 's'} it"


def _refuse_several(folder: Path, files: Sequence[Path]) -> None:
    named: Mapping[Path, None] = dict.fromkeys(path.relative_to(folder) for path in files)
    what = f"{' and '.join(map(str, named))} could each be the one"
    raise DataError(what, folder, "keep one, or name them after their splits: train.json, test.json")
