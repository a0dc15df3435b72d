"""The single convolution that is timed is the convolution of the network."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch.nn import functional

from prunedeploy.models.sections.activations import activate
from prunedeploy_export.graph.convolution_probe import convolution_model


@pytest.mark.parametrize("activation", ["linear", "leaky", "relu", "mish", "swish", "logistic"])
@pytest.mark.parametrize(
    ("size", "stride", "padding", "dilation"), [(3, 1, 1, 1), (3, 2, 1, 1), (1, 1, 0, 1), (3, 1, 2, 2)]
)
def test_it_computes_a_convolution_with_its_activation(
    activation: str, size: int, stride: int, padding: int, dilation: int
) -> None:
    model = convolution_model(
        12, 5, size, stride=stride, padding=padding, dilation=dilation, activation=activation, height=9, width=7
    )
    onnx.checker.check_model(onnx.load_from_string(model), full_check=True)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).random((1, 5, 9, 7), dtype=np.float32)
    (found,) = session.run(None, {"images": images})
    weight, bias = torch.full((12, 5, size, size), 1e-3), torch.full((12,), 1e-3)
    convolved = functional.conv2d(torch.from_numpy(images), weight, bias, stride, padding, dilation)
    np.testing.assert_allclose(found, activate(convolved, activation).numpy(), rtol=1e-5, atol=1e-7)
