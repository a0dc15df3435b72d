from __future__ import annotations

import json
import shutil

from prunedeploy.data.check import inspect_coco


def test_a_sound_folder_has_no_problems_and_is_counted(coco_folder, edit_json):
    def change(document):
        document["annotations"][0]["iscrowd"] = 1
        document["annotations"] = document["annotations"][:12]  # six of ten images
        document["images"][0].update(width=64, height=48)

    edit_json(coco_folder / "train.json", change)
    report = inspect_coco(coco_folder)
    assert report.problems == []
    train, test = report.splits
    assert (train.split, train.images, train.images_without_boxes) == ("train", 10, 4)
    assert (train.boxes, train.crowd_boxes) == (11, 1)
    assert train.boxes_per_class == {"cat": 5, "dog": 6}
    # 20 x 10 and 16 x 24 pixels are both below 32 x 32.
    assert train.boxes_by_size == {"small": 11, "medium": 0, "large": 0}
    assert train.image_sizes == {"64 x 48": 10}
    assert (test.split, test.images, test.boxes) == ("test", 4, 8)
    lines = list(report.lines())
    assert lines[0] == "train: 10 images (4 without boxes), 11 boxes and 1 crowd boxes of 2 classes"
    assert lines[-1] == "nothing is wrong"
    assert json.loads(json.dumps(report.as_json()))["splits"][0]["boxes"] == 11


def test_everything_that_is_wrong_is_said_in_one_go(coco_folder, edit_json):
    def change(document):
        document["annotations"][0]["bbox"] = [0, 0, 900, 10]
        document["annotations"][3]["category_id"] = 9
        document["images"][4]["height"] = 50
        document["images"][5].pop("width")

    edit_json(coco_folder / "train.json", change)

    def of_another_class(document):
        document["categories"].append({"id": 3, "name": "unicorn"})
        document["annotations"][0]["category_id"] = 3

    edit_json(coco_folder / "test.json", of_another_class)
    (coco_folder / "train" / "107.png").unlink()
    (coco_folder / "test" / "101.png").write_bytes(b"no image")
    problems = inspect_coco(coco_folder).problems
    said = [str(problem) for problem in problems]
    expected = [
        ("train.json", "annotation 1 of image 100"),
        ("train.json", "annotation 4 has unknown category 9"),
        ("train/104.png", "64 x 50 for image 104"),
        ("train.json", "image 105 has height 48 and width None"),
        ("train/107.png", "image 107: there is no such image"),
        ("test.json", "'unicorn'"),
        ("test/101.png", "image 101: this is not an image"),
    ]
    for file, what in expected:
        assert [line for line in said if file in line and what in line], (file, what, said)
    assert len(problems) == len(expected)
    assert all(problem.fix for problem in problems)
    assert list(inspect_coco(coco_folder).lines())[-1] == "7 problems"


def test_damage_behind_the_header_is_found_by_decoding(coco_folder):
    image = coco_folder / "train" / "103.png"
    image.write_bytes(image.read_bytes()[:1000])
    assert inspect_coco(coco_folder).problems == []
    (problem,) = inspect_coco(coco_folder, decode=True).problems
    assert problem.file == image
    assert "damaged" in problem.what


def test_an_image_in_both_splits_is_found(coco_folder, edit_json):
    shutil.move(coco_folder / "test" / "100.png", coco_folder / "test" / "old.png")
    (coco_folder / "test" / "100.png").symlink_to(coco_folder / "train" / "100.png")
    (problem,) = inspect_coco(coco_folder).problems
    assert "in train and in test" in problem.what


def test_a_folder_that_is_no_data_is_one_problem(tmp_path):
    (problem,) = inspect_coco(tmp_path / "missing").problems
    assert "no such data folder" in problem.what
