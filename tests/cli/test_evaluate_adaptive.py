"""``evaluate --adaptive``: what it says, and what it refuses."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from export.networks import folded
from export.precisions import true_ranges
from prunedeploy.models import load_darknet
from prunedeploy_engines.bundle import BundleFile, write_bundle
from prunedeploy_engines.runtimes.onnx_file import NmsInGraph
from prunedeploy_export import fp16_from_fp32, onnx_from_torch, with_nms, with_uint8_input
from prunedeploy_export.graph.edit import read_model, set_metadata, write_model
from prunedeploy_export.precision.quantisation import plan_quantisation, quantise
from tiny_detector import CLASS_NAMES, save_tiny_detector


@pytest.fixture
def files(darknet: Path) -> Path:
    """The tiny network's ``fp32``, ``fp16``, ``int8`` and ``device.onnx`` beside it."""
    folder = darknet.parent
    fp32, images = folder / "fp32.onnx", np.random.default_rng(0).random((4, 3, 32, 32), dtype=np.float32)
    onnx_from_torch(folded(load_darknet(darknet, darknet.with_suffix(".weights"))), fp32, class_names=CLASS_NAMES)
    fp16_from_fp32(fp32, folder / "fp16.onnx")
    source = onnx.load(fp32)
    plan = plan_quantisation(source, "uint8")
    int8 = quantise(source, plan, true_ranges(source, plan.tensors, images))
    set_metadata(int8, precision="int8")
    write_model(int8, folder / "int8.onnx")
    device = with_nms(with_uint8_input(read_model(folder / "int8.onnx")), NmsInGraph(0.001, 0.45, 50))
    write_model(device, folder / "device.onnx")
    return folder


@pytest.mark.parametrize("name", ["int8", "fp16", "device"])
def test_figures_stand_beside_transfer(run: Any, files: Path, darknet: Path, coco: Path, name: str) -> None:
    common = ("evaluate", files / f"{name}.onnx", "--parent-cfg", darknet, "--data", coco, "--bootstrap", "20")
    done = run(
        *common,
        "--attack",
        "pgd,apgd:box",
        "--budget",
        "quick",
        "--adaptive",
        "--runtime",
        "torch,onnxruntime",
        "--json",
    )
    assert done.exit_code == 0, done.stderr
    torch_row, row = json.loads(done.stdout)["results"]
    assert not [key for key in torch_row if "adaptive" in key]
    for kind in ("map_pgd", "map50_pgd", "map_pgd_conf50", "map_apgd_box"):
        assert {f"{kind}_transfer", f"{kind}_adaptive"} <= set(row)
        assert {f"{kind}_transfer", f"{kind}_adaptive"} <= set(row["intervals"])
    maps = {key.removeprefix("map_"): row[key] for key in row if key.startswith("map_") and "clean" not in key}
    maps = {attack: value for attack, value in maps.items() if "conf50" not in attack}
    assert row["lowest"]["map"] == min(maps.values()) == maps[row["lowest"]["attack"]]
    assert row["lowest"]["interval"] == row["intervals"][f"map_{row['lowest']['attack']}"]
    assert row["adaptive"]["twin"]["tensors"]["images"] == 8  # four of the data, and a point of each one's ball
    assert (row["adaptive"]["twin"]["tensors"]["values"] > 0) == (name != "fp16")

    said = run(*common, "--attack", "pgd", "--adaptive", "--csv", files / "csv")
    assert said.exit_code == 0, said.stderr
    assert sorted(path.name for path in (files / "csv").iterdir()) == [
        f"onnxruntime-{kind}.csv" for kind in ("clean", "pgd-adaptive", "pgd")
    ]
    lines = [line for line in said.stdout.splitlines() if line.startswith("onnxruntime ")]
    assert [line.split()[1:3] for line in lines[1:3]] == [["PGD", "(transfer)"], ["PGD", "(adaptive)"]]
    assert "adaptive: made with a twin of the engine's file" in said.stdout
    (lowest,) = [line for line in said.stdout.splitlines() if line.startswith("lowest on ")]
    assert re.fullmatch(r"lowest on onnxruntime: \d\.\d{3}, by PGD \((transfer|adaptive)\)", lowest)


