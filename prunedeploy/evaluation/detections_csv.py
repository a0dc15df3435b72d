"""Detections as a CSV file that people, spreadsheets and pandas read, and that loses nothing."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np

from prunedeploy.data.records import CocoDataset
from prunedeploy.evaluation.detection_table import DetectionTable
from prunedeploy_engines.errors import DataError
from prunedeploy_engines.files import write_atomically

COLUMNS = ("image_id", "category_id", "category", "x_min", "y_min", "width", "height", "score")
_FIX = "write it again with `prunedeploy evaluate`"


def write_detections(path: str | Path, detections: DetectionTable, dataset: CocoDataset) -> None:
    """Write detections, atomically.

    Every number is the shortest decimal that reads back as the same float32, so that mAP computed from the
    file is mAP computed from memory.

    Args:
        path: The CSV file.
        detections: The rows, written in their order.
        dataset: Gives ``category_id``, the JSON's (-1: a class that the JSON does not have), and
            ``category``, the name.

    Raises:
        StoreError: The file system refuses.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    classes = detections.class_ids.tolist()
    category_ids = [dataset.category_ids[k] for k in classes]
    names = [dataset.class_names[k] for k in classes]
    # str of a NumPy float32 is its shortest exact decimal; a Python float prints the digits of a float64.
    numbers = [map(str, column) for column in (*detections.boxes_xywh.T, detections.scores)]
    writer.writerows(zip(detections.image_ids.tolist(), category_ids, names, *numbers, strict=True))
    write_atomically(path, text.getvalue().encode())


def read_detections(path: str | Path, dataset: CocoDataset) -> DetectionTable:
    """Read what `write_detections` wrote.

    Args:
        path: The CSV file.
        dataset: The data set it was written for; classes are found by ``category`` and must have the same
            ``category_id``.

    Raises:
        DataError: The file cannot be read, has other columns, a row that is not a detection, or a class that the
            data set does not have; the message names the line.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise DataError(f"cannot be read ({reason})", path, "give a detections CSV") from None
    rows = list(csv.reader(io.StringIO(text, newline="")))
    if not rows or tuple(rows[0]) != COLUMNS:
        raise DataError(f"the first line is not {','.join(COLUMNS)}", path, "give a detections CSV")
    index_of = {name: k for k, name in enumerate(dataset.class_names)}
    image_ids, class_ids = np.empty(len(rows) - 1, np.int64), np.empty(len(rows) - 1, np.int64)
    numbers = np.empty((len(rows) - 1, 5), np.float32)
    for position, row in enumerate(rows[1:]):
        where = f"{path}:{position + 2}"
        try:
            image_id, category_id, name, *values = row
            image_ids[position], expected_id = int(image_id), int(category_id)
            numbers[position] = [np.float32(value) for value in values]
        except ValueError:  # the wrong number of fields, or not a number
            raise DataError(f"not a detection: {','.join(row)!r}", where, _FIX) from None
        if name not in index_of or dataset.category_ids[index_of[name]] != expected_id:
            what = f"the data set has no category {expected_id} called {name!r}"
            raise DataError(what, where, "use the data set it was made on")
        class_ids[position] = index_of[name]
    if not np.isfinite(numbers).all():
        line = int(np.flatnonzero(~np.isfinite(numbers).all(axis=1))[0]) + 2
        raise DataError("not a detection: a number is not finite", f"{path}:{line}", _FIX)
    return DetectionTable(image_ids, class_ids, numbers[:, :4].copy(), numbers[:, 4].copy())
