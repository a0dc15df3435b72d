from __future__ import annotations

import importlib.util
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from prunedeploy_engines.bench.matmul import Precision, matmul_call, matmul_input, matmul_model
from prunedeploy_engines.errors import ConfigError
from prunedeploy_engines.runtimes.onnxruntime.session import open_session


def _session(model: bytes) -> onnxruntime.InferenceSession:
    return open_session(model, threads=1, providers=["cpu"], allow_spinning=False)


@pytest.mark.parametrize("size", [1, 3, 200])
def test_hand_written_model_passes_the_onnx_checker_and_multiplies(size: int) -> None:
    model = onnx.load_from_string(matmul_model(size, seed=5))
    onnx.checker.check_model(model, full_check=True)
    weight = numpy_helper.to_array(model.graph.initializer[0])
    assert weight.shape == (size, size)
    x = np.random.default_rng(0).standard_normal((size, size), dtype=np.float32)
    product = _session(matmul_model(size, seed=5)).run(None, {"x": x})[0]
    np.testing.assert_allclose(product, x @ weight, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [3, 200])
def test_int8_model_multiplies_integers(size: int) -> None:
    content = matmul_model(size, seed=5, precision="int8")
    model = onnx.load_from_string(content)
    onnx.checker.check_model(model, full_check=True)
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    x = matmul_input(size, precision="int8")
    # Real values: x = (q - 128) / 255, weight = q / 127.
    real = ((x.astype(np.float64) - 128) / 255) @ (values["weight"].astype(np.float64) / 127)
    expected = np.clip(np.rint(real / values["product_scale"]) + 128, 0, 255)
    product = _session(content).run(None, {"x": x})[0]
    assert product.dtype == np.uint8
    assert np.abs(product.astype(np.int32) - expected).max() <= 1  # ties may be rounded either way
    assert len(np.unique(product)) > size  # the scale spreads the product over the range


def test_int8_model_becomes_an_integer_product_in_onnxruntime(tmp_path_factory: pytest.TempPathFactory) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path_factory.mktemp("optimised") / "optimised.onnx")
    onnxruntime.InferenceSession(matmul_model(64, precision="int8"), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]
    assert kinds == ["QLinearMatMul"]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_onnxruntime_multiplies(precision: Precision) -> None:
    (product,) = matmul_call("onnxruntime", threads=1, size=64, precision=precision)()
    assert product.shape == (64, 64)


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs openvino")
def test_openvino_multiplies() -> None:
    program = """
from prunedeploy_engines.bench.matmul import matmul_call
for precision in ("fp32", "int8"):
    print(matmul_call("openvino", threads=1, size=64, precision=precision)()["product"].shape)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["(64, 64)"] * 2


def test_there_is_no_peak_of_a_runtime_without_a_cpu() -> None:
    with pytest.raises(ConfigError, match="no peak to measure for 'tensorrt'"):
        matmul_call("tensorrt", threads=None, size=8, precision="fp32")
