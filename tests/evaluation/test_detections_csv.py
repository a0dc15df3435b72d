"""Detections as CSV: what is in the file, and that nothing is lost."""

from __future__ import annotations

import csv
from dataclasses import replace

import numpy as np
import pytest

from prunedeploy.evaluation import DetectionTable, coco_map, read_detections, write_detections
from prunedeploy_engines.errors import DataError, StoreError

HEADER = "image_id,category_id,category,x_min,y_min,width,height,score"


def test_file_has_the_promised_columns(tmp_path, dataset_of, table_of):
    dataset = dataset_of([[], []], classes=2)
    write_detections(tmp_path / "d.csv", table_of([(2, 1, (1.5, 2.0, 30.25, 0.1), 0.9)]), dataset)
    # The category id is the JSON's (10 * 1 + 7), not the class index; 0.9 is 0.9, not 0.899999976...
    assert (tmp_path / "d.csv").read_text() == f"{HEADER}\n2,17,class 1,1.5,2.0,30.25,0.1,0.9\n"


@pytest.mark.parametrize("seed", [0, 1])
def test_round_trip_keeps_every_bit_and_map(tmp_path, random_world, seed):
    dataset, detections = random_world(seed)
    rng = np.random.default_rng(seed)
    awkward = np.float32(rng.random(len(detections)) ** 20)  # down to 1e-30: exponents in the text
    detections = replace(detections, boxes_xywh=detections.boxes_xywh * np.float32(1.1), scores=awkward)
    write_detections(tmp_path / "d.csv", detections, dataset)
    back = read_detections(tmp_path / "d.csv", dataset)
    for name in ("image_ids", "class_ids", "boxes_xywh", "scores"):
        ours, original = getattr(back, name), getattr(detections, name)
        assert ours.dtype == original.dtype
        assert np.array_equal(ours, original)
    assert coco_map(dataset, back) == coco_map(dataset, detections)


def test_no_detections_round_trip(tmp_path, dataset_of):
    write_detections(tmp_path / "d.csv", DetectionTable.empty(), dataset_of([[]]))
    assert (tmp_path / "d.csv").read_text() == f"{HEADER}\n"
    assert len(read_detections(tmp_path / "d.csv", dataset_of([[]]))) == 0


def test_names_with_commas_quotes_and_umlauts_survive(tmp_path, dataset_of, table_of):
    dataset = replace(dataset_of([[]], classes=2), class_names=['cup, "large"', "Tür"])
    write_detections(tmp_path / "d.csv", table_of([(1, 0, (1, 2, 3, 4), 0.5), (1, 1, (1, 2, 3, 4), 0.5)]), dataset)
    with (tmp_path / "d.csv").open(encoding="utf-8", newline="") as file:
        assert [row["category"] for row in csv.DictReader(file)] == dataset.class_names
    assert read_detections(tmp_path / "d.csv", dataset).class_ids.tolist() == [0, 1]


def test_classes_that_the_json_lacks_are_told_apart_by_name(tmp_path, dataset_of, table_of):
    dataset = replace(dataset_of([[]], classes=3), category_ids=[5, -1, -1])
    rows = [(1, k, (1, 2, 3, 4), 0.5) for k in (2, 0, 1)]
    write_detections(tmp_path / "d.csv", table_of(rows), dataset)
    assert read_detections(tmp_path / "d.csv", dataset).class_ids.tolist() == [2, 0, 1]


def test_no_part_is_left_if_writing_fails(tmp_path, dataset_of, table_of):
    (tmp_path / "d.csv").mkdir()  # the finished file cannot be put here
    with pytest.raises(StoreError):
        write_detections(tmp_path / "d.csv", table_of([(1, 0, (1, 2, 3, 4), 0.5)]), dataset_of([[]]))
    assert [path.name for path in tmp_path.rglob("*")] == ["d.csv"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "first line is not image_id"),
        ("image_id,score\n1,0.5\n", "first line is not image_id"),
        (f"{HEADER}\n1,7,class 0,1,2,3,4,0.5\n1,7,class 0,1,2,3,4\n", r"d\.csv:3: not a detection"),
        (f"{HEADER}\n1,7,class 0,1,2,3,4,0.5,6\n", r"d\.csv:2: not a detection"),
        (f"{HEADER}\n1,7,class 0,1,2,three,4,0.5\n", r"d\.csv:2: not a detection"),
        (f"{HEADER}\n1.5,7,class 0,1,2,3,4,0.5\n", r"d\.csv:2: not a detection"),
        (f"{HEADER}\n1,7,class 0,1,2,3,4,0.5\n1,7,class 0,1,nan,3,4,0.5\n", r"d\.csv:3: .*not finite"),
        (f"{HEADER}\n1,7,zebra,1,2,3,4,0.5\n", r"d\.csv:2: .*no category 7 called 'zebra'"),
        (f"{HEADER}\n1,8,class 0,1,2,3,4,0.5\n", r"d\.csv:2: .*no category 8 called 'class 0'"),
    ],
)
def test_file_that_is_not_one_is_refused_with_its_line(tmp_path, dataset_of, text, message):
    (tmp_path / "d.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_detections(tmp_path / "d.csv", dataset_of([[]]))


def test_missing_and_binary_files_are_refused(tmp_path, dataset_of):
    with pytest.raises(DataError, match="cannot be read"):
        read_detections(tmp_path / "none.csv", dataset_of([[]]))
    (tmp_path / "d.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read"):
        read_detections(tmp_path / "d.csv", dataset_of([[]]))
