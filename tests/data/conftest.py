"""Tiny COCO folders, written with Pillow."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


def coco_document(images: list[dict[str, Any]], annotations: list[dict[str, Any]], names: list[str]) -> dict[str, Any]:
    categories = [{"id": index + 1, "name": name} for index, name in enumerate(names)]
    return {"images": images, "annotations": annotations, "categories": categories}


def box(annotation_id: int, image_id: int, category_id: int, bbox: list[float], **more: Any) -> dict[str, Any]:
    area = bbox[2] * bbox[3] if len(bbox) == 4 else 0
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": bbox,
        "area": area,
        "iscrowd": 0,
        **more,
    }


def write_split(folder: Path, name: str, count: int, size: tuple[int, int] = (48, 64), seed: int = 0) -> None:
    """Write ``count`` noise images of ``size`` (height, width), ids from 100 on, each with two boxes."""
    rng = np.random.default_rng(seed)
    (folder / name).mkdir(parents=True)
    images, annotations = [], []
    for index in range(count):
        image_id = 100 + index
        file_name = f"{image_id}.png"
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / name / file_name)
        images.append({"id": image_id, "file_name": file_name, "height": size[0], "width": size[1]})
        annotations.append(box(2 * index + 1, image_id, 1, [4.0, 6.0, 20.0, 10.0]))
        annotations.append(box(2 * index + 2, image_id, 2, [30.0, 20.0, 16.0, 24.0]))
    (folder / f"{name}.json").write_text(json.dumps(coco_document(images, annotations, ["cat", "dog"])))


@pytest.fixture
def coco_folder(tmp_path: Path) -> Path:
    """Our own layout: 10 training and 4 test images of 48 x 64 pixels."""
    folder = tmp_path / "coco"
    write_split(folder, "train", 10, seed=1)
    write_split(folder, "test", 4, seed=2)
    return folder


@pytest.fixture
def edit_json() -> Callable[[Path, Callable[[dict[str, Any]], None]], None]:
    """Change a JSON in place."""

    def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
        document = json.loads(path.read_text())
        change(document)
        path.write_text(json.dumps(document))

    return edit
