from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from prunedeploy.data import content_key, find_splits, load_coco, load_splits, measured_subset, train_test_subset
from prunedeploy.data.coco import load_test_split
from prunedeploy_engines.errors import DataError

# Official COCO's 80 categories: names as in its JSON, ids up to 90 with gaps (cocodataset.org).
_GAPS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91}
OFFICIAL_IDS = [number for number in range(1, 91) if number not in _GAPS]
OFFICIAL_SPELLING = {
    "motorbike": "motorcycle",
    "aeroplane": "airplane",
    "sofa": "couch",
    "pottedplant": "potted plant",
    "diningtable": "dining table",
    "tvmonitor": "tv",
}


def load_train(folder, **more):
    return load_coco(folder / "train.json", folder / "train", **more)


def refused(folder, **more) -> str:
    with pytest.raises(DataError) as caught:
        load_train(folder, **more)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    assert str(folder / "train.json") in str(caught.value)
    return str(caught.value)


def test_boxes_classes_and_sizes_are_those_that_pycocotools_reads(coco_folder, capsys):
    dataset = load_train(coco_folder)
    reference = COCO(str(coco_folder / "train.json"))
    assert [image.image_id for image in dataset.images] == reference.getImgIds()
    for image in dataset.images:
        annotations = reference.imgToAnns[image.image_id]
        np.testing.assert_array_equal(image.boxes_xywh, np.array([a["bbox"] for a in annotations], np.float32))
        assert [dataset.category_ids[c] for c in image.class_ids] == [a["category_id"] for a in annotations]
        assert [float(area) for area in image.areas] == [a["area"] for a in annotations]
        with Image.open(image.path) as picture:
            assert picture.size == (image.width, image.height)
    assert dataset.images[0].boxes_xyxy.tolist() == [[4, 6, 24, 16], [30, 20, 46, 44]]
    assert dataset.images[0].boxes_xywh.dtype == np.float32
    assert dataset.images[0].class_ids.dtype == np.int64


def test_categories_are_mapped_to_the_networks_classes_by_name(coco_folder):
    dataset = load_train(coco_folder, class_names=["horse", "dog", "cat"])
    assert dataset.class_names == ["horse", "dog", "cat"]
    assert dataset.category_ids == [-1, 2, 1]
    assert dataset.images[0].class_ids.tolist() == [2, 1]


def test_official_91_ids_map_to_darknets_80_classes(coco_folder, edit_json, shared):
    names = (shared / "real" / "yolov3-tiny" / "coco.names").read_text().split("\n")[:80]

    def official(document):
        document["categories"] = [
            {"id": number, "name": OFFICIAL_SPELLING.get(name, name)}
            for number, name in zip(OFFICIAL_IDS, names, strict=True)
        ]
        document["annotations"][0]["category_id"] = 90  # toothbrush, the last
        document["annotations"][1]["category_id"] = 13  # stop sign: 11 before it, 12 is a gap

    edit_json(coco_folder / "train.json", official)
    dataset = load_train(coco_folder, class_names=names)
    assert dataset.category_ids == OFFICIAL_IDS
    assert dataset.images[0].class_ids.tolist() == [79, names.index("stop sign")] == [79, 11]


def test_a_category_that_the_network_lacks_is_named(coco_folder):
    assert "'dog'" in refused(coco_folder, class_names=["cat", "horse"])


def test_without_class_names_classes_are_in_order_of_category_id(coco_folder, edit_json):
    edit_json(coco_folder / "train.json", lambda document: document["categories"].reverse())
    dataset = load_train(coco_folder)
    assert dataset.class_names == ["cat", "dog"]
    assert dataset.category_ids == [1, 2]


def test_crowd_boxes_are_flagged_and_images_without_boxes_stay(coco_folder, edit_json):
    def change(document):
        document["annotations"][0]["iscrowd"] = 1
        document["annotations"] = [a for a in document["annotations"] if a["image_id"] != 101]

    edit_json(coco_folder / "train.json", change)
    dataset = load_train(coco_folder)
    assert dataset.images[0].iscrowd.tolist() == [True, False]
    assert dataset.images[1].image_id == 101
    assert dataset.images[1].boxes_xywh.shape == (0, 4)
    assert dataset.images[1].boxes_xyxy.shape == (0, 4)


def test_a_box_one_pixel_over_the_edge_is_clipped(coco_folder, edit_json):
    def change(document):
        document["annotations"][0]["bbox"] = [-0.5, 40.0, 10.0, 9.0]  # the image is 48 high, 64 wide

    edit_json(coco_folder / "train.json", change)
    assert load_train(coco_folder).images[0].boxes_xywh[0].tolist() == [0, 40, 9.5, 8]


