"""The demo set: deterministic, honest boxes, no photo in both splits."""

from __future__ import annotations

import colorsys
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prunedeploy.data import load_splits
from prunedeploy.data.demo import (
    CLASS_HUES,
    CLASS_NAMES,
    SPRITES,
    DemoSettings,
    background,
    compose_scene,
    cut_out,
    tint,
    write_demo,
)
from prunedeploy_engines.errors import DataError

SMALL = DemoSettings(train_scenes=24, test_scenes=60)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demo(tmp_path_factory.mktemp("demo") / "set", SMALL)


@pytest.fixture
def few_photos(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tenth photo only, for tests that are about the folder: cutting out all 2500 takes a while."""
    path = tmp_path_factory.mktemp("photos") / "few.npz"
    with np.load(SPRITES) as sprites:
        np.savez(path, **{name: sprites[name][::10] for name in sprites.files})
    monkeypatch.setattr("prunedeploy.data.demo.SPRITES", path)


def contents(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def pixels(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): np.asarray(Image.open(path)).tobytes()
        for path in sorted(folder.rglob("*.png"))
    }


def test_the_same_settings_give_the_same_files(demo: Path, tmp_path: Path) -> None:
    again = write_demo(tmp_path / "again", SMALL)
    assert len(contents(demo)) == 24 + 60 + 3
    assert contents(again) == contents(demo)
    # The content key of a data set is name, size and time stamp of its images: those are equal as well.
    for path in demo.rglob("*.png"):
        assert path.stat().st_mtime_ns == (again / path.relative_to(demo)).stat().st_mtime_ns


@pytest.mark.usefixtures("few_photos")
def test_another_seed_gives_other_scenes_and_more_scenes_begin_with_the_same(tmp_path: Path) -> None:
    ours = pixels(write_demo(tmp_path / "ours", DemoSettings(train_scenes=6, test_scenes=5)))
    other = pixels(write_demo(tmp_path / "other", DemoSettings(seed=1, train_scenes=3, test_scenes=3)))
    fewer = pixels(write_demo(tmp_path / "fewer", DemoSettings(train_scenes=3, test_scenes=3)))
    for name, value in fewer.items():
        assert ours[name] == value
        assert ours[name] != other[name]


def test_it_is_a_coco_folder_that_our_reader_takes(demo: Path) -> None:
    training, test = load_splits(demo)
    assert (len(training.images), len(test.images)) == (24, 60)
    assert tuple(test.class_names) == CLASS_NAMES
    for name in ("train", "test"):
        document = json.loads((demo / f"{name}.json").read_text())
        assert len({image["id"] for image in document["images"]}) == len(document["images"])
        assert len({a["id"] for a in document["annotations"]}) == len(document["annotations"])
        for image in document["images"]:
            with Image.open(demo / name / image["file_name"]) as picture:
                assert picture.size == (image["width"], image["height"]) == (160, 160)
                assert picture.mode == "RGB"


def boxes_by_image(demo: Path, split: str) -> dict[int, list[list[float]]]:
    document = json.loads((demo / f"{split}.json").read_text())
    found: dict[int, list[list[float]]] = {image["id"]: [] for image in document["images"]}
    for annotation in document["annotations"]:
        found[annotation["image_id"]].append(annotation["bbox"])
        assert annotation["area"] == annotation["bbox"][2] * annotation["bbox"][3]
        assert 1 <= annotation["category_id"] <= 10
    return found


def test_scenes_hold_one_to_four_objects_inside_with_little_overlap(demo: Path) -> None:
    counts = set()
    for boxes in (*boxes_by_image(demo, "train").values(), *boxes_by_image(demo, "test").values()):
        counts.add(len(boxes))
        for number, (x, y, w, h) in enumerate(boxes):
            assert min(x, y) >= 0
            assert max(x + w, y + h) <= 160
            for x2, y2, w2, h2 in boxes[:number]:
                wide = max(0, min(x + w, x2 + w2) - max(x, x2))
                high = max(0, min(y + h, y2 + h2) - max(y, y2))
                assert wide * high <= 0.08 * min(w * h, w2 * h2)
    assert counts == {1, 2, 3, 4}


def test_every_class_occurs_in_the_test_scenes(demo: Path) -> None:
    document = json.loads((demo / "test.json").read_text())
    assert {a["category_id"] for a in document["annotations"]} == set(range(1, 11))


def test_training_and_test_share_no_photo_and_each_split_uses_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with np.load(SPRITES) as sprites:
        splits = {name: {s.tobytes() for s in sprites[f"{name}_images"]} for name in ("train", "test")}
        assert (len(splits["train"]), len(splits["test"])) == (2000, 500)
        assert not splits["train"] & splits["test"]
        # And the composer draws from its split alone: with other test photos the training scenes stay.
        changed = {name: sprites[name][::10] for name in sprites.files}
    np.savez(tmp_path / "few.npz", **changed)
    monkeypatch.setattr("prunedeploy.data.demo.SPRITES", tmp_path / "few.npz")
    first = pixels(write_demo(tmp_path / "first", DemoSettings(train_scenes=4, test_scenes=4)))
    changed["test_images"] = np.rot90(changed["test_images"], axes=(1, 2)).copy()
    np.savez(tmp_path / "changed.npz", **changed)
    monkeypatch.setattr("prunedeploy.data.demo.SPRITES", tmp_path / "changed.npz")
    second = pixels(write_demo(tmp_path / "second", DemoSettings(train_scenes=4, test_scenes=4)))
    for name, value in first.items():
        assert (second[name] == value) == name.startswith("train/"), name


# --- composition ---


@pytest.fixture(scope="module")
def cut_outs() -> tuple[list, np.ndarray]:
    with np.load(SPRITES) as sprites:
        return [cut_out(sprite) for sprite in sprites["test_images"]], sprites["test_labels"]


def test_boxes_are_tight_around_the_pixels_that_an_object_changed(cut_outs: tuple[list, np.ndarray]) -> None:
    settings = DemoSettings(max_objects=1)
    for seed in range(40):
        scene, boxes, classes = compose_scene(np.random.default_rng(seed), *cut_outs, settings)
        assert len(boxes) == len(classes) == 1
        # The same draws up to the background give the empty scene to compare with.
        empty = background(np.random.default_rng(seed), settings.size, cut_outs[0])
        changed = np.abs(scene / 255.0 - empty).max(-1) > 0.02
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        x_min, y_min, x_max, y_max = boxes[0]
        measured = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        assert columns[0] >= x_min
        assert rows[0] >= y_min
        assert columns[-1] < x_max
        assert rows[-1] < y_max
        # An object that happens to match the background at its rim may look up to a few pixels smaller.
        assert np.abs(measured - boxes[0]).max() <= 4
        longer = max(x_max - x_min, y_max - y_min)
        assert settings.object_size[0] - 4 <= longer <= settings.object_size[1]


def test_cut_outs_are_tight_without_holes_and_in_range(cut_outs: tuple[list, np.ndarray]) -> None:
    from scipy import ndimage

    for shade, alpha in cut_outs[0]:
        assert shade.shape == alpha.shape
        assert set(np.unique(alpha)) <= {0.0, 1.0}
        assert 0 <= shade.min() <= shade.max() <= 1
        for edge in (alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1]):
            assert edge.any()
        assert np.array_equal(ndimage.binary_fill_holes(alpha), alpha.astype(bool))


def test_classes_with_a_hue_keep_to_it_and_the_others_are_neutral() -> None:
    rng = np.random.default_rng(0)
    hues = sorted(CLASS_HUES.values())
    gaps = [b - a for a, b in zip(hues, [*hues[1:], hues[0] + 1], strict=True)]
    assert min(gaps) > 0.15, "hues must be told apart"
    for name in CLASS_NAMES:
        for _ in range(50):
            colour = tint(rng, name)
            assert 0 <= colour.min() <= colour.max() <= 1
            hue, saturation, _ = colorsys.rgb_to_hsv(*colour.tolist())
            if name in CLASS_HUES:
                distance = abs(hue - CLASS_HUES[name])
                assert min(distance, 1 - distance) < 0.05, name
                assert saturation > 0.35
            else:
                assert saturation < 0.35


# --- the folder ---


def test_a_folder_that_holds_the_same_set_is_left_alone(demo: Path) -> None:
    before = demo.stat().st_mtime_ns, (demo / "train.json").stat().st_ino
    counted: list[int] = []
    assert write_demo(demo, SMALL, counted.append) == demo
    assert (demo.stat().st_mtime_ns, (demo / "train.json").stat().st_ino) == before
    assert counted == []


@pytest.mark.usefixtures("few_photos")
def test_another_demo_set_is_replaced_as_a_whole(tmp_path: Path) -> None:
    folder = write_demo(tmp_path / "set", DemoSettings(train_scenes=3, test_scenes=2))
    counted: list[int] = []
    write_demo(folder, DemoSettings(train_scenes=1, test_scenes=2), counted.append)
    assert sorted(contents(folder)) == [
        "demo.json", "test.json", "test/00000.png", "test/00001.png", "train.json", "train/00000.png",
    ]  # fmt: skip
    assert counted == [1, 2, 3]
    assert [path.name for path in tmp_path.iterdir()] == ["set"], "no temporary folder is left"


@pytest.mark.parametrize(
    ("name", "content"),
    [("thesis.tex", "years of work"), ("demo.json", '{"my": "file"}'), ("demo.json", "[1]"), ("demo.json", "no json")],
)
def test_a_folder_with_something_else_is_refused_and_untouched(tmp_path: Path, name: str, content: str) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / name).write_text(content)
    with pytest.raises(DataError, match="something other than a demo set") as caught:
        write_demo(folder, SMALL)
    assert "\n" not in str(caught.value)
    assert (folder / name).read_text() == content


@pytest.mark.usefixtures("few_photos")
def test_a_demo_set_with_a_foreign_file_beside_it_is_not_replaced(tmp_path: Path) -> None:
    folder = write_demo(tmp_path / "set", DemoSettings(train_scenes=1, test_scenes=1))
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(DataError):
        write_demo(folder, DemoSettings(train_scenes=2, test_scenes=1))
    assert (folder / "notes.txt").read_text() == "mine"


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError):
        write_demo(tmp_path / "file", SMALL)


@pytest.mark.usefixtures("few_photos")
def test_an_interrupted_writing_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(done: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_demo(tmp_path / "set", SMALL, interrupt)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("few_photos")
def test_a_set_that_another_process_finished_meanwhile_is_kept(tmp_path: Path) -> None:
    settings = DemoSettings(train_scenes=1, test_scenes=1)

    def overtake(done: int) -> None:
        if done == 2:
            write_demo(tmp_path / "set", settings)
            (tmp_path / "set" / "in use").write_text("somebody reads here")

    write_demo(tmp_path / "set", settings, overtake)
    assert (tmp_path / "set" / "in use").is_file()


@pytest.mark.usefixtures("few_photos")
def test_the_working_directory_itself_may_become_the_demo_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert write_demo(".", DemoSettings(train_scenes=1, test_scenes=1)) == folder
    assert (folder / "demo.json").is_file()
