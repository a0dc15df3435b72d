"""``prunedeploy inspect`` on a cfg, a bundle, an ONNX file, and on what is none of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from detector_variants import save_conv_detector
from prunedeploy_engines.bundle import BundleFile, write_bundle
from tiny_detector import CLASS_NAMES


def test_a_cfg_as_table_and_as_json(run: Any, darknet: Path) -> None:
    shown = run("inspect", darknet)
    assert shown.exit_code == 0, shown.stderr
    assert "colour images letterboxed to 32 x 32 (width x height); 3 classes" in shown.stdout
    (first,) = (line for line in shown.stdout.splitlines() if line.startswith("0 "))
    assert first.split() == ["0", "convolutional", "image", "8x16x16", "216", "55.3", "k", "yes"]
    assert "not to be pruned: layer 2: reaches the yolo section at layer 3" in shown.stdout
    document = json.loads(run("inspect", darknet, "--json").stdout)
    assert (document["kind"], document["path"]) == ("cfg", str(darknet))
    assert document["totals"]["weights_file_bytes"] == darknet.with_suffix(".weights").stat().st_size


def test_the_genuine_cfg_names_what_is_ignored(run: Any, shared: Path) -> None:
    shown = run("inspect", shared / "real" / "yolov3-tiny" / "yolov3-tiny.cfg")
    assert "8,858,734 values, 35,434,956 bytes" in shown.stdout
    ignored = [line for line in shown.stdout.splitlines() if line.startswith("ignored in ")]
    assert ["[net]" in ignored[0], "[yolo]" in ignored[1]] == [True, True]
    assert ignored[1].endswith(": jitter, truth_thresh, random")


def test_a_bundle_as_table_and_as_json(run: Any, bundle: Path) -> None:
    shown = run("inspect", bundle)
    assert shown.exit_code == 0, shown.stderr
    assert "3 classes: red, green, blue" in shown.stdout
    assert "score threshold 0.9, IoU threshold of suppression 0.45" in shown.stdout
    assert "results.json" in shown.stdout  # where the gates of a bundle that was taken away stand
    document = json.loads(run("inspect", bundle / "bundle.json", "--json").stdout)
    assert (
        document["files"][0]["sha256"]
        == json.loads((bundle / "bundle.json").read_text())["files"]["model.onnx"]["sha256"]
    )
    assert (document["networks"][0]["macs"], document["widths"]) == (1_000_000, [])


@pytest.mark.parametrize(
    ("filters_after", "bar"),
    [(4, "##########.........."), (8, "#####...............")],  # half of the filters; a quarter of the weights
)
def test_widths_before_and_after_are_drawn(run: Any, tmp_path: Path, filters_after: int, bar: str) -> None:
    row = {"layer": 7, "filters_before": 8, "filters_after": filters_after, "weights_before": 400}
    pruning = {
        "method": "structured",
        "ratio_requested": 0.75,
        "ratio_achieved": 0.75,
        "layers": [{**row, "weights_after": 100, "counted": False}],
    }
    write_bundle(
        tmp_path / "bundle",
        {"model.onnx": BundleFile(save_conv_detector(tmp_path / "model.onnx"), "onnx", "fp32")},
        class_names=CLASS_NAMES,
        input={"height": 32, "width": 48},
        pruning=pruning,
    )
    shown = run("inspect", tmp_path / "bundle").stdout
    assert "structured pruning, ratio 0.750: widths before and after" in shown
    last = shown.splitlines()[-1].split()
    assert last == ["7", "8", "->", str(filters_after), "400", "->", "100", "25.0", "%", bar, "not", "counted"]


@pytest.mark.parametrize(("left", "says"), [(5, "of these 8 filters, zeros made 3 useless"), (8, None)])
def test_filters_that_zeros_made_useless_are_counted_below_the_widths(
    run: Any, tmp_path: Path, left: int, says: str | None
) -> None:
    row = {"layer": 7, "filters_before": 8, "filters_after": 8, "weights_before": 400, "weights_after": 100}
    write_bundle(
        tmp_path / "bundle",
        {"model.onnx": BundleFile(save_conv_detector(tmp_path / "model.onnx"), "onnx", "fp32")},
        class_names=CLASS_NAMES,
        input={"height": 32, "width": 48},
        pruning={
            "method": "unstructured",
            "ratio_requested": 0.75,
            "ratio_achieved": 0.75,
            "layers": [{**row, "counted": True}],
        },
        metrics={"filters": left},
    )
    shown = run("inspect", tmp_path / "bundle")
    assert shown.exit_code == 0, shown.stderr
    last = shown.stdout.splitlines()[-1]
    assert last.startswith("7 " if says is None else says)


def test_a_bundle_needs_neither_torch_nor_onnx(run_process: Any, bundle: Path) -> None:
    done = run_process("inspect", bundle, "--json", blocked=("torch", "onnx", "onnxruntime"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["kind"] == "bundle"
    refused = run_process("inspect", bundle / "model.onnx", blocked=("onnx",))
    assert refused.returncode == 2
    assert "pip install 'prunedeploy[train]'" in refused.stderr


def test_an_onnx_file_as_table_and_as_json(run: Any, tmp_path: Path) -> None:
    path = save_conv_detector(tmp_path / "model.onnx", "int8")
    shown = run("inspect", path)
    assert shown.exit_code == 0, shown.stderr
    lines = shown.stdout.splitlines()
    assert ", int8, operator set ai.onnx 17" in lines[0]
    assert ["Conv", "2"] in [line.split() for line in lines]
    assert ["input", "images", "float", "N", "x", "3", "x", "32", "x", "48"] in [line.split() for line in lines]
    document = json.loads(run("inspect", path, "--json").stdout)
    assert (document["precision"], document["operators"]["Conv"]) == ("int8", 2)
    assert document["outputs"][0] == {"name": "boxes", "type": "float", "shape": ["N", 24, 4]}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("absent", None, "there is no such model"),
        ("absent.cfg", None, "cannot be read"),
        ("notes.txt", b"hello", "is not a model that prunedeploy knows"),
        ("some.weights", b"\0" * 100, "give the .cfg file"),
        ("some.cfg", b"hello", "some.cfg:1"),
        ("some.onnx", b"hello", "is not an ONNX file"),
        ("empty.onnx", b"", "is not an ONNX file"),
        ("folder", "folder", "neither a bundle nor a build's output folder"),
    ],
)
def test_what_is_none_of_them_is_one_line(
    run: Any, tmp_path: Path, name: str, content: bytes | str | None, said: str
) -> None:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        path.mkdir()
    for flags in ((), ("--json",)):
        done = run("inspect", path, *flags)
        assert (done.exit_code, done.stdout) == (2, "")
        assert said in done.stderr
        assert done.stderr.count("\n") == 1


def test_a_truncated_onnx_file_is_one_line(run: Any, tmp_path: Path) -> None:
    whole = save_conv_detector(tmp_path / "whole.onnx").read_bytes()
    (tmp_path / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    done = run("inspect", tmp_path / "cut.onnx")
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (2, "", 1)
