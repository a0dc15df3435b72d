"""YOLO's labels as the tools that people use write them; boxes worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from labelled import picture, text
from prunedeploy.data.formats.labels import Labels
from prunedeploy.data.formats.yolo import YoloLayout, find_yolo
from prunedeploy_engines.errors import DataError


def found(folder: Path) -> YoloLayout:
    layout = find_yolo(folder)
    assert layout is not None
    return layout


def boxes(labels: Labels) -> list[tuple[str, int, tuple[float, ...]]]:
    return [
        (image.path.name, box.class_id, tuple(round(value, 4) for value in box.xywh))
        for image in labels.images for box in image.boxes
    ]  # fmt: skip


def ultralytics(folder: Path, label: str = "1 0.5 0.5 0.2 0.4\n") -> Path:
    picture(folder / "images" / "train" / "a.jpg")
    text(folder / "labels" / "train" / "a.txt", label)
    picture(folder / "images" / "val" / "b.png")
    text(folder / "data.yaml", "path: .\ntrain: images/train\nval: images/val\nnames:\n  0: cat\n  1: dog\n")
    return folder


def test_ultralytics(tmp_path: Path) -> None:
    layout = found(ultralytics(tmp_path))
    assert layout.class_names == ["cat", "dog"]
    train, val = layout.read("train"), layout.read("val")
    # 100 x 50 pixels: the middle is (50, 25), the box 20 x 20.
    assert boxes(train) == [("a.jpg", 1, (40.0, 15.0, 20.0, 20.0))]
    assert (train.problems, [(image.height, image.width) for image in train.images]) == ([], [(50, 100)])
    assert [image.path.name for image in val.images] == ["b.png"]
    assert "none of the 1 images of 'val' has a label file" in val.problems[0].what


def test_roboflow_writes_paths_that_lead_out_of_its_folder(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        picture(tmp_path / split / "images" / f"{split}.jpg")
        text(tmp_path / split / "labels" / f"{split}.txt", "0 0.5 0.5 1 1")
    names = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnc: 1\nnames: ['cell']\n"
    text(tmp_path / "data.yaml", names)
    layout = found(tmp_path)
    assert [boxes(layout.read(split)) for split in ("train", "val", "test")] == [
        [(f"{name}.jpg", 0, (0.0, 0.0, 100.0, 50.0))] for name in ("train", "valid", "test")
    ]


def test_darknet_lists_images_with_paths_of_another_machine(tmp_path: Path) -> None:
    picture(tmp_path / "obj_train_data" / "a.jpg")
    text(tmp_path / "obj_train_data" / "a.txt", "0 .5 .5 .1 .2\n1 .25 .5 .5 1\n")
    text(tmp_path / "obj.names", "cat\ndog\n")
    text(tmp_path / "train.txt", "C:\\darknet\\data\\obj_train_data\\a.jpg\ndata/obj_train_data/lost.jpg\n")
    text(tmp_path / "obj.data", "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n")
    train = found(tmp_path).read("train")
    assert boxes(train) == [("a.jpg", 0, (45.0, 20.0, 10.0, 10.0)), ("a.jpg", 1, (0.0, 0.0, 50.0, 50.0))]
    assert [problem.what for problem in train.problems] == ["line 2: there is no data/obj_train_data/lost.jpg"]


def test_label_studio_has_classes_and_two_folders(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.jpg")
    text(tmp_path / "labels" / "a.txt", "0 .5 .5 .1 .2")
    text(tmp_path / "classes.txt", "cat\n")
    layout = found(tmp_path)
    assert list(layout.splits) == ["all"]
    assert boxes(layout.read("all")) == [("a.jpg", 0, (45.0, 20.0, 10.0, 10.0))]


def test_polygon_becomes_the_box_around_it(tmp_path: Path) -> None:
    layout = found(ultralytics(tmp_path, "0 0.1 0.2 0.3 0.2 0.2 0.6\n"))
    assert boxes(layout.read("train")) == [("a.jpg", 0, (10.0, 10.0, 20.0, 20.0))]


def test_keypoints_behind_a_box_are_no_polygon(tmp_path: Path) -> None:
    folder = ultralytics(tmp_path, "1 0.5 0.5 0.2 0.4 0.9 0.9 2 0.1 0.1 2\n")
    with (folder / "data.yaml").open("a") as file:
        file.write("kpt_shape: [2, 3]\n")
    assert boxes(found(folder).read("train")) == [("a.jpg", 1, (40.0, 15.0, 20.0, 20.0))]


def test_size_is_that_of_the_upright_photo(tmp_path: Path) -> None:
    folder = ultralytics(tmp_path)
    picture(folder / "images" / "train" / "a.jpg", orientation=6)
    assert boxes(found(folder).read("train")) == [("a.jpg", 1, (20.0, 30.0, 10.0, 40.0))]


def test_image_in_two_lists_counts_once(tmp_path: Path) -> None:
    folder = ultralytics(tmp_path)
    text(folder / "more.txt", "images/train/a.jpg\n./images/train/a.jpg\n")
    text(folder / "data.yaml", "train: [images/train, more.txt]\nnames: [cat, dog]\n")
    assert len(found(folder).read("train").images) == 1


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("2 .5 .5 .1 .1", "line 1 has class 2, of 2"),
        ("-1 .5 .5 .1 .1", "line 1 has class -1, of 2"),
        ("0.5 .5 .5 .1 .1", "line 1 has class 0.5, of 2"),
        ("0 .5 .5 .1", "line 1 has 4 numbers"),
        ("0 .5 .5 .1 .1 .9", "line 1 has 6 numbers"),
        ("0 50 25 20 20", "line 1 has 50"),
        ("0 nan .5 .1 .1", "line 1 has NaN or infinity"),
        ("cat .5 .5 .1 .1", "line 1 holds something that is not a number: cat .5 .5 .1 .1"),
    ],
)  # fmt: skip
def test_line_that_is_wrong_costs_no_other(tmp_path: Path, line: str, what: str) -> None:
    train = found(ultralytics(tmp_path, f"{line}\n\n1 0.5 0.5 0.2 0.4\n")).read("train")
    assert boxes(train) == [("a.jpg", 1, (40.0, 15.0, 20.0, 20.0))]
    assert [problem.what for problem in train.problems] == [what]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("train: images/train\n", r"data.yaml: has no names of classes; add `names"),
        ("train: images/train\nnames: [cat, dog]\nnc: 3\n", "nc is 3, but there are 2 names"),
        ("train: images/train\nnames: [cat, cat]\n", "names has 'cat' twice"),
        ("train: images/nowhere\nnames: [cat, dog]\n", "train: there is no images/nowhere"),
        ("train: {a: b}\nnames: [cat, dog]\n", "train is {'a': 'b'}"),
        ("names: [cat, dog]\n", "names no images: it has neither train nor val"),
    ],
)
def test_description_that_cannot_be_read_is_one_line(tmp_path: Path, content: str, line: str) -> None:
    folder = ultralytics(tmp_path)
    text(folder / "data.yaml", content)
    with pytest.raises(DataError) as caught:
        find_yolo(folder)
    assert line in str(caught.value)


def test_two_descriptions_are_named(tmp_path: Path) -> None:
    folder = ultralytics(tmp_path)
    text(folder / "coco.yaml", "train: images/train\nnames: [cat]\n")
    with pytest.raises(DataError, match=r"coco.yaml and data.yaml each describe a data set"):
        find_yolo(folder)


def test_yaml_of_something_else_is_no_data_set(tmp_path: Path) -> None:
    text(tmp_path / "docker-compose.yml", "services: {web: {image: nginx}}\n")
    assert find_yolo(tmp_path) is None


def test_broken_image_costs_no_other(tmp_path: Path) -> None:
    folder = ultralytics(tmp_path)
    text(folder / "images" / "train" / "broken.jpg", "no image")
    train = found(folder).read("train")
    assert [image.path.name for image in train.images] == ["a.jpg"]
    assert [(problem.file.name, problem.what) for problem in train.problems] == [("broken.jpg", "is not an image")]


def test_document_counts_from_one_and_names_files_below_their_folder(tmp_path: Path) -> None:
    folder = ultralytics(tmp_path)
    picture(folder / "images" / "train" / "deep" / "c.jpg")
    labels = found(folder).read("train")
    document = labels.document()
    assert labels.image_folder() == (folder / "images" / "train").resolve()
    assert [(image["id"], image["file_name"]) for image in document["images"]] == [(1, "a.jpg"), (2, "deep/c.jpg")]
    assert document["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    (box,) = document["annotations"]
    assert (box["image_id"], box["category_id"], box["area"], box["iscrowd"]) == (1, 2, pytest.approx(400), 0)
    assert (Path(box["file"]).name, box["where"]) == ("a.txt", "line 1")
