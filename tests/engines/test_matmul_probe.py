from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from prunedeploy_engines.matmul_probe import matmul_flops, matmul_model, peak_matmul_gflops


@pytest.mark.parametrize("size", [1, 3, 200])
def test_hand_written_model_passes_the_onnx_checker_and_multiplies(size: int) -> None:
    model = onnx.load_from_string(matmul_model(size, seed=5))
    onnx.checker.check_model(model, full_check=True)
    weight = numpy_helper.to_array(model.graph.initializer[0])
    assert weight.shape == (size, size)
    session = onnxruntime.InferenceSession(matmul_model(size, seed=5), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).standard_normal((size, size), dtype=np.float32)
    np.testing.assert_allclose(session.run(None, {"x": x})[0], x @ weight, rtol=1e-4, atol=1e-4)


def test_a_product_of_matrices_has_two_n_cubed_flops() -> None:
    # 2 x 2: each of 4 results is 2 multiplications and 2 additions (one to zero).
    assert matmul_flops(2) == 16


def test_peak_is_a_positive_number() -> None:
    assert peak_matmul_gflops(threads=1, size=64, seconds=0.0, min_calls=3) > 0
