"""Section ``upsample``: Resize, or AveragePool, and Mul where there is a factor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from prunedeploy_export.graph.builder import GraphBuilder, Value
from prunedeploy_export.graph.network import Upsample


def add_upsample(graph: GraphBuilder, layer: Upsample, inputs: Sequence[Value], weights: Mapping[str, Tensor]) -> str:
    """See `prunedeploy_export.graph.sections.Writer`."""
    name, stride = f"layer{layer.index}", layer.stride
    output = name if layer.factor == 1.0 else f"{name}/unscaled"
    if layer.reverse:
        tensor = graph.node("AveragePool", [inputs[0].name], output, kernel_shape=[stride] * 2, strides=[stride] * 2)
    else:
        tensor = _resize(graph, inputs[0].name, stride, output)
    if layer.factor == 1.0:
        return tensor
    return graph.node("Mul", [tensor, graph.constant(f"{name}/factor", np.array(layer.factor, np.float32))], name)


def _resize(graph: GraphBuilder, source: str, factor: int, output: str) -> str:
    scales = graph.constant(f"scales_{factor}", np.array([1, 1, factor, factor], dtype=np.float32))
    # Asymmetric and floor: output cell i reads input cell floor(i / factor), as Darknet and PyTorch do.
    return graph.node(
        "Resize",
        [source, "", scales],
        output,
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )
