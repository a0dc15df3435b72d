"""Pascal VOC: an XML file per image, corners in pixels.

Either ``Annotations/``, ``JPEGImages/`` and ``ImageSets/Main/{train,val,trainval,test}.txt``, or a folder per split
(``train``, ``valid``, ``test``) with the XML files beside the images (Roboflow). Corners are taken as they stand:
labelling tools of today count pixels from 0, VOC's own files of 2007 to 2012 from 1, which moves a box by one pixel.
Objects marked ``difficult`` cost no mAP, as in VOC.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

from prunedeploy.data.formats.labels import (
    IMAGE_SUFFIXES,
    LabelledBox,
    LabelledImage,
    Labels,
    as_problem,
    read_text,
    upright_size,
)
from prunedeploy.data.formats.layout import Layout, SplitFiles
from prunedeploy.data.records import Problem
from prunedeploy_engines.errors import DataError

SPLIT_FOLDERS = {"train": ("train",), "val": ("valid", "val"), "test": ("test",)}


@dataclass(frozen=True)
class VocLayout:
    """A data set in Pascal VOC's format.

    Attributes:
        source: The folder, or the file with the class names.
        splits: The XML files of each split (``train``, ``val``, ``trainval``, ``test``, or ``all``).
        class_names: In the order of the class indices: alphabetical, as VOC's own are.
        image_folder: Folder of the images; None: beside the XML files.
        problems: XML files that a list names and that are not there, by split.
    """

    source: Path
    splits: Mapping[str, Sequence[Path]]
    class_names: Sequence[str]
    image_folder: Path | None
    problems: Mapping[str, Sequence[Problem]] = field(default_factory=dict)

    def layout(self) -> Layout:
        """The same for whoever does not care about the format."""
        splits = {}
        for name, files in self.splits.items():
            listed = self.source / "ImageSets" / "Main" / f"{name}.txt"
            place = listed if listed.is_file() else files[0].parent if files else self.source
            splits[name] = SplitFiles(place, self.image_folder or place, partial(self.read, name))
        first = next((file for files in self.splits.values() for file in files), None)
        return Layout("Pascal VOC", self.source if first is None else first.parent, splits)

    def read(self, split: str) -> Labels:
        """Read the XML files of one split."""
        labels = Labels(self.source, self.class_names, problems=list(self.problems.get(split, ())))
        images = _Images(self.image_folder)
        class_ids = {name: index for index, name in enumerate(self.class_names)}
        for path in self.splits[split]:
            try:
                labels.images.append(_read_xml(path, images, class_ids, labels.problems))
            except DataError as error:
                labels.problems.append(as_problem(error, path))
        return labels


def find_voc(folder: Path) -> VocLayout | None:
    """Look for a Pascal VOC data set; None if the folder is none.

    Raises:
        DataError: A list of a split cannot be read, or there are several data sets.
    """
    root = _root(folder)
    if root is None:
        return None
    annotations = _annotations(root)
    problems: dict[str, list[Problem]] = {}
    if annotations is not None:
        splits = {}
        for split in ("train", "val", "trainval", "test"):
            path = root / "ImageSets" / "Main" / f"{split}.txt"
            if path.is_file():
                splits[split] = _listed(path, annotations, problems.setdefault(split, []))
        splits = splits or {"all": sorted(annotations.glob("*.xml"))}
        images = next((root / name for name in ("JPEGImages", "images", "Images") if (root / name).is_dir()), None)
    else:
        splits = {split: found for split in SPLIT_FOLDERS if (found := _beside(root, split))}
        images = None
    every_file = dict.fromkeys(path for files in splits.values() for path in files)
    return VocLayout(root, splits, _class_names(every_file), images, problems)


def _root(folder: Path) -> Path | None:
    """The folder that holds ``Annotations`` or the splits: this one, or the only ``VOC...`` folder in it."""
    for root in (folder, folder / "VOCdevkit"):
        if _annotations(root) is not None or any(_beside(root, split) for split in SPLIT_FOLDERS):
            return root
        years = [path for path in sorted(root.glob("VOC*")) if _annotations(path) is not None]
        if len(years) > 1:
            raise DataError(f"holds {' and '.join(path.name for path in years)}", root, "give one of these folders")
        if years:
            return years[0]
    return None


def _annotations(root: Path) -> Path | None:
    """The folder of the XML files; many write its name in lower case."""
    return next((root / name for name in ("Annotations", "annotations") if any((root / name).glob("*.xml"))), None)


def _beside(root: Path, split: str) -> list[Path]:
    return [path for name in SPLIT_FOLDERS[split] for path in sorted((root / name).glob("*.xml"))]


def _listed(path: Path, annotations: Path, problems: list[Problem]) -> list[Path]:
    """The XML files of a list with one stem per line."""
    files: dict[Path, None] = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        name = line.split()[0] if line.split()[-1] in {"1", "0", "-1"} else line.strip()
        file = annotations / f"{name.removesuffix('.xml')}.xml"
        if file.is_file():
            files[file] = None
        else:
            what = f"line {number}: there is no {file.name} in Annotations"
            problems.append(Problem(path, what, "remove the line", "image", "listed XML file that is not there"))
    return list(files)


def _class_names(files: Mapping[Path, None]) -> list[str]:
    names: set[str] = set()
    for path in files:
        try:
            names.update(name for thing in _parsed(path).iter("object") if (name := _text(thing, "name")))
        except DataError:
            continue  # named when its split is read
    return sorted(names)


class _Images:
    """Finds images by the names of their XML files, as the suffix is not in the list and ``filename`` often lies."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._by_stem: dict[Path, dict[str, Path]] = {}

    def of(self, xml: Path, file_name: str) -> Path:
        folder = self.folder or xml.parent
        if folder not in self._by_stem:
            images = (path for path in sorted(folder.iterdir()) if path.suffix.lower() in IMAGE_SUFFIXES)
            self._by_stem[folder] = {path.stem: path for path in images}
        stems = self._by_stem[folder]
        found = stems.get(xml.stem) or stems.get(Path(file_name.replace("\\", "/")).stem)
        if found is None:
            raise DataError(f"there is no image {xml.stem} in {folder}", xml, "put it there, or remove the XML file")
        return found


