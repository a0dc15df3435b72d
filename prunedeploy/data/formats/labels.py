"""What a reader of YOLO or Pascal VOC labels hands over: a COCO document, and what it could not read."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from prunedeploy.data.records import Problem
from prunedeploy_engines.errors import DataError

IMAGE_SUFFIXES = frozenset(".avif .bmp .gif .jfif .jp2 .jpeg .jpg .pgm .png .ppm .tif .tiff .webp".split())
"""What counts as an image where a folder is listed, in lower case."""


@dataclass(frozen=True)
class LabelledBox:
    """One object of an image.

    Attributes:
        file: What it was read from.
        where: The place in it, for people, e.g. ``line 3``.
        class_id: Index into the class names.
        xywh: Left, top, width and height in pixels of the upright image.
        ignored: It is not a training target and costs no mAP (``difficult`` of Pascal VOC).
    """

    file: Path
    where: str
    class_id: int
    xywh: tuple[float, float, float, float]
    ignored: bool = False


@dataclass(frozen=True)
class LabelledImage:
    """One image with its objects; height and width are those of the upright image in pixels."""

    path: Path
    height: int
    width: int
    boxes: Sequence[LabelledBox] = ()


@dataclass
class Labels:
    """One split as a reader found it.

    Attributes:
        source: The file that describes it, e.g. ``data.yaml``.
        class_names: In the order of the class indices.
        images: In the order of the split.
        problems: What could not be read; it is not among the images and boxes.
    """

    source: Path
    class_names: Sequence[str]
    images: list[LabelledImage] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def image_folder(self) -> Path:
        """The deepest folder that holds all images; file names in the document are relative to it."""
        folders = {image.path.parent for image in self.images}
        return Path(os.path.commonpath(folders)) if folders else self.source.parent

    def document(self) -> dict[str, list[dict[str, Any]]]:
        """The split as a COCO instances document; ids count from 1, ``file`` and ``where`` name each box's place."""
        folder = self.image_folder()
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for image_id, image in enumerate(self.images, 1):
            name = image.path.relative_to(folder).as_posix()
            images.append({"id": image_id, "file_name": name, "height": image.height, "width": image.width})
            for box in image.boxes:
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": box.class_id + 1,
                        "bbox": list(box.xywh),
                        "area": box.xywh[2] * box.xywh[3],
                        "iscrowd": int(box.ignored),
                        "file": str(box.file),
                        "where": box.where,
                    }
                )
        categories = [{"id": index, "name": name} for index, name in enumerate(self.class_names, 1)]
        return {"images": images, "annotations": annotations, "categories": categories}


def images_below(folder: Path) -> list[Path]:
    """All image files of a folder and of the folders in it, hidden ones left out, in the order of their names."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def upright_size(path: Path) -> tuple[int, int]:
    """Height and width in pixels of an image as its EXIF tag says that it is to be seen; only its header is read.

    Raises:
        DataError: No such file, or not an image.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                width, height = image.size
                turned = image.getexif().get(_ORIENTATION) in _QUARTER_TURNS
    except Exception as error:  # noqa: BLE001  Pillow raises what its decoders raise
        reason = (error.strerror or str(error)) if isinstance(error, OSError) and error.errno else "is not an image"
        raise DataError(reason, path, "put the image there, or remove its labels") from None
    return (width, height) if turned else (height, width)


_ORIENTATION = 0x0112
_QUARTER_TURNS = (5, 6, 7, 8)


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        DataError: It cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise DataError(f"cannot be read ({reason})", path, "save it as UTF-8 text") from None


def as_problem(error: DataError, file: Path) -> Problem:
    """An error of one file among the problems of its data set: it costs an image."""
    return Problem(Path(error.where) if error.where else file, error.what, error.fix or "correct or remove it", "image")


def first_existing(candidates: Iterable[Path]) -> Path | None:
    """The first path that exists."""
    return next((path for path in candidates if path.exists()), None)
