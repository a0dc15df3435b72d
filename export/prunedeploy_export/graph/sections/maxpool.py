"""Section ``maxpool``: MaxPool and a blur, behind a Pad where MaxPool does not allow so much padding; or ReduceMax."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from prunedeploy_export.graph.builder import GraphBuilder, Value
from prunedeploy_export.graph.network import Maxpool
from prunedeploy_export.graph.sections.blur import add_blur


def add_maxpool(graph: GraphBuilder, layer: Maxpool, inputs: Sequence[Value], weights: Mapping[str, Tensor]) -> str:
    """See `prunedeploy_export.graph.sections.Writer`."""
    if layer.depth:
        return _over_channels(graph, layer, inputs[0])
    name, source, size = f"layer{layer.index}", inputs[0].name, layer.size
    before = layer.padding // 2
    # As much padding as the last window reads and no more: an even map at 2/2 needs none.
    below, right = (
        max(0, (side + layer.padding - size) // stride * stride + size - before - side)
        for side, stride in zip(inputs[0].shape[1:], layer.strides, strict=True)
    )
    pads = [before, before, below, right]
    if max(pads) >= size:  # which MaxPool does not allow
        amounts = graph.integers([0, 0, before, before, 0, 0, below, right])
        source, pads = graph.node("Pad", [source, amounts, _lowest(graph)], f"{name}/pad"), [0, 0, 0, 0]
    window = {"kernel_shape": [size] * 2, "strides": list(layer.strides)}
    output = name if layer.blur is None else f"{name}/sharp"
    return add_blur(graph, layer.blur, graph.node("MaxPool", [source], output, pads=pads, **window), name)


def _over_channels(graph: GraphBuilder, layer: Maxpool, source: Value) -> str:
    name, tensor, (channels, height, width) = f"layer{layer.index}", source.name, source.shape
    turns, kept = -(-channels // layer.out_shape[0]), layer.out_shape[0]
    if missing := turns * kept - channels:
        amounts = graph.integers([0, 0, 0, 0, 0, missing, 0, 0])
        tensor = graph.node("Pad", [tensor, amounts, _lowest(graph)], f"{name}/pad")
    tensor = graph.reshape(tensor, [0, turns, kept, height, width], f"{name}/turns")
    return graph.node("ReduceMax", [tensor], name, axes=[1], keepdims=0)


def _lowest(graph: GraphBuilder) -> str:
    return graph.constant("minus_infinity", np.array(-math.inf, dtype=np.float32))