def _read_xml(path: Path, images: _Images, class_ids: Mapping[str, int], problems: list[Problem]) -> LabelledImage:
    root = _parsed(path)
    image = images.of(path, _text(root, "filename"))
    height, width = (_number(root, f"size/{side}") for side in ("height", "width"))
    if not (height and width and height > 0 and width > 0 and height.is_integer() and width.is_integer()):
        height, width = upright_size(image)  # some tools write zeros, or nothing
    boxes = []
    for number, thing in enumerate(root.findall("object"), 1):
        name = _text(thing, "name")
        try:
            if not name:
                raise DataError("has no name", fix="give it the name of its class")
            box = LabelledBox(path, f"object {number}", class_ids[name], _box(thing), _text(thing, "difficult") == "1")
        except DataError as error:
            problems.append(Problem(path, f"object {number} {error.what}", str(error.fix), "box"))
        else:
            boxes.append(box)
    return LabelledImage(image, int(height), int(width), boxes)


def _box(thing: ElementTree.Element) -> tuple[float, float, float, float]:
    corners = [_number(thing, f"bndbox/{name}") for name in ("xmin", "ymin", "xmax", "ymax")]
    if any(corner is None or not math.isfinite(corner) for corner in corners):
        rotated = thing.find("robndbox") is not None
        what = "is a rotated box" if rotated else "has no bndbox of xmin, ymin, xmax and ymax"
        raise DataError(what, fix="give a box along the axes" if rotated else "add the four numbers, or remove it")
    x0, y0, x1, y1 = (float(corner) for corner in corners if corner is not None)
    if x1 < x0 or y1 < y0:
        raise DataError(
            f"has its corners the wrong way round ({x0:g}, {y0:g}, {x1:g}, {y1:g})",
            fix="bndbox is xmin, ymin, xmax, ymax",
        )
    return x0, y0, x1 - x0, y1 - y0


def _parsed(path: Path) -> ElementTree.Element:
    try:
        return ElementTree.parse(path).getroot()
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", path, "check its permissions") from None
    except (ElementTree.ParseError, ValueError) as error:
        raise DataError(f"is not XML ({error})", path, "export it again as Pascal VOC") from None


def _text(element: ElementTree.Element, path: str) -> str:
    return (element.findtext(path) or "").strip()


def _number(element: ElementTree.Element, path: str) -> float | None:
    try:
        return float(_text(element, path))
    except ValueError:
        return None
