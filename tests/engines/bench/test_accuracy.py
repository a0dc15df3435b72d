from __future__ import annotations

from typing import Any

import pytest

from prunedeploy_engines.bench.accuracy import accuracy_of

METRICS: dict[str, Any] = {
    "map_clean": 0.6,
    "map_pgd": 0.40,
    "intervals": {"map_pgd": [0.38, 0.42]},
    "engines": [
        {"runtime": "onnxruntime", "precision": "int8", "file": "model.int8.onnx", "map_clean": 0.59,
         "map_pgd_transfer": 0.39},
        {"runtime": "openvino", "precision": "int8", "file": "model.int8.onnx", "map_clean": 0.58,
         "map_pgd_transfer": 0.38, "intervals": {"map_pgd_transfer": [0.36, 0.41]}},
        {"runtime": "onnxruntime", "precision": "int8", "file": "model.int8.gpu.onnx", "map_clean": 0.57,
         "map_pgd_transfer": 0.37},
        {"runtime": "tensorrt", "precision": "fp16", "file": "engines/sm86/x.plan", "map_clean": None,
         "map_pgd_transfer": None},
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("runtime", "file", "robust"),
    [
        ("onnxruntime", "model.int8.onnx", 0.39),
        ("openvino", "model.int8.onnx", 0.38),
        ("onnxruntime", "model.int8.gpu.onnx", 0.37),
        ("tensorrt", "model.int8.gpu.onnx", 0.37),  # the file decides before the runtime
    ],
)
def test_an_int8_row_has_the_accuracy_of_its_file_and_runtime(runtime: str, file: str, robust: float) -> None:
    found = accuracy_of(METRICS, precision="int8", runtime=runtime, file=file)
    assert found["map_pgd"] == robust
    assert "int8" in found["map_source"]


def test_the_interval_comes_with_its_entry() -> None:
    found = accuracy_of(METRICS, precision="int8", runtime="openvino", file="model.int8.onnx")
    assert found["map_pgd_interval"] == [0.36, 0.41]
    assert accuracy_of(METRICS, precision="int8", runtime="onnxruntime", file=None)["map_pgd_interval"] is None


@pytest.mark.parametrize("key", ["map_pgd_transfer", "map_pgd"])
def test_an_entry_may_call_its_interval_by_either_name(key: str) -> None:
    entry = {"precision": "int8", "map_clean": 0.5, "map_pgd_transfer": 0.4, "intervals": {key: [0.3, 0.5]}}
    found = accuracy_of({"engines": [entry]}, precision="int8", runtime="onnxruntime", file=None)
    assert found["map_pgd_interval"] == [0.3, 0.5]


def test_an_fp32_row_without_an_entry_has_that_of_the_network() -> None:
    found = accuracy_of(METRICS, precision="fp32", runtime="onnxruntime", file="model.onnx")
    assert (found["map_clean"], found["map_pgd"], found["map_pgd_interval"]) == (0.6, 0.40, [0.38, 0.42])


@pytest.mark.parametrize(
    ("metrics", "precision"),
    [
        (METRICS, "fp16"),  # never the accuracy of another precision
        ({}, "fp32"),
        ({"engines": "garbage", "map_clean": True}, "fp32"),
        ({"engines": [3, {"precision": "int8"}]}, "int8"),
    ],
)
def test_what_the_bundle_does_not_say_is_none(metrics: dict[str, Any], precision: str) -> None:
    found = accuracy_of(metrics, precision=precision, runtime="onnxruntime", file="model.onnx")
    assert set(found.values()) == {None}