def test_ensemble_and_cw_are_of_the_twin_too(run: Any, files: Path, darknet: Path, coco: Path) -> None:
    done = run(
        "evaluate", files / "int8.onnx", "--parent-cfg", darknet, "--data", coco, "--limit", "2", "--bootstrap", "5",
        "--attack", "ensemble,cw", "--budget", "quick", "--adaptive", "--error-kinds", "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    row = document["results"][0]
    assert "map_ensemble_adaptive" in row
    assert len(row["adaptive"]["ensembles"]["ensemble"]["map"]) == 6
    assert set(row["adaptive"]["effects"]) == {"ensemble"}
    assert row["adaptive"]["distortion"]["name"] == document["distortion"]["name"] == "cw"


def test_precision_of_a_bundle_is_attacked(run: Any, files: Path, darknet: Path, coco: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "both"
    kinds = {"model.onnx": ("fp32.onnx", "fp32", None), "model.int8.onnx": ("int8.onnx", "int8", "cpu")}
    write_bundle(
        bundle,
        {
            name: BundleFile(files / file, "onnx", precision, target)
            for name, (file, precision, target) in kinds.items()
        },
        class_names=CLASS_NAMES,
        input={"height": 32, "width": 32},
    )
    common = ("evaluate", bundle, "--parent-cfg", darknet, "--data", coco, "--attack", "fgsm", "--adaptive", "--json")
    done = run(*common, "--precision", "int8")
    assert done.exit_code == 0, done.stderr
    assert "map_fgsm_adaptive" in json.loads(done.stdout)["results"][0]
    refused = run(*common)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "model.onnx: is fp32: an attack on its twin is the attack on its parent" in refused.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("model", "more", "said"),
    [
        ("int8", (), "--adaptive has no effect without --attack"),
        ("int8", ("--attack", "pgd", "--runtime", "torch"), "--adaptive is for engines"),
        ("int8", ("--attack", "pgd", "--check"), "--check is of the network in PyTorch: leave it or --adaptive out"),
        ("int8", ("--attack", "pgd", "--curve"), "--curve is of the network in PyTorch"),
        ("fp32", ("--attack", "pgd"), "fp32.onnx: is fp32: an attack on its twin is the attack on its parent"),
        ("foreign", ("--attack", "pgd"), "foreign.onnx: has no detection heads that prunedeploy knows"),
        ("other", ("--attack", "pgd"), "other.onnx: node 'layer0' is a ThresholdedRelu, which has no twin in PyTorch"),
    ],
)
def test_wrong_input_is_one_line(
    run: Any, files: Path, darknet: Path, coco: Path, model: str, more: Any, said: str
) -> None:
    save_tiny_detector(files / "foreign.onnx", 32, 32)
    other = onnx.load(files / "fp16.onnx")
    activation = next(node for node in other.graph.node if node.name == "layer0")
    activation.op_type = "ThresholdedRelu"
    onnx.save(other, files / "other.onnx")
    done = run("evaluate", files / f"{model}.onnx", "--parent-cfg", darknet, "--data", coco, "--adaptive", *more)
    assert (done.exit_code, done.stdout) == (2, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_engine_without_its_parent_is_one_line(run: Any, files: Path, coco: Path, tmp_path: Path) -> None:
    """The parent's cfg says what the heads mean."""
    alone = shutil.copy(files / "int8.onnx", tmp_path / "alone.onnx")
    done = run("evaluate", alone, "--data", coco, "--attack", "pgd", "--adaptive")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "--parent-cfg" in done.stderr
    assert done.stderr.count("\n") == 1