@pytest.mark.parametrize(
    ("bbox", "said"),
    [
        ([56.0, 10.0, 16.5, 10.0], "outside its image of 64 x 48"),
        ([10.0, -8.5, 6.0, 20.0], "outside"),
        ([65.0, 10.0, 0.5, 10.0], "outside"),
        ([1.0, 10.0, 0.0, 10.0], "zero area"),
        ([20.0, 10.0, -6.0, 10.0], "negative size"),
        ([float("nan"), 10.0, 6.0, 10.0], "NaN"),
        ([1.0, 10.0, float("inf"), 10.0], "infinity"),
        ([1.0, 10.0, 6.0], "four numbers"),
        ([1.0, "2", 6.0, 4.0], "four numbers"),
        ([10**400, 2, 6, 4], "four numbers"),
        (None, "four numbers"),
    ],
)
def test_a_faulty_box_is_refused_with_both_ids(coco_folder, edit_json, bbox, said):
    def change(document):
        document["annotations"][5]["bbox"] = bbox

    edit_json(coco_folder / "train.json", change)
    message = refused(coco_folder)
    assert said in message
    assert "annotation 6" in message
    assert "image 102" in message


def test_the_two_flat_boxes_of_official_coco_are_dropped(coco_folder, edit_json):
    def change(document):
        document["images"][0].update(id=200365, height=428, width=640)
        document["annotations"][0].update(image_id=200365, bbox=[296.65, 388.33, 1.03, 0.0])
        document["annotations"][1].update(image_id=200365)

    edit_json(coco_folder / "train.json", change)
    assert load_train(coco_folder).images[0].class_ids.tolist() == [1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.pop("images"), "'images'"),
        (lambda d: d["images"].clear(), "'images' is empty"),
        (lambda d: d.pop("annotations"), "'annotations'"),
        (lambda d: d.pop("categories"), "'categories'"),
        (lambda d: d["images"][3].update(id=100), "image id 100 occurs twice"),
        (lambda d: d["annotations"][3].update(id=1), "annotation id 1 occurs twice"),
        (lambda d: d["categories"][1].update(id=1), "category 1"),
        (lambda d: d["categories"][1].update(name="cat"), "category 2 ('cat') occurs twice"),
        (lambda d: d["annotations"][3].update(image_id=999), "annotation 4 is of unknown image 999"),
        (lambda d: d["annotations"][3].update(category_id=7), "annotation 4 has unknown category 7"),
        (lambda d: d["images"][2].update(width=0), "image 102 has height 48 and width 0"),
        (lambda d: d["images"][2].update(width="64"), "image 102"),
        (lambda d: d["images"][2].pop("file_name"), "image 102 has no file_name"),
        (lambda d: d["images"][2].update(file_name="../../secret.png"), "leads out of the data folder"),
        (lambda d: d["images"][2].update(file_name="/etc/passwd"), "leads out of the data folder"),
        (lambda d: d["annotations"].append(7), "annotations[20] is not an object"),
        (lambda d: d["annotations"][0].update(iscrowd=3), "iscrowd 3"),
    ],
)
def test_a_faulty_json_is_refused_in_one_line(coco_folder, edit_json, change, said):
    edit_json(coco_folder / "train.json", change)
    assert said in refused(coco_folder)


@pytest.mark.parametrize("content", [b"", b"not json", b"[1, 2]", b"\xff\xfe\x00", b"[" * 100_000])
def test_a_file_that_is_not_coco_json_is_refused(coco_folder, content):
    (coco_folder / "train.json").write_bytes(content)
    assert "COCO instances JSON" in refused(coco_folder)


def test_a_missing_json_is_refused(coco_folder):
    (coco_folder / "train.json").unlink()
    assert "cannot be read" in refused(coco_folder)


def test_the_number_of_further_problems_is_said(coco_folder, edit_json):
    def change(document):
        for annotation in document["annotations"][:3]:
            annotation["bbox"] = [0, 0, 0, 0]

    edit_json(coco_folder / "train.json", change)
    assert "2 more problems" in refused(coco_folder)


