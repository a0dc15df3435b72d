"""Converted folders are read back by the COCO reader that builds use."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from labelled import picture, text
from prunedeploy.data import load_splits
from prunedeploy.data.convert import convert
from prunedeploy_engines.errors import DataError, StoreError


def yolo(folder: Path, train: str, splits: tuple[str, ...] = ("train", "val")) -> Path:
    for split in splits:
        picture(folder / "images" / split / f"{split}.png")
        text(folder / "labels" / split / f"{split}.txt", train if split == "train" else "0 .5 .5 .2 .4\n")
    lines = [f"{split}: images/{split}\n" for split in splits]
    text(folder / "data.yaml", "".join(lines) + "names: [cat, dog]\n")
    return folder


def test_a_converted_folder_has_the_boxes_of_the_labels(tmp_path: Path) -> None:
    done = convert(yolo(tmp_path / "in", "1 .5 .5 .2 .4\n"), tmp_path / "out")
    train, test = load_splits(tmp_path / "out")
    assert (done.format, list(done.class_names), train.class_names) == ("YOLO", ["cat", "dog"], ["cat", "dog"])
    assert [(one.name, one.source, one.images, one.boxes) for one in done.splits] == [
        ("train", "train", 1, 1), ("test", "val", 1, 1),
    ]  # fmt: skip
    assert train.images[0].boxes_xywh.tolist() == [[40, 15, 20, 20]]
    assert (train.images[0].class_ids.tolist(), test.images[0].class_ids.tolist()) == ([1], [0])
    assert train.images[0].path.read_bytes() == (tmp_path / "in" / "images" / "train" / "train.png").read_bytes()


def test_a_box_that_leaves_its_image_is_clipped_and_one_without_area_left_out(tmp_path: Path) -> None:
    """100 x 50 pixels: boxes run from -4 to 36, from half a pixel outside, and from -10; the last has no width."""
    lines = "0 .16 .5 .4 .4\n0 .0975 .5 .205 .4\n0 .1 .5 .4 .4\n0 .5 .5 0 .4\n"
    done = convert(yolo(tmp_path / "in", lines), tmp_path / "out")
    (train, _) = load_splits(tmp_path / "out")
    assert train.images[0].boxes_xywh.tolist() == [[0, 15, 36, 20], [0, 15, 20, 20]]
    assert [(problem.what.partition(" [")[0], problem.spoils) for problem in done.splits[0].problems] == [
        ("line 1 leaves its image by 4 pixels, bbox", "edge"),
        ("line 3 has bbox", "box"),
        ("line 4 has a bbox of zero area", "box"),
    ]


def test_a_third_split_is_kept_and_not_mixed_in(tmp_path: Path) -> None:
    done = convert(yolo(tmp_path / "in", "0 .5 .5 .2 .4\n", ("train", "val", "test")), tmp_path / "out")
    assert [(one.name, one.source) for one in done.splits] == [("train", "train"), ("test", "test"), ("val", "val")]
    assert [len(split.images) for split in load_splits(tmp_path / "out")] == [1, 1]


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (
            lambda folder: (folder / "data.yaml").unlink(),
            "has YOLO labels, but nothing that names their classes; add a data.yaml",
        ),
        (
            lambda folder: text(folder / "Annotations" / "a.xml", "<annotation/>"),
            "could be two formats: Pascal VOC by Annotations and YOLO by data.yaml",
        ),
        (
            lambda folder: text(folder / "images" / "val" / "val.png", "x"),
            "split 'val' cannot be used: has no usable image",
        ),
    ],
)
def test_a_folder_that_cannot_be_converted_is_one_line_and_leaves_nothing(tmp_path, spoil, line) -> None:
    spoil(yolo(tmp_path / "in", "0 .5 .5 .2 .4\n"))
    with pytest.raises(DataError) as caught:
        convert(tmp_path / "in", tmp_path / "out")
    assert line in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    text(tmp_path / "out" / "thesis.tex", "x")
    with pytest.raises(StoreError, match="exists and is not empty"):
        convert(yolo(tmp_path / "in", "0 .5 .5 .2 .4\n"), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


@pytest.mark.shared
def test_blood_cells_lose_their_two_boxes_without_area(shared: Path, tmp_path: Path) -> None:
    done = convert(shared / "real" / "bccd", tmp_path / "out")
    assert [(one.name, one.source, one.images) for one in done.splits] == [
        ("train", "trainval", 292), ("test", "test", 72),
    ]  # fmt: skip
    assert sum(one.boxes for one in done.splits) == 4886
    left_out = [problem for one in done.splits for problem in one.problems]
    assert [(problem.file.name, problem.spoils, problem.kind) for problem in left_out] == [
        ("BloodImage_00338.xml", "box", "box of zero area"), ("BloodImage_00343.xml", "box", "box of zero area"),
    ]  # fmt: skip
    train, test = load_splits(tmp_path / "out")
    assert (len(train), len(test)) == (292, 72)
    assert json.loads((tmp_path / "out" / "test.json").read_text())["categories"][0]["name"] == "Platelets"
