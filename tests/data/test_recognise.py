"""Folders as the tools that people use arrange them: what they are taken for, and which boxes come out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from labelled import picture, text
from prunedeploy.data import content_key, find_splits, load_coco, load_splits
from prunedeploy.data.coco import load_test_split
from prunedeploy.data.convert import convert
from prunedeploy_engines.errors import DataError


def coco(path: Path, *names: str, categories: list[dict[str, Any]] | None = None) -> Path:
    """Write a COCO JSON with one box per image, of 100 x 50 pixels; the box of image n begins at x = 10 n."""
    images = [{"id": n, "file_name": name, "width": 100, "height": 50} for n, name in enumerate(names, 1)]
    boxes = [
        {"id": n, "image_id": n, "category_id": 1, "bbox": [10 * n, 5, 20, 30], "area": 600, "iscrowd": 0}
        for n in range(1, len(names) + 1)
    ]
    document = {"images": images, "annotations": boxes, "categories": categories or [{"id": 1, "name": "cell"}]}
    return text(path, json.dumps(document))


def roboflow(folder: Path) -> None:
    categories = [
        {"id": 0, "name": "cells", "supercategory": "none"},
        {"id": 1, "name": "cell", "supercategory": "cells"},
    ]
    for split, name in (("train", "a_jpg.rf.1.jpg"), ("valid", "v_jpg.rf.2.jpg"), ("test", "b_jpg.rf.3.jpg")):
        picture(folder / split / name)
        coco(folder / split / "_annotations.coco.json", name, categories=categories)
    text(folder / "README.roboflow.txt", "exported")


def ultralytics(folder: Path) -> None:
    for split, name in (("train", "a.jpg"), ("val", "b.jpg")):
        picture(folder / "images" / f"{split}2017" / name)
        coco(folder / "annotations" / f"instances_{split}2017.json", name)
        text(folder / "annotations" / f"captions_{split}2017.json", '{"images": [], "annotations": []}')


def cvat_subsets(folder: Path) -> None:
    for split, name in (("Train", "a.jpg"), ("Validation", "b.jpg")):
        picture(folder / "images" / split / name)
        coco(folder / "annotations" / f"instances_{split}.json", name)


def datumaro(folder: Path) -> None:
    for split, name in (("train", "a.jpg"), ("val", "v.jpg"), ("test", "b.jpg")):
        picture(folder / "images" / split / name)
        coco(folder / "annotations" / f"instances_{split}.json", name)
        text(folder / "annotations" / f"person_keypoints_{split}.json", '{"images": [], "annotations": []}')


def fiftyone_splits(folder: Path) -> None:
    for split, name in (("train", "a.jpg"), ("validation", "b.jpg")):
        picture(folder / split / "data" / name)
        coco(folder / split / "labels.json", name)


def named_after_splits(folder: Path) -> None:
    for split, name in (("train", "a.jpg"), ("val", "b.jpg")):
        picture(folder / split / name)
        coco(folder / "annotations" / f"{split}.json", name)


def voc(folder: Path) -> None:
    for stem, split in (("a", "train"), ("b", "val")):
        picture(folder / "JPEGImages" / f"{stem}.jpg")
        box = "<xmin>10</xmin><ymin>5</ymin><xmax>30</xmax><ymax>35</ymax>"
        thing = f"<object><name>cell</name><bndbox>{box}</bndbox></object>"
        text(folder / "Annotations" / f"{stem}.xml", f"<annotation>{thing}</annotation>")
        text(folder / "ImageSets" / "Main" / f"{split}.txt", f"{stem}\n")


def yolo(folder: Path) -> None:
    for split, name in (("train", "a"), ("val", "b")):
        picture(folder / "images" / split / f"{name}.jpg")
        text(folder / "labels" / split / f"{name}.txt", "0 0.2 0.4 0.2 0.6\n")
    text(folder / "data.yaml", "train: images/train\nval: images/val\nnames: [cell]\n")


@pytest.mark.parametrize(
    ("arrange", "taken_for"),
    [
        (roboflow, "COCO, as Roboflow arranges it"),
        (ultralytics, "COCO, as Ultralytics arranges it"),
        (cvat_subsets, "COCO, as CVAT or Datumaro arrange it"),
        (datumaro, "COCO, as CVAT or Datumaro arrange it"),
        (fiftyone_splits, "COCO, as FiftyOne arranges it"),
        (named_after_splits, "COCO"),
        (voc, "Pascal VOC"),
        (yolo, "YOLO"),
    ],
)
def test_a_divided_folder_is_read_as_it_is(tmp_path: Path, arrange: Callable[[Path], None], taken_for: str) -> None:
    arrange(tmp_path)
    assert find_splits(tmp_path).format == taken_for
    train, test = load_splits(tmp_path)
    assert (train.class_names, test.class_names) == (["cell"], ["cell"])
    for dataset, start in ((train, "a"), (test, "b")):
        (image,) = dataset.images
        assert image.path.is_file()
        assert image.path.name.startswith(start)
        assert image.boxes_xywh.round(4).tolist() == [[10, 5, 20, 30]]
        assert len(content_key(dataset)) == 64
    assert content_key(train) != content_key(test)
    assert [image.path.name for image in load_test_split(tmp_path).images] == [test.images[0].path.name]


def cvat(folder: Path) -> list[str]:
    names = ["a.jpg", "b.jpg"]
    for name in names:
        picture(folder / "images" / name)
    coco(folder / "annotations" / "instances_default.json", *names)
    return names


def cvat_of_today(folder: Path) -> list[str]:
    names = ["a.jpg", "deep/b.jpg"]
    for name in names:
        picture(folder / "images" / "default" / name)
    coco(folder / "annotations" / "instances_default.json", *names)
    return ["a.jpg", "b.jpg"]


def fiftyone(folder: Path) -> list[str]:
    names = ["a.jpg", "b.jpg"]
    for name in names:
        picture(folder / "data" / name)
    coco(folder / "labels.json", *names)
    return names


def label_studio(folder: Path) -> list[str]:
    for name in ("1a-a.jpg", "2b-b.jpg", "3c-c.jpg", "4 d.jpg", "5e-e.jpg"):
        picture(folder / "images" / name)
    coco(
        folder / "result.json",
        "images\\1a-a.jpg", "images/2b-b.jpg", "../../label-studio/media/upload/1/3c-c.jpg",
        "/data/local-files/?d=photos/4%20d.jpg", "C:\\Users\\me\\images\\5e-e.jpg",
    )  # fmt: skip
    return ["1a-a.jpg", "2b-b.jpg", "3c-c.jpg", "4 d.jpg", "5e-e.jpg"]


def label_studio_yolo(folder: Path) -> list[str]:
    for name in ("a", "b"):
        picture(folder / "images" / f"{name}.jpg")
        text(folder / "labels" / f"{name}.txt", f"0 {0.2 if name == 'a' else 0.3} 0.4 0.2 0.6\n")
    text(folder / "classes.txt", "cell\n")
    text(folder / "notes.json", json.dumps({"categories": [{"id": 0, "name": "cell"}], "info": {"year": 2026}}))
    return ["a.jpg", "b.jpg"]


@pytest.mark.parametrize("arrange", [cvat, cvat_of_today, fiftyone, label_studio, label_studio_yolo])
def test_an_undivided_folder_is_read_and_divided(tmp_path: Path, arrange: Callable[[Path], list[str]]) -> None:
    names = arrange(tmp_path)
    assert find_splits(tmp_path).undivided is not None
    train, test = load_splits(tmp_path, train_images=len(names) - 1)
    images = sorted([*train.images, *test.images], key=lambda image: image.image_id)
    assert [image.path.name for image in images] == names
    assert all(image.path.is_file() for image in images)
    assert [image.boxes_xywh.round(4).tolist() for image in images] == [
        [[10 * n, 5, 20, 30]] for n in range(1, len(names) + 1)
    ]


@pytest.mark.parametrize("arrange", [roboflow, ultralytics, datumaro, fiftyone, label_studio, voc, yolo])
def test_every_layout_converts_to_the_same_boxes(tmp_path: Path, arrange: Callable[[Path], Any]) -> None:
    (tmp_path / "in").mkdir()
    arrange(tmp_path / "in")
    convert(tmp_path / "in", tmp_path / "out")
    assert find_splits(tmp_path / "out").format == "COCO"
    for before, after in zip(load_splits(tmp_path / "in"), load_splits(tmp_path / "out"), strict=True):
        assert [image.boxes_xywh.tolist() for image in before.images] == [
            image.boxes_xywh.tolist() for image in after.images
        ]
        assert [image.path.read_bytes() for image in before.images] == [
            image.path.read_bytes() for image in after.images
        ]


def test_a_name_that_leads_elsewhere_never_takes_another_records_file(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.jpg")
    coco(tmp_path / "result.json", "a.jpg", "other\\a.jpg", "/etc/hostname")
    with pytest.raises(DataError, match="leads out of the data folder"):
        load_coco(tmp_path / "result.json", tmp_path / "images")
    train, test = load_splits(tmp_path, train_images=1)
    images = {image.image_id: image.path for image in (*train.images, *test.images)}
    assert images == {1: tmp_path / "images" / "a.jpg", 2: tmp_path / "images" / "other\\a.jpg"}


def two_formats(folder: Path) -> None:
    yolo(folder)
    coco(folder / "annotations" / "instances_default.json", "a.jpg")


def voc_and_coco(folder: Path) -> None:
    voc(folder)
    coco(folder / "labels.json", "a.jpg")


@pytest.mark.parametrize(
    ("arrange", "said"),
    [
        (two_formats, "could be two formats: COCO by annotations/instances_default.json and YOLO by data.yaml"),
        (voc_and_coco, "could be two formats: COCO by labels.json and Pascal VOC by Annotations"),
        (
            lambda folder: [coco(folder / name) for name in ("one.json", "two.json")],
            "one.json and two.json could each be the one",
        ),
        (lambda folder: text(folder / "labels" / "a.txt", "0 .5 .5 .1 .1"), "add a data.yaml"),
        (lambda folder: text(folder / "notes.json", "{}"), "notes.json has no images and annotations"),
        (lambda folder: picture(folder / "a.jpg"), "no COCO JSON in this folder"),
        (lambda folder: text(folder / "data.yaml", "train: images\n"), "has no names of classes"),
    ],
)
def test_a_folder_that_cannot_be_told_is_refused_in_one_line(
    tmp_path: Path, arrange: Callable[[Path], Any], said: str
) -> None:
    picture(tmp_path / "images" / "a.jpg")
    arrange(tmp_path)
    with pytest.raises(DataError) as caught:
        find_splits(tmp_path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_description_without_labels_does_not_spoil_a_coco_folder(tmp_path: Path) -> None:
    ultralytics(tmp_path)
    text(tmp_path / "coco.yaml", "train: images/train2017\nval: images/val2017\nnames: [cell]\n")
    assert find_splits(tmp_path).format == "COCO, as Ultralytics arranges it"


def test_a_yolo_description_that_names_one_folder_twice_is_divided(tmp_path: Path) -> None:
    """As coco128.yaml does: all of its images would be measured after they were trained on."""
    for name in "abcde":
        picture(tmp_path / "images" / f"{name}.jpg")
        text(tmp_path / "labels" / f"{name}.txt", "0 .5 .5 .2 .4")
    text(tmp_path / "data.yaml", "train: images\nval: images\nnames: [cell]\n")
    train, test = load_splits(tmp_path)
    names = [{image.path.name for image in dataset.images} for dataset in (train, test)]
    assert ([len(one) for one in names], names[0] & names[1]) == ([4, 1], set())


def test_a_test_split_that_is_named_and_not_there_is_none(tmp_path: Path) -> None:
    """As in the data.yaml of every Roboflow export that has none."""
    yolo(tmp_path)
    with (tmp_path / "data.yaml").open("a") as file:
        file.write("test: ../test/images\n")
    splits = find_splits(tmp_path)
    assert splits.test is not None
    assert splits.test.json_path.name == "val"
    text(tmp_path / "data.yaml", "train: images/train\ntest: ../test/images\nnames: [cell]\n")
    with pytest.raises(DataError, match=r"test: there is no \.\./test/images"):
        find_splits(tmp_path)


def test_the_content_key_of_text_labels_follows_them_and_not_their_place(tmp_path: Path) -> None:
    yolo(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two", copy_function=shutil.copy2)
    first = [content_key(dataset) for dataset in load_splits(tmp_path / "one")]
    assert [content_key(dataset) for dataset in load_splits(tmp_path / "two")] == first
    text(tmp_path / "two" / "labels" / "train" / "a.txt", "0 0.2 0.4 0.2 0.5\n")
    changed = [content_key(dataset) for dataset in load_splits(tmp_path / "two")]
    assert (changed[0] != first[0], changed[1]) == (True, first[1])
