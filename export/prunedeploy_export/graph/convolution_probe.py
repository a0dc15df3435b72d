"""A single convolution with its activation as an ONNX model, for measuring what it costs at other widths."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from prunedeploy_export.graph.activations import add_activation
from prunedeploy_export.graph.builder import IMAGES, GraphBuilder
from prunedeploy_export.graph.from_torch import OPSET

_IR_VERSION = 8


def convolution_model(
    filters: int,
    inputs: int,
    size: int,
    *,
    stride: int,
    padding: int,
    dilation: int,
    activation: str,
    height: int,
    width: int,
) -> bytes:
    """An ONNX model of one convolution; weights are constant, as their values do not change the time.

    Args:
        filters: Output channels.
        inputs: Input channels.
        size: Height and width of the kernel.
        stride: As in a cfg.
        padding: On each side.
        dilation: As in a cfg.
        activation: Name as in a Darknet cfg.
        height: Height of the input ``images`` ``(1, inputs, height, width)`` float32.
        width: Its width.

    Returns:
        The serialised model.
    """
    shape = helper.make_tensor_value_info(IMAGES, TensorProto.FLOAT, (1, inputs, height, width))
    weight = numpy_helper.from_array(np.full((filters, inputs, size, size), 1e-3, dtype=np.float32), "weight")
    bias = numpy_helper.from_array(np.full(filters, 1e-3, dtype=np.float32), "bias")
    graph = helper.make_graph([], "convolution", [shape], [], [weight, bias])
    builder = GraphBuilder(graph)
    convolved = builder.node(
        "Conv",
        [IMAGES, "weight", "bias"],
        "convolved",
        kernel_shape=[size] * 2,
        strides=[stride] * 2,
        pads=[padding] * 4,
        dilations=[dilation] * 2,
    )
    output = convolved if activation == "linear" else add_activation(builder, convolved, activation, "activated")
    graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, (1, filters, "height", "width")))
    opsets = [helper.make_opsetid("", OPSET)]
    model: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION).SerializeToString()
    return model
