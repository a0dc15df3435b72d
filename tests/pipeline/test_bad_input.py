"""Whatever is wrong with the input: one line that says what, where and what to do; nothing lost, nothing half there."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file

from prunedeploy.cli import cli
from prunedeploy.config import load_config
from prunedeploy.models.darknet_cfg import read_cfg
from prunedeploy.pipeline.store.key import check_result
from prunedeploy_engines import load_bundle
from prunedeploy_engines.errors import (
    BundleError,
    ConfigError,
    DarknetFormatError,
    DataError,
    PruningError,
    StoreError,
)

Copy = Callable[[Path], Path]


def fails(tiny_case: Any, folder: Path, kind: type[Exception], *sets: str, stages: int = 0) -> str:
    """Run a build that must fail, check what holds for all of them, and return its line."""
    store, out = folder / "store", folder / "out"
    with pytest.raises(kind) as caught:
        tiny_case.build(store, out, *sets)
    line = str(caught.value)
    assert "\n" not in line
    assert caught.value.exit_code == 2  # type: ignore[attr-defined]
    assert ";" in line, "says what to do after what is wrong"
    assert list(out.iterdir()) == [], "the folder is free for the corrected command"
    results = [result for result in (store / "results").iterdir() if not result.name.startswith("check-images")]
    assert len(results) == stages, "found before anything was trained"
    for result in results:
        check_result(result, result.name.rpartition("-")[2])
    assert list((store / "work").iterdir()) == []
    return line


def evaluate_fails(*arguments: object) -> str:
    """Run ``prunedeploy evaluate`` that must fail with exit code 2 and return its line."""
    result = CliRunner().invoke(cli, ["evaluate", *map(str, arguments), "--bootstrap", "0"])
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    # Progress lines may come first; the error is the last line, and one line only.
    *before, line = result.stderr.strip().splitlines()
    assert line.startswith("prunedeploy: error: ")
    assert not [one for one in before if "error" in one.lower() or "Traceback" in one]
    assert "bug" not in line
    return line


# Weights and cfg


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda content: content[:-4], "4 missing"),
        (lambda content: content[: len(content) // 2], "has 78,818 bytes"),
        (lambda content: content[:7], "7 bytes"),
        (lambda content: b"", "0 bytes"),
        (lambda content: content + b"\0" * 4, "4 left over"),
        (lambda content: content + content, "left over"),
        (lambda content: content[:-4] + struct.pack("<f", float("nan")), "not a finite number"),
    ],
    ids=["last value gone", "half", "half a header", "empty", "one value more", "twice", "NaN"],
)
def test_weights_that_are_not_as_long_as_the_cfg_says(
    tiny_case: Any, tmp_path: Path, change: Callable[[bytes], bytes], says: str
) -> None:
    weights = tmp_path / "bad.weights"
    weights.write_bytes(change(tiny_case.weights.read_bytes()))
    line = fails(tiny_case, tmp_path, DarknetFormatError, f"model.weights={weights}")
    assert str(weights) in line
    assert says in line
    evaluated = evaluate_fails(tiny_case.cfg, "--weights", weights, "--data", tiny_case.data)
    assert str(weights) in evaluated
    assert says in evaluated


def test_weights_of_another_cfg(tiny_case: Any, tmp_path: Path) -> None:
    line = fails(tiny_case, tmp_path, DarknetFormatError, "model.weights=demo")
    assert "demo-clean.weights" in line
    assert "tiny.cfg" in line


def test_missing_weights_and_missing_cfg(tiny_case: Any, tmp_path: Path) -> None:
    weights, cfg = tmp_path / "gone.weights", tmp_path / "gone.cfg"
    assert str(weights) in fails(tiny_case, tmp_path, DarknetFormatError, f"model.weights={weights}")
    assert str(cfg) in fails(tiny_case, tmp_path, DarknetFormatError, f"model.cfg={cfg}")


def test_shipped_network_that_does_not_exist(tiny_case: Any, tmp_path: Path) -> None:
    assert "yolov3-tiny" in fails(tiny_case, tmp_path, ConfigError, "model.cfg=yolov3-tyni")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("[upsample]\nstride=2", "[fold]\nstride=2", "[fold]"),
        ("layers=-1,3", "layers=-1,99", "99"),
        ("layers=-1,3", "layers=-100", "-100"),
        ("from=-2", "from=-20", "-20"),
        ("stride=2\npad=1", "stride=2\npadd=1", "padd"),
        ("filters=30", "filters=31", "31"),
        ("mask=0,1", "mask=0,9", "mask"),
        ("activation=leaky", "activation=gelu", "gelu"),
        ("filters=16", "filters=many", "many"),
    ],
)
def test_cfg_with_a_mistake_names_file_and_line(tiny_case: Any, tmp_path: Path, old: str, new: str, says: str) -> None:
    cfg = tmp_path / "bad.cfg"
    text = tiny_case.cfg.read_text()
    assert old in text
    cfg.write_text(text.replace(old, new, 1))
    line = fails(tiny_case, tmp_path, DarknetFormatError, f"model.cfg={cfg}")
    assert f"{cfg}:" in line
    assert says in line
    number = int(line.split(f"{cfg}:")[1].split(":")[0])
    before, after = text.splitlines(), cfg.read_text().splitlines()
    changed = next(n for n, (a, b) in enumerate(zip(before, after, strict=True), 1) if a != b)
    first_section = max(n for n, row in enumerate(before[:changed], 1) if row.startswith("["))
    # Of a wrong option its own line, or that of a section which it makes impossible.
    assert number >= first_section
    assert says in evaluate_fails(cfg, "--weights", tiny_case.weights, "--data", tiny_case.data)


# Data


def test_missing_data_folder(tiny_case: Any, tmp_path: Path) -> None:
    line = fails(tiny_case, tmp_path, DataError, f"data.path={tmp_path / 'gone'}")
    assert str(tmp_path / "gone") in line
    assert str(tmp_path / "gone") in evaluate_fails(
        tiny_case.cfg, "--weights", tiny_case.weights, "--data", tmp_path / "gone"
    )


@pytest.fixture
def spoil(tiny_case: Any, copied: Copy) -> Callable[[Callable[[dict[str, Any]], object], str], Path]:
    """Copy the data, change a JSON of it, and return the folder."""

    def change(how: Callable[[dict[str, Any]], object], split: str = "test") -> Path:
        data = copied(tiny_case.data)
        document = json.loads((data / f"{split}.json").read_text())
        how(document)
        (data / f"{split}.json").write_text(json.dumps(document))
        return data

    return change


def set_box(bbox: list[float]) -> Callable[[dict[str, Any]], object]:
    return lambda document: document["annotations"][3].update(bbox=bbox)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(
    "how",
    [lambda document: document["images"].clear(), lambda document: document.pop("images")],
    ids=["no images", "no list"],
)
def test_split_that_cannot_be_used(
    tiny_case: Any, tmp_path: Path, spoil: Any, split: str, how: Callable[[dict[str, Any]], object]
) -> None:
    data = spoil(how, split)
    line = fails(tiny_case, tmp_path, DataError, f"data.path={data}")
    assert str(data / f"{split}.json") in line
    assert "images" in line


@pytest.mark.parametrize(
    ("how", "says"),
    [
        (set_box([500.0, 20.0, 30.0, 30.0]), "outside"),
        (set_box([10.0, 20.0, 0.0, 30.0]), "zero area"),
        (set_box([10.0, 20.0, float("nan"), 30.0]), "NaN"),
        (set_box([10.0, 20.0, -5.0, 30.0]), "negative"),
        (lambda document: document["annotations"][0].update(category_id=77), "77"),
        (lambda document: document["annotations"][0].update(image_id=4711), "4711"),
    ],
    ids=["outside", "zero area", "NaN", "negative", "category", "image"],
)
def test_annotations_of_the_test_split_that_cannot_be_used(
    tiny_case: Any, tmp_path: Path, spoil: Any, how: Callable[[dict[str, Any]], object], says: str
) -> None:
    """In the training split they are left out and counted: tests/data/test_dirty_records.py."""
    data = spoil(how, "test")
    line = fails(tiny_case, tmp_path, DataError, f"data.path={data}")
    assert str(data / "test.json") in line
    assert says in line
    names = tmp_path / "names.txt"
    document = json.loads((tiny_case.data / "test.json").read_text())
    names.write_text("\n".join(category["name"] for category in document["categories"]))
    options = ("--weights", tiny_case.weights, "--names", names, "--data", data)
    assert says in evaluate_fails(tiny_case.cfg, *options)


def test_json_that_is_not_json(tiny_case: Any, tmp_path: Path, copied: Copy) -> None:
    data = copied(tiny_case.data)
    content = (data / "train.json").read_bytes()
    (data / "train.json").write_bytes(content[: len(content) // 2])
    assert str(data / "train.json") in fails(tiny_case, tmp_path, DataError, f"data.path={data}")


def test_category_that_the_network_does_not_have(tiny_case: Any, tmp_path: Path, spoil: Any) -> None:
    """As many classes, one of another name: only names can tell."""
    data = spoil(lambda document: document["categories"][4].update(name="zebra"))
    line = fails(tiny_case, tmp_path, DataError, f"data.path={data}")
    assert "zebra" in line
    assert str(data / "test.json") in line


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds one row of nothing."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\0"))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"PLTE", b"\0" * 3) + pixels + chunk(b"IEND", b"")


def half_a_jpeg() -> bytes:
    """160 x 160 pixels with a good header, of which the lower half is missing."""
    noise = np.random.default_rng(0).integers(0, 256, (160, 160, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "JPEG")
    return file.getvalue()[: len(file.getvalue()) // 2]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"GIF89a? no.", "not an image"),
        (b"", "not an image"),
        (png_header(20_000, 10_000), "limit of 50 megapixels"),
        (png_header(4_000_000, 1_000_000), "limit of 50 megapixels"),
        (png_header(160, 160), "damaged"),
        (half_a_jpeg(), "damaged"),
    ],
    ids=["text", "empty", "200 megapixels", "bomb", "no pixels", "half"],
)
def test_test_image_that_is_no_usable_image(
    tiny_case: Any, tmp_path: Path, copied: Copy, content: bytes, says: str
) -> None:
    """Found before hours of training."""
    data = copied(tiny_case.data)
    (data / "test" / "00001.png").write_bytes(content)
    line = fails(tiny_case, tmp_path, DataError, f"data.path={data}")
    assert str(data / "test" / "00001.png") in line
    assert says in line
    evaluated = evaluate_fails(tiny_case.cfg, "--weights", tiny_case.weights, "--data", data)
    assert str(data / "test" / "00001.png") in evaluated


def test_image_of_another_size_than_the_json_says(tiny_case: Any, tmp_path: Path, copied: Copy) -> None:
    data = copied(tiny_case.data)
    Image.fromarray(np.zeros((80, 160, 3), np.uint8)).save(data / "test" / "00001.png")
    line = fails(tiny_case, tmp_path, DataError, f"data.path={data}")
    assert str(data / "test" / "00001.png") in line
    assert "160 x 80" in line


@pytest.mark.parametrize(("pretraining", "stages"), [(2, 1), (0, 3)])
def test_training_without_a_single_usable_image(
    tiny_case: Any, tmp_path: Path, copied: Copy, pretraining: int, stages: int
) -> None:
    """The first training refuses before it starts, be it that of the scores."""
    data = copied(tiny_case.data)
    shutil.rmtree(data / "train")
    sets = (f"data.path={data}", f"pretrain.steps={pretraining}")
    line = fails(tiny_case, tmp_path, DataError, *sets, stages=stages)
    assert "not one of the 16 images" in line
    assert str(data / "train.json") in line


def test_data_without_a_training_split(tiny_case: Any, tmp_path: Path, copied: Copy) -> None:
    """Nor is the test split divided for one: ``evaluate`` would measure on what was trained on."""
    data = copied(tiny_case.data)
    shutil.rmtree(data / "train")
    (data / "train.json").unlink()
    line = fails(tiny_case, tmp_path, DataError, f"data.path={data}")
    assert line == f"{data}: has images for test and none for training; add the training split"
    untrained = (f"{block}.steps=0" for block in ("pretrain", "score_optimization", "finetune"))
    sets = (f"data.path={data}", "data.train_images=4", *untrained)
    # Where nothing is trained it may be.
    assert tiny_case.build(tmp_path / "store", tmp_path / "untrained", *sets).computed


@pytest.mark.parametrize("trained", ["pretrain", "score_optimization", "finetune", None])
def test_training_images_without_boxes(tiny_case: Any, tmp_path: Path, spoil: Any, trained: str | None) -> None:
    data = spoil(lambda document: document["annotations"].clear(), "train")
    blocks = ("pretrain", "score_optimization", "finetune")
    sets = (f"data.path={data}", *(f"{block}.steps={int(block == trained)}" for block in blocks))
    if trained is None:  # measuring a network needs no training boxes
        assert tiny_case.build(tmp_path / "store", tmp_path / "out", *sets).computed
        return
    line = fails(tiny_case, tmp_path, DataError, *sets)
    said = "not one of the 16 training images has a box to learn from; add their annotations"
    assert line == f"{data / 'train.json'}: {said}"


# Files that scores read


def score_file(path: Path, cfg: Path, change: int = 0) -> Path:
    """Scores of a network; with ``change`` the first layer has so many filters more."""
    shapes = {layer.index: layer.weight_shape for layer in read_cfg(cfg).convolutions}
    first = shapes[0]
    shapes[0] = (first[0] + change, *first[1:])
    save_file({str(index): torch.ones(shape) for index, shape in shapes.items()}, path)
    return path


def test_file_of_scores_that_cannot_be_used_is_told_before_anything_is_trained(tiny_case: Any, tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    sets = ("scores.name=file", f"scores.file={path}")
    assert f"{path}: cannot be read" in fails(tiny_case, tmp_path, PruningError, *sets)
    score_file(path, tiny_case.cfg, change=1)
    line = fails(tiny_case, tmp_path, PruningError, *sets)
    assert line == (
        f"{path}: has scores (17, 3, 3, 3) for layer 0, the network's weights are (16, 3, 3, 3); "
        "give scores of this network"
    )
    path.write_bytes(score_file(path, tiny_case.cfg).read_bytes()[:-1])
    assert "is not a safetensors file that can be read" in fails(tiny_case, tmp_path, PruningError, *sets)


def test_reference_image_that_cannot_be_used_is_told_before_anything_is_trained(tiny_case: Any, tmp_path: Path) -> None:
    wide = tmp_path / "wide.png"
    Image.new("RGB", (80, 64)).save(wide)
    line = fails(tiny_case, tmp_path, DataError, "scores.name=deeplift", f"scores.reference={wide}")
    assert "the reference image is 80 x 64" in line


@pytest.mark.parametrize(
    ("change", "layer"),
    [
        (("activation=leaky", "activation=mish"), "layer 0 [convolutional] has the activation mish, of which"),
        (("activation=linear\n\n[conv", "activation=swish\n\n[conv"), "layer 3 [shortcut] has the activation swish"),
        (
            ("[shortcut]", "[maxpool]\nsize=3\nstride=1\n\n[shortcut]"),
            "layer 3 [maxpool] has windows that overlap (size 3, stride 1), in which",
        ),
    ],
    ids=["mish", "shortcut", "maxpool"],
)
def test_network_that_captum_is_wrong_on_is_told_before_anything_is_trained(
    tiny_case: Any, tmp_path: Path, change: tuple[str, str], layer: str
) -> None:
    cfg = tmp_path / "changed.cfg"
    cfg.write_text(tiny_case.cfg.read_text().replace(*change, 1))
    line = fails(tiny_case, tmp_path, PruningError, f"model.cfg={cfg}", "scores.name=deeplift", "scores.backend=captum")
    assert line.startswith(f"{cfg}:")
    assert layer in line
    assert "; use scores.backend=own" in line


@pytest.mark.parametrize("backend", ["own", "captum"])
def test_shared_weights_that_deeplift_lacks_a_rule_for_are_told_before_anything_is_trained(
    tiny_case: Any, tmp_path: Path, backend: str
) -> None:
    shared = "[convolutional]\nshare_index=-1\nbatch_normalize=1\nfilters=32\nsize=3\npad=1\nactivation=leaky\n\n"
    cfg = tmp_path / "shared.cfg"
    cfg.write_text(
        tiny_case.cfg.read_text()
        .replace("[shortcut]\nfrom=-2", f"{shared}[shortcut]\nfrom=-2")
        .replace("=-1,3", "=-1,4")
    )
    line = fails(
        tiny_case, tmp_path, PruningError, f"model.cfg={cfg}", "scores.name=deeplift", f"scores.backend={backend}"
    )
    assert (
        line
        == "layer 3: DeepLIFT has no rule for weights that are those of layer 2 as well; use another score for "
        + ("this network")
    )


# Configuration


@pytest.mark.parametrize("ratio", ["1", "1.0", "-0.1", "75", "nan", ".inf", "abc"])
def test_ratio_outside_its_range(ratio: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("smoke", [], {"ratio": yaml_value(ratio)})
    assert "ratio" in str(caught.value)
    assert "\n" not in str(caught.value)


def yaml_value(text: str) -> object:
    return float(text.replace(".inf", "inf")) if text != "abc" else text


@pytest.mark.parametrize("method", ["structured", "unstructured"])
def test_ratio_that_cannot_be_reached_says_what_can(tiny_case: Any, tmp_path: Path, method: str) -> None:
    line = fails(tiny_case, tmp_path, PruningError, "ratio=0.9999", f"method={method}", "channels.minimum=8")
    assert "0.9999" in line
    assert "highest" in line
    assert str(tiny_case.cfg) in line


def test_ratio_is_refused_before_a_network_is_trained_from_scratch(tiny_case: Any, tmp_path: Path) -> None:
    sets = ("pretrain.from=scratch", "pretrain.clean_steps=2", "ratio=0.9999")
    fails(tiny_case, tmp_path, PruningError, *sets)


def test_unknown_key_is_answered_with_the_nearest_known_one() -> None:
    with pytest.raises(ConfigError, match=r"did you mean finetune\.steps") as caught:
        load_config("smoke", ["finetune.stpes=3"])
    assert "--set finetune.stpes=3" in str(caught.value)


# Folders


def test_output_folder_of_another_build_keeps_what_it_holds(tiny_case: Any, finished: Any, copied: Copy) -> None:
    store, done, _ = finished
    out = copied(done)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(StoreError, match="another configuration") as caught:
        tiny_case.build(store, out, "ratio=0.5")
    assert str(out) in str(caught.value)
    assert "--overwrite" in str(caught.value)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_overwrite_replaces_another_build(tiny_case: Any, finished: Any, copied: Copy) -> None:
    out = copied(finished[1])
    outcome = tiny_case.build(finished[0], out, "ratio=0.5", overwrite=True)
    assert outcome.results["ratio_requested"] == 0.5
    assert json.loads((out / "results.json").read_text())["ratio_requested"] == 0.5


def test_output_folder_with_somebody_elses_files_is_left_alone(tiny_case: Any, finished: Any, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(StoreError, match=r"thesis\.tex"):
            tiny_case.build(finished[0], tmp_path / "out", overwrite=overwrite)
    assert os.listdir(tmp_path / "out") == ["thesis.tex"]


def test_store_that_is_no_store_is_left_alone(tiny_case: Any, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "thesis.tex").write_text("years of work")
    with pytest.raises(StoreError, match=r"thesis\.tex"):
        tiny_case.build(tmp_path / "store", tmp_path / "out")
    assert os.listdir(tmp_path / "store") == ["thesis.tex"]


# Full disks


@pytest.mark.parametrize("limit", [3_000, 120_000, 160_000])
def test_file_that_no_longer_fits(processes: Any, tiny_case: Any, finished: Any, tmp_path: Path, limit: int) -> None:
    """The kernel refuses to write beyond a size, at another stage with each limit; then it does not any more."""
    store, out = tmp_path / "store", tmp_path / "out"
    line = processes.run(store, out, tiny_case.arguments(), file_limit=limit)["error"]
    assert "\n" not in line
    assert ";" in line
    assert str(tmp_path) in line
    assert_only_whole(store, out)
    assert "error" not in processes.run(store, out, tiny_case.arguments())
    assert (out / "model.weights").read_bytes() == (finished[1] / "model.weights").read_bytes()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mount a file system of so many KiB."""
    mounted: list[Path] = []

    def mount(kib: int) -> Path:
        folder = tmp_path / f"disk-{kib}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("mounting a small file system needs to be root; the size limit above is tested anyway")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        # Lazily: the error that was caught may hold a file open a little longer.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("kib", [100, 900])
