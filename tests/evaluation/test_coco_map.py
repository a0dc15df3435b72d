"""mAP: by hand, by pycocotools on JSON files, and at the edges."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from prunedeploy.data.coco import load_coco
from prunedeploy.evaluation import DetectionTable, coco_map

A, B, C = (10.0, 20.0, 100.0, 50.0), (300.0, 20.0, 100.0, 50.0), (10.0, 300.0, 80.0, 80.0)
ELSEWHERE = (400.0, 400.0, 30.0, 30.0)
ONE = pytest.approx(1.0, abs=1e-12)  # pycocotools divides by the count plus 2e-16


def truth_as_detections(dataset, score=1.0) -> DetectionTable:
    corners = [
        DetectionTable.of_image(image.image_id, image.boxes_xyxy, np.full(len(image.class_ids), score), image.class_ids)
        for image in dataset.images
    ]
    return DetectionTable.concatenate(corners)


def test_map_worked_by_hand(dataset_of, table_of):
    dataset = dataset_of([[(0, A, False), (0, B, False)], [(0, C, False)]])
    # By descending score: A exactly; a false positive; B with IoU 62 / 100. C is missed.
    detections = table_of([(1, 0, A, 0.9), (2, 0, ELSEWHERE, 0.8), (1, 0, (300.0, 20.0, 62.0, 50.0), 0.7)])
    # IoU .50, .55, .60: precision 1, 1/2, 2/3 at recall 1/3, 1/3, 2/3. Of the recall thresholds 0, .01, ... 1
    # the 34 up to .33 get precision 1, the 33 from .34 to .66 get 2/3, the rest 0.
    loose = (34 * 1 + 33 * 2 / 3) / 101
    # IoU .65 to .95: B's box is a false positive too.
    strict = 34 / 101
    result = coco_map(dataset, detections)
    assert result.map_50 == pytest.approx(loose, abs=1e-12)
    assert result.map_50_95 == pytest.approx((3 * loose + 7 * strict) / 10, abs=1e-12)
    assert result.class_map_50 == {"class 0": result.map_50}
    assert result.class_map_50_95 == {"class 0": result.map_50_95}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_map_equals_pycocotools_on_json_files(tmp_path, random_world, seed):
    world, detections = random_world(seed, images=15, classes=4, detections=40, ties=seed == 2)
    annotations = [
        {
            "id": 1000 * image.image_id + position,
            "image_id": image.image_id,
            "category_id": world.category_ids[class_id],
            "bbox": box.tolist(),
            "area": float(box[2] * box[3]),
            "iscrowd": int(crowd),
        }
        for image in world.images
        for position, (box, class_id, crowd) in enumerate(
            zip(image.boxes_xywh, image.class_ids, image.iscrowd, strict=True)
        )
    ]
    document = {
        "images": [
            {"id": image.image_id, "file_name": image.path.name, "height": image.height, "width": image.width}
            for image in world.images
        ],
        "categories": [
            {"id": category_id, "name": name}
            for category_id, name in zip(world.category_ids, world.class_names, strict=True)
        ],
        "annotations": annotations,
    }
    results = [
        {
            "image_id": int(image_id),
            "category_id": world.category_ids[class_id],
            "bbox": [float(value) for value in box],
            "score": float(score),
        }
        for image_id, class_id, box, score in zip(
            detections.image_ids,
            detections.class_ids,
            detections.boxes_xywh,
            detections.scores,
            strict=True,
        )
    ]
    (tmp_path / "truth.json").write_text(json.dumps(document))
    (tmp_path / "results.json").write_text(json.dumps(results))
    truth = COCO(str(tmp_path / "truth.json"))
    reference = COCOeval(truth, truth.loadRes(str(tmp_path / "results.json")), "bbox")
    reference.evaluate()
    reference.accumulate()
    reference.summarize()

    ours = coco_map(load_coco(tmp_path / "truth.json", tmp_path), detections)
    assert 0.05 < ours.map_50_95 < 0.9
    assert ours.map_50_95 == pytest.approx(reference.stats[0], abs=1e-12)
    assert ours.map_50 == pytest.approx(reference.stats[1], abs=1e-12)


def test_perfect_detections_give_one(random_world):
    dataset, _ = random_world(3)
    result = coco_map(dataset, truth_as_detections(dataset))
    assert result.map_50_95 == ONE
    assert result.map_50 == ONE


def test_no_detections_give_zero(random_world):
    dataset, _ = random_world(3)
    result = coco_map(dataset, DetectionTable.empty())
    assert result.map_50_95 == 0.0
    assert result.map_50 == 0.0


def test_no_objects_give_none(dataset_of, table_of):
    dataset = dataset_of([[], []])
    for detections in (DetectionTable.empty(), table_of([(1, 0, A, 0.9)])):
        result = coco_map(dataset, detections)
        assert result.map_50_95 is None
        assert result.map_50 is None
        assert result.class_map_50_95 == {"class 0": None}


def test_class_without_objects_is_none_and_does_not_count(dataset_of, table_of):
    dataset = dataset_of([[(0, A, False)]], classes=2)
    result = coco_map(dataset, table_of([(1, 0, A, 0.9), (1, 1, B, 0.9)]))
    assert result.class_map_50_95 == {"class 0": ONE, "class 1": None}
    assert result.map_50_95 == ONE


def test_crowd_box_is_neither_missed_nor_a_false_positive(dataset_of, table_of):
    inside_b = [(300.0, 20.0, 40.0, 40.0), (340.0, 25.0, 30.0, 30.0)]
    rows = [(1, 0, inside_b[0], 0.95), (1, 0, inside_b[1], 0.94), (1, 0, A, 0.9)]
    crowd = dataset_of([[(0, A, False), (0, B, True)]])
    single = dataset_of([[(0, A, False), (0, B, False)]])
    assert coco_map(crowd, table_of(rows[2:])).map_50_95 == ONE  # not finding the crowd is no miss
    assert coco_map(crowd, table_of(rows)).map_50_95 == ONE  # finding parts of it is no mistake
    # The same boxes without the flag: 1 of 2 found; and 1 of 2 found after two false positives.
    assert coco_map(single, table_of(rows[2:])).map_50_95 == pytest.approx(51 / 101, abs=1e-12)
    assert coco_map(single, table_of(rows)).map_50_95 == pytest.approx(51 / 101 / 3, abs=1e-12)


def test_only_the_wanted_images_count(dataset_of, table_of):
    dataset = dataset_of([[(0, A, False)], [(0, B, False)]])
    detections = table_of([(1, 0, A, 0.5), (2, 0, ELSEWHERE, 0.9)])
    assert coco_map(dataset, detections, image_ids=[1]).map_50_95 == ONE
    assert coco_map(dataset, detections, image_ids=[2]).map_50_95 == 0.0
    assert coco_map(dataset, detections, image_ids=[]).map_50_95 is None


def test_areas_of_the_json_do_not_limit_what_counts(dataset_of, table_of):
    dataset = dataset_of([[(0, (5.0, 5.0, 1.0, 1.0), False)], [(0, (0.0, 0.0, 640.0, 480.0), False)]])
    assert coco_map(dataset, truth_as_detections(dataset)).map_50_95 == ONE


def test_nothing_is_printed(random_world, capfd):
    coco_map(*random_world(4))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ((3, 0, A, 0.5), "image 3"),
        ((1, 1, A, 0.5), r"\[0, 1\), got 1 to 1"),
        ((1, -1, A, 0.5), "got -1"),
        ((1, 0, A, float("nan")), "not finite"),
        ((1, 0, (0.0, 0.0, float("inf"), 1.0), 0.5), "not finite"),
    ],
)
def test_detections_that_do_not_fit_are_refused(dataset_of, table_of, row, message):
    with pytest.raises(ValueError, match=message):
        coco_map(dataset_of([[(0, A, False)], []]), table_of([row]))


def test_unknown_wanted_image_is_refused(dataset_of):
    with pytest.raises(ValueError, match="no image 9"):
        coco_map(dataset_of([[]]), DetectionTable.empty(), image_ids=[9])


def test_table_prints_the_shapes_it_got():
    with pytest.raises(ValueError, match=r"\(3, 2\)"):
        DetectionTable(
            np.zeros(3, np.int64),
            np.zeros(3, np.int64),
            np.zeros((3, 2), np.float32),
            np.zeros(3, np.float32),
        )
