"""Section ``maxpool``: MaxPool, behind a Pad where MaxPool does not allow so much padding."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from prunedeploy_export.graph.builder import GraphBuilder, Value
from prunedeploy_export.graph.network import Maxpool


def add_maxpool(graph: GraphBuilder, layer: Maxpool, inputs: Sequence[Value], weights: Mapping[str, Tensor]) -> str:
    """See `prunedeploy_export.graph.sections.Writer`."""
    name, source, size = f"layer{layer.index}", inputs[0].name, layer.size
    before = layer.padding // 2
    # As much padding as the last window reads and no more: an even map at 2/2 needs none.
    below, right = (
        max(0, (out - 1) * layer.stride + size - before - side)
        for out, side in zip(layer.out_shape[1:], inputs[0].shape[1:], strict=True)
    )
    pads = [before, before, below, right]
    if max(pads) >= size:  # which MaxPool does not allow
        amounts = graph.integers([0, 0, before, before, 0, 0, below, right])
        lowest = graph.constant("minus_infinity", np.array(-math.inf, dtype=np.float32))
        source, pads = graph.node("Pad", [source, amounts, lowest], f"{name}/pad"), [0, 0, 0, 0]
    window = {"kernel_shape": [size] * 2, "strides": [layer.stride] * 2}
    return graph.node("MaxPool", [source], name, pads=pads, **window)
