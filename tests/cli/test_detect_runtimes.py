"""`detect` with every runtime and precision that runs on a CPU, on files with a known answer and on exported ones."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detector_variants import save_conv_detector, save_nms_detector, save_uint8_detector
from engine_networks import SIZE, write_precisions
from prunedeploy_engines.bundle import BundleFile, load_bundle, write_bundle
from prunedeploy_engines.runtimes.opening import open_runner
from tiny_detector import CLASS_NAMES

NOT_ON_THE_DEVICE = ("torch", "onnx", "captum", "pycocotools", "scipy", "safetensors", "openvino_telemetry")
RUNTIMES = [
    "onnxruntime",
    pytest.param(
        "openvino",
        marks=pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs openvino"),
    ),
]
TELL_STARTED = """
sys.addaudithook(lambda event, _: print(event, file=sys.stderr) if event == "subprocess.Popen" else None)
"""
RED_CELL = {
    "class_id": 0,
    "class_name": "red",
    "score": 1.0,
    "x_min": 8.0,
    "y_min": 16.0,
    "width": 8.0,
    "height": 8.0,
}


def make_bundle(
    folder: Path, files: dict[str, BundleFile], height: int = 32, width: int = 48, **thresholds: float
) -> Path:
    write_bundle(
        folder,
        files,
        class_names=CLASS_NAMES,
        input={"height": height, "width": width},
        thresholds={"score": 0.9, "iou": 0.45, **thresholds},
    )
    return folder


@pytest.fixture
def three_precisions(tmp_path: Path) -> Path:
    """A bundle of the detector with a known answer; its int8 file for GPUs is none, so that nobody takes it."""
    (tmp_path / "gpu.onnx").write_bytes(b"not for CPUs")
    files = {
        "model.onnx": BundleFile(save_conv_detector(tmp_path / "a.onnx", "fp32"), "onnx", "fp32"),
        "model.fp16.onnx": BundleFile(save_conv_detector(tmp_path / "b.onnx", "fp16"), "onnx", "fp16"),
        "model.int8.onnx": BundleFile(save_conv_detector(tmp_path / "c.onnx", "int8"), "onnx", "int8", "cpu"),
        "model.int8.gpu.onnx": BundleFile(tmp_path / "gpu.onnx", "onnx", "int8", "gpu"),
    }
    return make_bundle(tmp_path / "precisions", files)


@pytest.fixture
def detect(run_process: Any) -> Callable[..., list[dict[str, Any]]]:
    """``detect(bundle, image)``: the rows. In a process: `detect` loads OpenVINO into its own."""

    def call(*arguments: object) -> list[dict[str, Any]]:
        done = run_process("detect", *arguments, "--json")
        assert done.returncode == 0, done.stderr
        rows: list[dict[str, Any]] = json.loads(done.stdout)
        return rows

    return call


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_every_precision_finds_the_red_cell(
    detect: Any, three_precisions: Path, red_cell: Path, runtime: str, precision: str
) -> None:
    (row,) = detect(three_precisions, red_cell, "--runtime", runtime, "--precision", precision)
    assert [{**found, "score": pytest.approx(1.0, abs=1 / 255)} for found in row["detections"]] == [RED_CELL]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_int8_runs_on_a_device_without_torch_and_onnx_in_one_process(
    run_process: Any, three_precisions: Path, red_cell: Path, runtime: str
) -> None:
    arguments = ("--runtime", runtime, "--precision", "int8", "--threads", "1")
    done = run_process("detect", three_precisions, red_cell, *arguments, blocked=NOT_ON_THE_DEVICE, before=TELL_STARTED)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1].split()[0] == "red"


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("save", [save_uint8_detector, save_nms_detector])
def test_uint8_images_and_suppression_in_the_graph_change_nothing_for_the_user(
    detect: Any, tmp_path: Path, red_cell: Path, runtime: str, save: Any
) -> None:
    bundle = make_bundle(tmp_path / "variant", {"model.onnx": BundleFile(save(tmp_path / "v.onnx"), "onnx", "fp32")})
    assert detect(bundle, red_cell, "--runtime", runtime)[0]["detections"] == [RED_CELL]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_exported_int8_for_cpus_is_the_file_that_runs(detect: Any, tmp_path: Path, runtime: str) -> None:
    paths = write_precisions(tmp_path)
    files = {
        "model.onnx": BundleFile(paths["fp32"], "onnx", "fp32"),
        "model.int8.onnx": BundleFile(paths["int8 cpu"], "onnx", "int8", "cpu"),
        "model.int8.gpu.onnx": BundleFile(paths["int8"], "onnx", "int8", "gpu"),
    }
    bundle = make_bundle(tmp_path / "exported", files, SIZE, SIZE, score=0.3)
    pixels = np.random.default_rng(2).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.png")
    scores = {}
    for precision in ("fp32", "int8"):
        (row,) = detect(bundle, tmp_path / "noise.png", "--runtime", runtime, "--precision", precision)
        scores[precision] = [found["score"] for found in row["detections"]]
    with load_bundle(bundle) as opened, open_runner(paths["int8 cpu"], runtime) as runner:
        expected = opened.detect(pixels, runner=runner).scores
    assert scores["int8"]
    assert scores["int8"] == pytest.approx(expected.tolist(), abs=1e-6)
    assert scores["int8"] != scores["fp32"]


def test_precision_that_the_bundle_lacks_is_refused_with_those_it_has(run: Any, bundle: Path, red_cell: Path) -> None:
    done = run("detect", bundle, red_cell, "--precision", "int8")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "has no onnx of precision int8 for cpu; it has: model.onnx (fp32, None)" in done.stderr


def test_provider_that_is_not_there_is_refused_not_replaced(run: Any, bundle: Path, red_cell: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("the CUDA provider is installed")
    done = run("detect", bundle, red_cell, "--providers", "cuda,cpu")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "ONNX Runtime has no CUDAExecutionProvider here" in done.stderr
    assert run("detect", bundle, red_cell, "--providers", "cpu").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--runtime", "openvino", "--providers", "cpu"), "--providers are ONNX Runtime's; --runtime openvino has"),
        (("--providers", "gpu"), "'gpu' is not known; choose from cpu, cuda, tensorrt"),
        (("--precision", "bf16"), "'bf16' is not one of 'fp32', 'fp16', 'int8'"),
        (("--runtime", "tensorrt"), "has no engine of precision fp32"),
    ],
)
def test_options_that_do_not_fit_are_one_line(
    run: Any, bundle: Path, red_cell: Path, arguments: tuple[str, ...], said: str
) -> None:
    done = run("detect", bundle, red_cell, *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert said in done.stderr
