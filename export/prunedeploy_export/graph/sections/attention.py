"""Section ``attention``: two MatMul and a Softmax."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from prunedeploy_export.graph.builder import GraphBuilder, Value
from prunedeploy_export.graph.network import Attention


def add_attention(graph: GraphBuilder, layer: Attention, inputs: Sequence[Value], weights: Mapping[str, Tensor]) -> str:
    """See `prunedeploy_export.graph.sections.Writer`."""
    name = f"layer{layer.index}"
    query, key, value = (
        graph.reshape(part.name, [0, layer.heads, part.shape[0] // layer.heads, -1], f"{name}/{kind}")
        for part, kind in zip(inputs, ("query", "key", "value"), strict=True)
    )  # (N, heads, D, cells)
    # The factor comes before the product, which in half precision would end at 65504 without it.
    scale = graph.constant(f"{name}/factor", np.array(layer.scale, np.float32))
    query = graph.node("Mul", [query, scale], f"{name}/scaled")
    query = graph.node("Transpose", [query], f"{name}/rows", perm=[0, 1, 3, 2])
    shares = graph.node("MatMul", [query, key], f"{name}/products")
    shares = graph.node("Softmax", [shares], f"{name}/shares", axis=3)
    shares = graph.node("Transpose", [shares], f"{name}/columns", perm=[0, 1, 3, 2])
    means = graph.node("MatMul", [value, shares], f"{name}/means")
    return graph.reshape(means, [0, *layer.out_shape], name)