def test_store_on_a_full_disk(
    tiny_case: Any, finished: Any, tmp_path: Path, small_disk: Callable[[int], Path], kib: int
) -> None:
    disk = small_disk(kib)
    with pytest.raises(StoreError) as caught:
        tiny_case.build(disk / "store", tmp_path / "out")
    assert "no space" in str(caught.value).lower()
    assert str(disk) in str(caught.value)
    assert_only_whole(disk / "store", tmp_path / "out")
    # More room, and the same command: what was finished is used.
    done = len(list((disk / "store" / "results").iterdir()))
    subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
    outcome = tiny_case.build(disk / "store", tmp_path / "out")
    assert len(outcome.computed) == len(finished[2].computed) - done
    assert (tmp_path / "out" / "model.weights").read_bytes() == (finished[1] / "model.weights").read_bytes()


@pytest.mark.parametrize("kib", [30, 300])
def test_output_folder_on_a_full_disk(
    tiny_case: Any, finished: Any, small_disk: Callable[[int], Path], kib: int
) -> None:
    disk = small_disk(kib)
    with pytest.raises((StoreError, BundleError)) as caught:
        tiny_case.build(finished[0], disk / "out")
    assert "no space" in str(caught.value).lower()
    assert str(disk) in str(caught.value)
    assert not (disk / "out" / "results.json").exists()
    assert_only_whole(finished[0], disk / "out")
    subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
    assert tiny_case.build(finished[0], disk / "out").computed == ()
    load_bundle(disk / "out" / "bundle")


