"""What a data folder was taken for: its format, and where each of its splits is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from prunedeploy.data.formats.labels import Labels


@dataclass(frozen=True)
class SplitFiles:
    """Where one split is.

    Attributes:
        json_path: Its COCO JSON; of another format, what stands for its labels: a list, or a folder.
        image_folder: What the JSON's file names are relative to.
        read_labels: Reads labels that are not JSON.
    """

    json_path: Path
    image_folder: Path
    read_labels: Callable[[], Labels] | None = None


@dataclass(frozen=True)
class Layout:
    """A folder that was recognised.

    Attributes:
        format: For people, e.g. ``YOLO`` or ``COCO, as Roboflow arranges it``.
        evidence: The file or folder that shows it.
        splits: By name: ``train``, ``val``, ``trainval`` and ``test``; or ``all`` if nothing divides it.
    """

    format: str
    evidence: Path
    splits: Mapping[str, SplitFiles]
