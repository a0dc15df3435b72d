"""`data convert` as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from labelled import picture, text


def data_set(folder: Path) -> Path:
    for split in ("train", "val"):
        picture(folder / "images" / split / "a.jpg")
        text(folder / "labels" / split / "a.txt", "0 .5 .5 .2 .4\n7 .5 .5 .2 .4\n")
    text(folder / "data.yaml", "train: images/train\nval: images/val\nnames: [cat, dog]\n")
    return folder


def test_convert_says_what_it_found_and_what_it_left_out_and_the_folder_passes_the_check(
    run: Any, tmp_path: Path
) -> None:
    done = run("data", "convert", data_set(tmp_path / "in"), tmp_path / "out")
    assert done.exit_code == 0
    assert done.stdout.splitlines() == [
        f"{tmp_path / 'in'}: YOLO, 2 classes: cat, dog",
        "train (from train): 1 images, 1 boxes",
        "test (from val): 1 images, 1 boxes",
    ]
    assert "2 x give 0 to 1, or add the name of the class" in done.stderr
    assert "labels/train/a.txt: line 2 has class 7, of 2" in done.stderr
    # Both splits have a file a.jpg of the same content, but it is not the same file.
    assert run("data", "coco", tmp_path / "out").exit_code == 0


def test_convert_as_json_names_every_problem(run: Any, tmp_path: Path) -> None:
    document = json.loads(run("data", "convert", data_set(tmp_path / "in"), tmp_path / "out", "--json").stdout)
    assert (document["format"], document["class_names"]) == ("YOLO", ["cat", "dog"])
    assert [(one["name"], one["images"], len(one["problems"])) for one in document["splits"]] == [
        ("train", 1, 1), ("test", 1, 1),
    ]  # fmt: skip


def test_a_folder_of_no_known_format_is_one_line(run: Any, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    done = run("data", "convert", tmp_path / "in", tmp_path / "out")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "no COCO JSON in this folder, and no labels of YOLO or Pascal VOC; give COCO JSON" in done.stderr
    assert not (tmp_path / "out").exists()
