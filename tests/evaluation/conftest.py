"""Small worlds of images, objects and detections."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from prunedeploy.data.records import CocoDataset, ImageRecord
from prunedeploy.evaluation import DetectionTable

World = tuple[CocoDataset, DetectionTable]

NOTHING = (np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.bool_))


@pytest.fixture
def dataset_of() -> Callable[..., CocoDataset]:
    """``dataset_of([[(class, box_xywh, crowd), ...] per image], classes=1)``: image ids 1, 2, ..."""

    def make(images: list[list[tuple[int, tuple[float, ...], bool]]], classes: int = 1) -> CocoDataset:
        records = []
        for number, objects in enumerate(images, start=1):
            boxes, class_ids, crowd = NOTHING
            if objects:
                boxes = np.array([box for _, box, _ in objects], np.float32)
                class_ids = np.array([class_id for class_id, _, _ in objects], np.int64)
                crowd = np.array([flag for _, _, flag in objects], np.bool_)
            records.append(ImageRecord(number, Path(f"{number}.png"), 480, 640, boxes, class_ids, crowd))
        names = [f"class {k}" for k in range(classes)]
        return CocoDataset(records, names, [10 * k + 7 for k in range(classes)], Path("instances.json"))

    return make


@pytest.fixture
def table_of() -> Callable[..., DetectionTable]:
    """``table_of([(image id, class, box_xywh, score), ...])``."""

    def make(rows: list[tuple[int, int, tuple[float, ...], float]]) -> DetectionTable:
        if not rows:
            return DetectionTable.empty()
        image_ids, classes, boxes, scores = zip(*rows, strict=True)
        return DetectionTable(
            np.array(image_ids, np.int64),
            np.array(classes, np.int64),
            np.array(boxes, np.float32),
            np.array(scores, np.float32),
        )

    return make


@pytest.fixture
def random_world() -> Callable[..., World]:
    """``random_world(seed, images=12, classes=3, detections=30, ties=False)``.

    Some detections are near objects, some are noise; some objects are crowds, some images and classes are
    empty. Coordinates are multiples of 1/8, so that a JSON, float32 and float64 hold the same number.
    """

    def make(seed: int, images: int = 12, classes: int = 3, detections: int = 30, ties: bool = False) -> World:
        rng = np.random.default_rng(seed)
        records, tables = [], []
        for image_id in rng.permutation(np.arange(100, 100 + images)).tolist():
            count = int(rng.integers(0, 5))
            boxes = np.concatenate([rng.uniform(0, 200, (count, 2)), rng.uniform(20, 150, (count, 2))], axis=1)
            boxes = (np.round(boxes * 8) / 8).astype(np.float32)
            class_ids = rng.integers(0, max(1, classes - 1), count)  # the last class has no object
            crowd = rng.random(count) < 0.2
            path = Path(f"{image_id}.png")
            records.append(ImageRecord(image_id, path, 480, 640, boxes, class_ids, crowd))

            found = np.concatenate([rng.uniform(0, 200, (detections, 2)), rng.uniform(5, 150, (detections, 2))], axis=1)
            found_classes = rng.integers(0, classes, detections)
            scores = rng.random(detections)
            if count:  # two thirds are near an object, the better the higher their scores
                chosen = rng.integers(0, count, detections)
                near = rng.random(detections) < 0.66
                spread = rng.uniform(0, 25, detections)[:, None]
                found[near] = (boxes[chosen] + rng.normal(0, 1, (detections, 4)) * spread)[near]
                found_classes[near] = class_ids[chosen][near]
                scores[near] = (scores / (1 + spread[:, 0] / 10))[near]
            found[:, 2:] = np.maximum(found[:, 2:], 1)
            found = np.round(found * 8) / 8
            if ties:
                scores = np.round(scores, 1)
            tables.append(
                DetectionTable(
                    np.full(detections, image_id, np.int64),
                    found_classes.astype(np.int64),
                    found.astype(np.float32),
                    scores.astype(np.float32),
                )
            )
        names = [f"class {k}" for k in range(classes)]
        dataset = CocoDataset(records, names, [10 * k + 7 for k in range(classes)], Path("instances.json"))
        return dataset, DetectionTable.concatenate(tables)

    return make
