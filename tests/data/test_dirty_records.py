"""What is wrong with a record costs that record in training, and is an error in the test split unless it is allowed."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from labelled import picture, text
from prunedeploy.data import Allowed, load_coco, load_splits
from prunedeploy.data.check import inspect_coco
from prunedeploy.data.coco import load_test_split
from prunedeploy.data.left_out import ProblemRow, left_out, said_in_one_line
from prunedeploy_engines.errors import DataError

Change = Callable[[dict[str, Any]], object]


def of_box(**values: Any) -> Change:
    return lambda document: document["annotations"][0].update(values)


def of_image(**values: Any) -> Change:
    return lambda document: document["images"][0].update(values)


BAD_BOXES = [
    (of_box(bbox=[10.0, 10.0, 0.0, 10.0]), "box of zero area"),
    (of_box(bbox=[10.0, 10.0, 10.0, 0]), "box of zero area"),
    (of_box(bbox=[30.0, 10.0, -20.0, 10.0]), "box of negative size"),
    (of_box(bbox=[math.nan, 10.0, 20.0, 10.0]), "box with NaN or infinity"),
    (of_box(bbox=[10.0, 10.0, math.inf, 10.0]), "box with NaN or infinity"),
    (of_box(bbox=None), "bbox that is not four numbers"),
    (of_box(bbox=[1.0, 2.0, 3.0]), "bbox that is not four numbers"),
    (of_box(bbox=[100.0, 10.0, 20.0, 10.0]), "box outside its image"),
    (of_box(bbox=[10.0, 10.0, 500.0, 10.0]), "box outside its image"),
    (of_box(image_id=999), "box of an unknown image"),
    (of_box(image_id=None), "box of an unknown image"),
    (of_box(image_id="100"), "box of an unknown image"),
    (of_box(category_id=77), "box of an unknown category"),
    (of_box(category_id=[1]), "box of an unknown category"),
    (of_box(iscrowd="no"), "iscrowd neither 0 nor 1"),
    (lambda document: document["annotations"].append(document["annotations"][0]), "annotation id # occurs twice"),
]


@pytest.mark.parametrize(("change", "kind"), BAD_BOXES)
def test_a_bad_training_box_is_dropped_counted_and_named(coco_folder, edit_json, change: Change, kind: str) -> None:
    edit_json(coco_folder / "train.json", change)
    train, test = load_splits(coco_folder)
    boxes = sum(len(image.class_ids) for image in train.images)
    assert boxes == (20 if "twice" in kind else 19)
    assert len(train.images) == 10
    (row,) = left_out(train, test)
    assert (row.split, row.kind, row.becomes, row.count) == ("train", kind, "left out", 1)
    assert str(coco_folder / "train.json") in row.named[0]
    assert said_in_one_line([row]) == f"1 x {kind} left out (train)"


@pytest.mark.parametrize(("change", "kind"), BAD_BOXES)
def test_a_bad_test_box_is_an_error_unless_it_is_allowed(coco_folder, edit_json, change: Change, kind: str) -> None:
    edit_json(coco_folder / "test.json", change)
    for load in (load_splits, load_test_split):
        with pytest.raises(DataError, match=r"test\.json.*data\.allow_bad_boxes=true"):
            load(coco_folder)
    (_, test) = load_splits(coco_folder, allowed=Allowed(bad_boxes=True))
    assert [(problem.group, problem.spoils) for problem in test.problems] == [(kind, "box")]
    assert len(test.images) == 4


@pytest.mark.parametrize(
    "change",
    [
        of_image(file_name=None),
        of_image(file_name=""),
        of_image(file_name="../../../etc/passwd"),
        of_image(width=0),
        of_image(height=None),
        of_image(width="64"),
        of_image(width=10**400),
        lambda document: document["images"].insert(0, document["images"][0]),
    ],
)
def test_a_bad_image_record_costs_that_record_in_training_and_is_an_error_in_test(
    coco_folder, edit_json, change: Change
) -> None:
    edit_json(coco_folder / "train.json", change)
    train, _ = load_splits(coco_folder)
    assert [problem.spoils for problem in train.problems] == ["image"]
    assert len(train.images) in (9, 10)
    edit_json(coco_folder / "test.json", change)
    with pytest.raises(DataError, match=r"data\.allow_bad_images=true"):
        load_splits(coco_folder)
    load_splits(coco_folder, allowed=Allowed(bad_images=True))


@pytest.mark.parametrize(
    ("bbox", "clipped", "over"),
    [
        ([-4.0, 10.0, 20.0, 10.0], [0, 10, 16, 10], 4),  # case 4 of the field
        ([50.0, 10.0, 22.0, 10.0], [50, 10, 14, 10], 8),  # 8 pixels of 64 are the limit
        ([10.0, -3.0, 20.0, 20.0], [10, 0, 20, 17], 3),
        ([10.0, 40.0, 20.0, 10.5], [10, 40, 20, 8], 2.5),
    ],
)
def test_a_box_slightly_outside_is_clipped_and_counted_in_both_splits(
    coco_folder, edit_json, bbox: list[float], clipped: list[float], over: float
) -> None:
    for split in ("train", "test"):
        edit_json(coco_folder / f"{split}.json", of_box(bbox=bbox))
    train, test = load_splits(coco_folder)
    for dataset in (train, test):
        assert dataset.images[0].boxes_xywh[0].tolist() == clipped
    rows = left_out(train, test)
    assert [(row.split, row.kind, row.becomes, row.count) for row in rows] == [
        (split, "box that leaves its image slightly", "clipped", 1) for split in ("train", "test")
    ]
    assert f"leaves its image by {over:g} pixels" in rows[0].named[0]


def test_what_is_slight_grows_with_the_image(tmp_path: Path) -> None:
    """2 % of 2000 pixels are 40; corners taken for a size leave the image by far more."""
    picture(tmp_path / "images" / "a.png", 2000, 1000)
    picture(tmp_path / "images" / "b.png", 2000, 1000)
    lines = "0 .02 .5 .078 .2\n0 .02 .5 .09 .2\n0 .5 .5 .1 .1\n"  # from -38, from -50, and within
    text(tmp_path / "labels" / "a.txt", lines)
    text(tmp_path / "classes.txt", "cell\n")
    train, test = load_splits(tmp_path)
    kinds = [(row.kind, row.count) for row in left_out(train, test)]
    assert kinds == [("box that leaves its image slightly", 1), ("box outside its image", 1)]


def test_rounding_to_a_pixel_is_not_worth_a_word(coco_folder, edit_json) -> None:
    edit_json(coco_folder / "train.json", of_box(bbox=[-0.5, 40.0, 10.0, 9.0]))
    train, test = load_splits(coco_folder)
    assert left_out(train, test) == []


@pytest.mark.parametrize(
    ("change", "boxes"),
    [
        (of_box(iscrowd=None), 20),
        (of_box(area=None), 20),
        (of_box(id="a1b2"), 20),
        (lambda document: [entry.pop("id") for entry in document["annotations"]], 20),
        (lambda document: [entry.pop("iscrowd") for entry in document["annotations"]], 20),
        (lambda document: [entry.update(id=float(entry["id"])) for entry in document["images"]], 20),
        (lambda document: [entry.update(width=64.0) for entry in document["images"]], 20),
    ],
)
def test_what_some_tools_write_is_as_good(coco_folder, edit_json, change: Change, boxes: int) -> None:
    edit_json(coco_folder / "train.json", change)
    dataset = load_coco(coco_folder / "train.json", coco_folder / "train")
    assert sum(len(image.class_ids) for image in dataset.images) == boxes
    assert not any(image.iscrowd.any() for image in dataset.images)
    assert list(dataset.problems) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: [entry.update(id=str(entry["id"])) for entry in d["images"]], "has no integer id, but '100'"),
        (lambda d: [entry.update(id=entry["id"] + 0.5) for entry in d["images"]], "has no integer id"),
        (lambda d: [entry.pop("id") for entry in d["images"]], "has no integer id"),
        (lambda d: [entry.update(file_name=None) for entry in d["images"]], "has no file_name"),
        (lambda d: [entry.update(width=-1) for entry in d["images"]], "width -1"),
        (lambda d: [entry.update(id=entry["id"] + 2**63) for entry in d["images"]], "does not fit into 64 bits"),
        (lambda d: d["images"][3].update(id=2**64), "image id 18446744073709551616 does not fit into 64 bits"),
        (lambda d: d["images"][3].update(id=-(2**63) - 1), "does not fit into 64 bits"),
        (lambda d: [entry.update(bbox=[0, 0, 0, 0]) for entry in d["annotations"]], "not one of its 20 boxes can be"),
        (lambda d: [entry.update(image_id=7) for entry in d["annotations"]], "not one of its 20 boxes can be used"),
    ],
)
def test_a_training_split_that_is_unusable_as_a_whole_is_one_line_and_a_list(
    coco_folder, edit_json, change: Change, said: str
) -> None:
    edit_json(coco_folder / "train.json", change)
    with pytest.raises(DataError) as caught:
        load_splits(coco_folder)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    report = inspect_coco(coco_folder)
    assert not report.usable
    assert any(said in problem.what for problem in report.problems)
    assert [split.split for split in report.splits][-1] == "test"  # the other split is looked at all the same


def test_ids_as_large_as_64_bits_go_through_the_evaluation(coco_folder, edit_json) -> None:
    from prunedeploy.evaluation.coco_map import coco_map
    from prunedeploy.evaluation.detection_table import DetectionTable

    largest = 2**63 - 1

    def change(document: dict[str, Any]) -> None:
        document["images"][0]["id"] = largest
        for entry in document["annotations"][:2]:
            entry["image_id"] = largest

    edit_json(coco_folder / "test.json", change)
    test = load_test_split(coco_folder)
    found = [
        DetectionTable.of_image(image.image_id, image.boxes_xyxy, image.areas * 0 + 1, image.class_ids)
        for image in test.images
    ]
    assert coco_map(test, DetectionTable.concatenate(found)).map_50_95 == pytest.approx(1.0)


def test_categories_that_nothing_refers_to_need_no_class(coco_folder, edit_json) -> None:
    def change(document: dict[str, Any]) -> None:
        document["categories"].append({"id": 80, "name": "unicorn"})

    edit_json(coco_folder / "test.json", change)
    assert load_test_split(coco_folder, ["cat", "dog"]).category_ids == [1, 2]


@pytest.mark.parametrize("above", ["none", None, ""])
def test_the_root_above_all_categories_is_no_class(coco_folder, edit_json, above: str | None) -> None:
    def change(document: dict[str, Any]) -> None:
        for entry in document["categories"]:
            entry["supercategory"] = "animals"
        document["categories"].insert(0, {"id": 0, "name": "animals", "supercategory": above})

    edit_json(coco_folder / "train.json", change)
    assert load_splits(coco_folder)[0].class_names == ["cat", "dog"]


def test_the_root_may_have_the_name_of_the_class_below_it(coco_folder, edit_json) -> None:
    """As Roboflow writes it for a project that is called as its only class."""

    def change(document: dict[str, Any]) -> None:
        document["categories"][0]["supercategory"] = "cat"
        document["categories"].insert(0, {"id": 0, "name": "cat", "supercategory": "none"})

    edit_json(coco_folder / "train.json", change)
    train, _ = load_splits(coco_folder)
    assert (train.class_names, train.category_ids) == (["cat", "dog"], [1, 2])


def test_a_root_with_boxes_and_an_unused_category_are_classes(coco_folder, edit_json) -> None:
    def change(document: dict[str, Any]) -> None:
        document["categories"] += [
            {"id": 3, "name": "animals", "supercategory": "none"},
            {"id": 4, "name": "person", "supercategory": "person"},
            {"id": 5, "name": "cow", "supercategory": "animals"},
        ]
        document["annotations"][0]["category_id"] = 3

    edit_json(coco_folder / "train.json", change)
    assert load_splits(coco_folder)[0].class_names == ["cat", "dog", "animals", "person", "cow"]


def test_only_known_classes_leaves_the_boxes_of_others_out(coco_folder, edit_json) -> None:
    with pytest.raises(DataError, match=r"does not have category 2 \('dog'\).*data\.only_known_classes=true"):
        load_splits(coco_folder, ["cat"])
    train, test = load_splits(coco_folder, ["cat"], allowed=Allowed(only_known_classes=True))
    for dataset, images in ((train, 10), (test, 4)):
        assert dataset.class_names == ["cat"]
        assert [image.class_ids.tolist() for image in dataset.images] == [[0]] * images
    assert [(row.split, row.kind, row.count) for row in left_out(train, test)] == [
        ("train", "box of another class: dog", 10), ("test", "box of another class: dog", 4),
    ]  # fmt: skip


def test_the_line_of_a_build_stays_one_line() -> None:
    rows = [ProblemRow("train", f"box of another class: {n}", "left out", n, ()) for n in range(1, 78)]
    assert said_in_one_line(rows) == (
        "77 x box of another class: 77 left out (train), 76 x box of another class: 76 left out (train), "
        "75 x box of another class: 75 left out (train), 74 x box of another class: 74 left out (train), "
        "and 2701 of 73 more kinds"
    )


def test_only_known_classes_needs_one_class_that_is_known(coco_folder) -> None:
    with pytest.raises(DataError, match="not one of its 20 boxes can be used"):
        load_splits(coco_folder, ["horse"], allowed=Allowed(only_known_classes=True))


def test_the_check_says_what_a_build_makes_of_each_kind(coco_folder, edit_json) -> None:
    def change(document: dict[str, Any]) -> None:
        boxes = document["annotations"]
        boxes[0]["bbox"], boxes[1]["bbox"], boxes[2]["bbox"] = [1, 1, 0, 4], [2, 2, 0, 4], [-4, 5, 20, 20]

    for split in ("train", "test"):
        edit_json(coco_folder / f"{split}.json", change)
    (coco_folder / "train" / "105.png").unlink()
    report = inspect_coco(coco_folder)
    assert [(row.split, row.kind, row.becomes, row.count) for row in report.rows] == [
        ("train", "box of zero area", "left out", 2),
        ("train", "box that leaves its image slightly", "clipped", 1),
        ("train", "image #: there is no such image", "left out", 1),
        ("test", "box of zero area", "an error without data.allow_bad_boxes", 2),
        ("test", "box that leaves its image slightly", "clipped", 1),
    ]
    assert not report.usable
    edit_json(coco_folder / "test.json", lambda document: document["annotations"].__delitem__(slice(0, 2)))
    assert inspect_coco(coco_folder).usable


def test_bad_lines_of_text_labels_are_left_out_of_training_and_an_error_in_test(tmp_path: Path) -> None:
    for split in ("train", "val"):
        picture(tmp_path / "images" / split / f"{split}.jpg")
        text(tmp_path / "labels" / split / f"{split}.txt", "0 .5 .5 .2 .4\n")
    text(tmp_path / "data.yaml", "train: images/train\nval: images/val\nnames: [cell]\n")
    train_labels, test_labels = (tmp_path / "labels" / split / f"{split}.txt" for split in ("train", "val"))
    text(train_labels, "0 .5 .5 .2 .4\n3 .5 .5 .2 .4\n0 .5 .5 0 .4\n")
    train, _ = load_splits(tmp_path)
    assert [(problem.file, problem.what.partition(" has ")[0]) for problem in train.problems] == [
        (train_labels, "line 2"), (train_labels, "line 3"),
    ]  # fmt: skip
    text(test_labels, "0 .5 .5 .2 .4\n3 .5 .5 .2 .4\n")
    with pytest.raises(DataError, match=r"val\.txt: line 2 has class 3, of 1.*data\.allow_bad_boxes=true"):
        load_splits(tmp_path)
    text(train_labels, "3 .5 .5 .2 .4\n4 .5 .5 .2 .4\n")
    with pytest.raises(DataError, match="not one of its 2 boxes can be used; the first: line 1 has class 3, of 1"):
        load_splits(tmp_path, allowed=Allowed(bad_boxes=True))


def test_corners_the_wrong_way_round_are_left_out_of_a_training_split(tmp_path: Path) -> None:
    def thing(corners: tuple[int, int, int, int]) -> str:
        names = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
        box = "".join(f"<{name}>{value}</{name}>" for name, value in names)
        return f"<object><name>cell</name><bndbox>{box}</bndbox></object>"

    for stem in "ab":
        picture(tmp_path / "JPEGImages" / f"{stem}.jpg")
        things = thing((10, 5, 30, 45)) + thing((30, 5, 10, 45)) * (stem == "a")
        text(tmp_path / "Annotations" / f"{stem}.xml", f"<annotation>{things}</annotation>")
        text(tmp_path / "ImageSets" / "Main" / f"{'train' if stem == 'a' else 'test'}.txt", stem)
    train, test = load_splits(tmp_path)
    assert train.images[0].boxes_xywh.tolist() == [[10, 5, 20, 40]]
    assert "corners the wrong way round" in train.problems[0].what
    assert list(test.problems) == []


@pytest.mark.shared
def test_blood_cells_are_read_as_they_are(shared: Path) -> None:
    """4,888 objects by ``grep -c``, two of them of zero area, both in the training split."""
    train, test = load_splits(shared / "real" / "bccd")
    assert [sum(len(image.class_ids) for image in dataset.images) for dataset in (train, test)] == [3941, 945]
    assert train.class_names == test.class_names == ["Platelets", "RBC", "WBC"]
    (row,) = left_out(train, test)
    assert (row.kind, row.count, row.becomes) == ("box of zero area", 2, "left out")
    assert [name.partition(".xml")[0][-5:] for name in row.named] == ["00338", "00343"]