def test_official_layout_with_the_newest_year(coco_folder):
    (coco_folder / "annotations").mkdir()
    for name, year in (("train", "2017"), ("val", "2017"), ("train", "2014")):
        source = "test" if name == "val" else name
        (coco_folder / "annotations" / f"instances_{name}{year}.json").write_bytes(
            (coco_folder / f"{source}.json").read_bytes()
        )
    for name in ("train", "test"):
        (coco_folder / f"{name}.json").unlink()
    (coco_folder / "train").rename(coco_folder / "train2017")
    (coco_folder / "test").rename(coco_folder / "val2017")
    splits = find_splits(coco_folder)
    assert splits.train.json_path.name == "instances_train2017.json"
    train, test = load_splits(coco_folder)
    assert (len(train), len(test)) == (10, 4)
    assert all(image.path.is_file() for image in (*train.images, *test.images))


def test_file_names_relative_to_the_folder_are_found(coco_folder, edit_json):
    def change(document):
        for image in document["images"]:
            image["file_name"] = "train/" + image["file_name"]

    edit_json(coco_folder / "train.json", change)
    assert all(image.path.is_file() for image in load_train(coco_folder).images)


def undivided(coco_folder: Path) -> Path:
    (coco_folder / "test.json").unlink()
    (coco_folder / "train.json").rename(coco_folder / "all.json")
    (coco_folder / "train").rename(coco_folder / "images")
    return coco_folder


def test_a_single_json_is_divided_by_the_seed(coco_folder):
    folder = undivided(coco_folder)
    assert find_splits(folder).undivided is not None
    train, test = load_splits(folder, train_images=6, seed=3)
    ids = [image.image_id for image in (*train.images, *test.images)]
    assert (len(train), len(test)) == (6, 4)
    assert sorted(ids) == list(range(100, 110))
    again, _ = load_splits(folder, train_images=6, seed=3)
    assert [i.image_id for i in again.images] == [i.image_id for i in train.images]
    other, _ = load_splits(folder, train_images=6, seed=4)
    assert [i.image_id for i in other.images] != [i.image_id for i in train.images]
    assert len(load_splits(folder)[0]) == 8  # 80 %


def test_every_image_is_drawn_for_training_equally_often(coco_folder):
    dataset = load_train(coco_folder)
    drawn = Counter(image.image_id for seed in range(400) for image in train_test_subset(dataset, 5, seed)[0].images)
    # Binomial with n = 400, p = 1/2: mean 200, standard deviation 10.
    assert all(150 < drawn[image_id] < 250 for image_id in range(100, 110))


@pytest.mark.parametrize("count", [0, 10, 11])
def test_a_subset_that_leaves_nothing_is_refused(coco_folder, count):
    with pytest.raises(DataError, match="for training"):
        train_test_subset(load_train(coco_folder), count, 0)


def test_what_is_measured_on_is_drawn_whatever_the_seed_of_a_run(coco_folder):
    test = load_splits(coco_folder, seed=3)[1]
    measured = [image.image_id for image in measured_subset(test, 2).images]
    assert measured == [image.image_id for image in measured_subset(load_splits(coco_folder, seed=4)[1], 2).images]
    assert len(measured) == 2
    assert set(measured) < {image.image_id for image in test.images}


def test_a_folder_with_only_a_test_split_is_tested_on_whole(coco_folder):
    (coco_folder / "train.json").unlink()
    assert len(load_test_split(coco_folder)) == 4


def test_folders_that_are_no_data_are_refused(tmp_path):
    with pytest.raises(DataError, match="no such data folder"):
        find_splits(tmp_path / "missing")
    with pytest.raises(DataError, match="no COCO JSON"):
        find_splits(tmp_path)


def test_the_content_key_follows_json_images_classes_and_subset(coco_folder, edit_json):
    def key(**more):
        return content_key(load_train(coco_folder, **more))

    first = key()
    assert key() == first
    assert content_key(load_train(coco_folder)) == first
    seen = {first, key(class_names=["dog", "cat"])}
    train, test = train_test_subset(load_train(coco_folder), 5, 0)
    seen |= {content_key(train), content_key(test)}
    image = coco_folder / "train" / "103.png"
    status = image.stat()
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    seen.add(key())
    image.unlink()
    seen.add(key())
    edit_json(coco_folder / "train.json", lambda d: d["annotations"].pop())
    seen.add(key())
    assert len(seen) == 7


def test_ids_need_not_be_small(coco_folder, edit_json):
    def change(document):
        document["images"][0]["id"] = 2**40
        for annotation in document["annotations"][:2]:
            annotation["image_id"] = 2**40

    edit_json(coco_folder / "train.json", change)
    assert load_train(coco_folder).images[0].image_id == 2**40
    assert json.loads((coco_folder / "train.json").read_text())["images"][0]["id"] == 2**40
