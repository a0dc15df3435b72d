"""Pascal VOC's XML as the tools that people use write it, and the genuine blood cells."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from labelled import picture, text
from prunedeploy.data.formats.voc import VocLayout, find_voc
from prunedeploy_engines.errors import DataError


def thing(name: str = "cat", corners: str = "10,5,30,45", more: str = "") -> str:
    values = zip(("xmin", "ymin", "xmax", "ymax"), corners.split(","), strict=True)
    box = "".join(f"<{key}>{value}</{key}>" for key, value in values)
    return f"<object><name>{name}</name>{more}<bndbox>{box}</bndbox></object>"


def xml(path: Path, *things: str, size: str = "<width>100</width><height>50</height><depth>3</depth>") -> Path:
    return text(path, f"<annotation><filename>lies.png</filename><size>{size}</size>{''.join(things)}</annotation>")


def devkit(folder: Path, *things: str, size: str = "<width>100</width><height>50</height>") -> Path:
    picture(folder / "JPEGImages" / "a.jpg")
    xml(folder / "Annotations" / "a.xml", *(things or (thing(),)), size=size)
    text(folder / "ImageSets" / "Main" / "train.txt", "a\n")
    return folder


def found(folder: Path) -> VocLayout:
    layout = find_voc(folder)
    assert layout is not None
    return layout


def test_corners_become_left_top_width_height(tmp_path: Path) -> None:
    labels = found(devkit(tmp_path, thing(), thing("dog", "0.5,1.5,20.5,11.5", "<difficult>1</difficult>"))).read(
        "train"
    )
    assert labels.problems == []
    assert labels.class_names == ["cat", "dog"]
    (image,) = labels.images
    assert (image.path.name, image.height, image.width) == ("a.jpg", 50, 100)
    assert [(box.class_id, box.xywh, box.ignored) for box in image.boxes] == [
        (0, (10.0, 5.0, 20.0, 40.0), False),
        (1, (0.5, 1.5, 20.0, 10.0), True),
    ]


def test_roboflow_puts_the_files_beside_the_images(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        picture(tmp_path / split / f"{split}.jpg")
        xml(tmp_path / split / f"{split}.xml", thing())
    layout = found(tmp_path)
    names = {split: [image.path.name for image in layout.read(split).images] for split in layout.splits}
    assert names == {"train": ["train.jpg"], "val": ["valid.jpg"], "test": ["test.jpg"]}


def test_without_lists_all_files_are_one_split(tmp_path: Path) -> None:
    devkit(tmp_path)
    (tmp_path / "ImageSets" / "Main" / "train.txt").unlink()
    assert [path.name for path in found(tmp_path).splits["all"]] == ["a.xml"]


def test_the_folder_of_the_files_may_be_in_lower_case(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png")
    xml(tmp_path / "annotations" / "a.xml", thing())
    (image,) = found(tmp_path).read("all").images
    assert (image.path.name, [box.xywh for box in image.boxes]) == ("a.png", [(10.0, 5.0, 20.0, 40.0)])


def test_the_only_year_of_a_devkit_is_taken_and_two_are_named(tmp_path: Path) -> None:
    devkit(tmp_path / "VOCdevkit" / "VOC2007")
    assert found(tmp_path).source == tmp_path / "VOCdevkit" / "VOC2007"
    devkit(tmp_path / "VOCdevkit" / "VOC2012")
    with pytest.raises(DataError, match="holds VOC2007 and VOC2012; give one of these folders"):
        find_voc(tmp_path)


@pytest.mark.parametrize("size", ["<width>0</width><height>0</height>", "", "<width>wide</width><height>5</height>"])
def test_size_that_is_missing_is_read_from_the_image(tmp_path: Path, size: str) -> None:
    (image,) = found(devkit(tmp_path, size=size)).read("train").images
    assert (image.height, image.width) == (50, 100)


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        (thing(corners="30,5,10,45"), "object 1 has its corners the wrong way round (30, 5, 10, 45)"),
        (thing(corners="10,nan,30,45"), "object 1 has no bndbox of xmin, ymin, xmax and ymax"),
        ("<object><name>cat</name></object>", "object 1 has no bndbox of xmin, ymin, xmax and ymax"),
        ("<object><name>cat</name><robndbox><cx>1</cx></robndbox></object>", "object 1 is a rotated box"),
        (thing(name=""), "object 1 has no name"),
    ],
)
def test_object_that_is_wrong_costs_no_other(tmp_path: Path, wrong: str, what: str) -> None:
    labels = found(devkit(tmp_path, wrong, thing())).read("train")
    assert [box.xywh for box in labels.images[0].boxes] == [(10.0, 5.0, 20.0, 40.0)]
    assert [problem.what for problem in labels.problems] == [what]


def test_file_that_is_no_xml_or_has_no_image_costs_no_other(tmp_path: Path) -> None:
    devkit(tmp_path)
    text(tmp_path / "Annotations" / "b.xml", "<annotation><object>")
    xml(tmp_path / "Annotations" / "c.xml", thing("bird"))
    text(tmp_path / "ImageSets" / "Main" / "train.txt", "a\nb\nc\nlost\n")
    labels = found(tmp_path).read("train")
    assert [image.path.name for image in labels.images] == ["a.jpg"]
    expected = [
        "line 4: there is no lost.xml in Annotations",
        r"is not XML \(no element found",
        "there is no image c in",
    ]
    assert len(labels.problems) == len(expected)
    for problem, pattern in zip(labels.problems, expected, strict=True):
        assert re.match(pattern, problem.what)


def test_folder_without_voc_is_none(tmp_path: Path) -> None:
    text(tmp_path / "pom.xml", "<project/>")
    assert find_voc(tmp_path) is None


@pytest.mark.shared
def test_blood_cells(shared: Path) -> None:
    """As counted by hand with ``grep -c '<object>'``: 4,888 boxes in 364 photos."""
    layout = found(shared / "real" / "bccd")
    assert layout.class_names == ["Platelets", "RBC", "WBC"]
    train, test = layout.read("trainval"), layout.read("test")
    assert (len(train.images), len(test.images)) == (292, 72)
    assert sum(len(image.boxes) for image in (*train.images, *test.images)) == 4888
    assert [*train.problems, *test.problems] == []
