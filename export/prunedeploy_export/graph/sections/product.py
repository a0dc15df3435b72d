"""Sections ``sam`` and ``scale_channels``: Mul, then the activation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from prunedeploy_export.graph.activations import add_activation
from prunedeploy_export.graph.builder import GraphBuilder, Value
from prunedeploy_export.graph.network import Product


def add_product(graph: GraphBuilder, layer: Product, inputs: Sequence[Value], weights: Mapping[str, Tensor]) -> str:
    """See `prunedeploy_export.graph.sections.Writer`; the one shape is broadcast to the other."""
    name = f"layer{layer.index}"
    output = name if layer.activation == "linear" else f"{name}/product"
    return add_activation(graph, graph.node("Mul", [value.name for value in inputs], output), layer.activation, name)