def assert_only_whole(store: Path, out: Path) -> None:
    for result in (store / "results").iterdir() if (store / "results").is_dir() else ():
        check_result(result, result.name.rpartition("-")[2])
    assert not list((store / "work").iterdir()) if (store / "work").is_dir() else True
    assert not list(out.rglob("*.tmp"))
    assert not (out / "results.json").exists()
    if (out / "bundle").exists():
        load_bundle(out / "bundle")
    for name in ("build.json", "bundle/bundle.json"):
        if (out / name).exists():
            json.loads((out / name).read_text())


# Bundles


@pytest.mark.parametrize("name", ["model.onnx", "bundle.json"])
def test_bundle_with_one_byte_changed_is_refused(finished: Any, copied: Copy, name: str) -> None:
    out = copied(finished[1])
    path = out / "bundle" / name
    content = bytearray(path.read_bytes())
    at = content.index(b'"sha256": "') + 11 if name == "bundle.json" else len(content) // 2
    content[at] = ord("0") if content[at] != ord("0") else ord("1")
    path.write_bytes(content)
    with pytest.raises(BundleError) as caught:
        load_bundle(out / "bundle")
    line = str(caught.value)
    assert str(out / "bundle") in line
    assert "model.onnx" in line
    assert "\n" not in line
    assert str(out / "bundle") in evaluate_fails(out / "bundle")
