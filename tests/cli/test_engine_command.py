"""`engine` with every option, on a machine without a GPU: real engines of TensorRT-RTX."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from engine_networks import CLASS_NAMES, SIZE, variant, write_precisions
from prunedeploy_engines import load_bundle
from prunedeploy_engines.bundle import BundleFile, write_bundle

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="needs tensorrt-rtx, which builds without a GPU"
)
NOT_ON_THE_DEVICE = ("torch", "onnx", "onnxruntime", "captum", "pycocotools", "scipy", "safetensors")
TARGETS = {"int8": "gpu", "int8 cpu": "cpu"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: Any) -> dict[str, Path]:
    return write_precisions(tmp_path_factory.mktemp("files"))


def bundle_of(folder: Path, files: dict[str, Path], *kinds: str) -> Path:
    write_bundle(
        folder,
        {files[kind].name: BundleFile(files[kind], "onnx", kind[:4], TARGETS.get(kind)) for kind in kinds},
        class_names=CLASS_NAMES,
        input={"height": SIZE, "width": SIZE},
    )
    return folder


@needs_rtx
def test_every_precision_of_a_bundle_becomes_an_engine_with_the_base_install(
    run_process: Any, tmp_path: Path, files: dict[str, Path]
) -> None:
    bundle = bundle_of(tmp_path / "bundle", files, *files)
    done = run_process(
        "engine", bundle, "--target", "sm86,sm120", "--precision", "fp32,fp16,int8", "--json", blocked=NOT_ON_THE_DEVICE
    )
    assert done.returncode == 0, done.stderr
    engines = json.loads(done.stdout)
    assert [(engine["precision"], engine["target"]) for engine in engines] == [
        (precision, target) for precision in ("fp32", "fp16", "int8") for target in ("sm86", "sm120")
    ]
    opened = load_bundle(bundle)  # all of it is listed, and is what is listed
    for engine in engines:
        assert opened.engine_path(engine["precision"], engine["target"]) == Path(engine["path"])
    assert Path(engines[-1]["path"]).name == "model.int8.gpu.sm120.tensorrt_rtx.plan"
    assert engines[-1]["layers"] == {"int8": 2, "fp32": 1}


@needs_rtx
def test_options_reach_the_builder_and_the_table_says_what_came(
    run: Any, tmp_path: Path, files: dict[str, Path]
) -> None:
    arguments = (files["fp32"], "--target", "sm86", "--out", tmp_path, "--batch", "1,2,2")
    arguments += ("--workspace", 512, "--optimization-level", 2, "--sparse", "--tf32", "--precision", "fp32")
    done = run("engine", *arguments)
    assert done.exit_code == 0, done.stderr
    assert "3 fp32" in done.stdout
    (sidecar,) = tmp_path.rglob("*.plan.json")
    content = json.loads(sidecar.read_text())
    assert content["flags"] == {
        "workspace_bytes": 512 << 20,
        "optimization_level": 2,
        "sparse": True,
        "tf32": True,
        "builder_flags": ["SPARSE_WEIGHTS", "TF32"],
    }
    assert content["sparsity"] == "2:4 asked for"
    assert [shape[0] for shape in content["profile"]["images"]] == [1, 2, 2]


@needs_rtx
def test_file_with_uint8_input_and_suppression(run: Any, tmp_path: Path, files: dict[str, Path]) -> None:
    path = variant(files["fp32"], uint8=True, nms=True)
    done = run("engine", path, "--target", "sm86", "--out", tmp_path, "--json")
    assert done.exit_code == 0, done.stderr
    (engine,) = json.loads(done.stdout)
    assert engine["uint8_input"]
    assert engine["nms"]["max_detections"] == 20


@needs_rtx
@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("fp32", ("--precision", "int8"), "int8 was ordered, but none of its 3 convolutions"),
        ("int8 cpu", (), "use the file with signed activations, model.int8.gpu.onnx"),
        ("fp32", ("--timing-cache", "timing.cache"), "has no timing cache; leave it out, or build with full TensorRT"),
        ("fp32", ("--precision", "fp32,fp16"), "a file has one precision"),
        ("fp32", ("--precision", "fp64"), "'fp64' is not known; choose from fp32, fp16, int8"),
        ("fp32", ("--batch", "8,1,1"), "is not of the form MIN,BEST,MAX"),
        ("fp32", ("--optimization-level", "6"), "6 is not in the range"),
        ("fp32", ("--workspace", "0"), "0 is not in the range"),
    ],
)
def test_what_cannot_be_built_is_one_line(
    run: Any, tmp_path: Path, files: dict[str, Path], kind: str, options: tuple[str, ...], said: str
) -> None:
    done = run("engine", files[kind], "--target", "sm86", "--out", tmp_path / "out", *options)
    assert done.exit_code == 2
    assert said in done.stderr.splitlines()[-1]
    assert not list(tmp_path.rglob("*.plan*"))


def test_precision_that_a_bundle_does_not_have(run: Any, tmp_path: Path, files: dict[str, Path]) -> None:
    bundle = bundle_of(tmp_path / "bundle", files, "fp32", "int8 cpu")
    for precision in ("fp16", "int8"):
        done = run("engine", bundle, "--target", "sm86", "--precision", precision)
        assert done.exit_code == 2
        line = done.stderr.splitlines()[-1]
        assert f"has no ONNX file in {precision} for a GPU; it has fp32, int8 for cpus" in line
        assert f"prunedeploy build --precision fp32,{precision}" in line


def int8_without_calibration(path: Path, out: Path) -> Path:
    """A signed int8 file whose ranges are made up: what is computed in is real, what comes out is not."""
    from prunedeploy_export.graph.edit import head_convolutions, read_model, set_metadata, write_model
    from prunedeploy_export.precision.calibration import Range
    from prunedeploy_export.precision.quantisation import plan_quantisation, quantise

    model = read_model(path)
    heads = [node.name for node in head_convolutions(model.graph)]
    plan = plan_quantisation(model, "int8", heads)
    model = quantise(model, plan, {name: Range(-4.0, 4.0) for name in plan.tensors})
    set_metadata(model, precision="int8", quantisation=json.dumps({"activations": "int8", "skipped": heads}))
    write_model(model, out)
    return out


@pytest.mark.slow
@needs_rtx
@pytest.mark.parametrize("kind", ["fp32", "fp16", "int8"])
def test_yolov3_of_62_million_parameters(run: Any, tmp_path: Path, kind: str) -> None:
    from prunedeploy.models import FoldedDarknet, load_darknet
    from prunedeploy.resources import darknet_cfg_path
    from prunedeploy_export import fp16_from_fp32, onnx_from_torch

    path = tmp_path / "model.onnx"
    onnx_from_torch(FoldedDarknet(load_darknet(darknet_cfg_path("yolov3"), seed=0).eval()), path)
    if kind == "fp16":
        path = fp16_from_fp32(path, tmp_path / "model.fp16.onnx").path
    elif kind == "int8":
        path = int8_without_calibration(path, tmp_path / "model.int8.gpu.onnx")
    path = variant(path, uint8=True, nms=True)
    done = run("engine", path, "--target", "sm86", "--out", tmp_path / "engines", "--precision", kind, "--json")
    assert done.exit_code == 0, done.stderr
    (engine,) = json.loads(done.stdout)
    # int8 leaves out the convolutions of the three heads.
    assert engine["layers"] == ({"int8": 72, "fp32": 3} if kind == "int8" else {kind: 75})
    assert engine["bytes"] > 62e6 * {"fp32": 4, "fp16": 2, "int8": 1}[kind]  # the weights are in it
