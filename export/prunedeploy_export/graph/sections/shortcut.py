"""Section ``shortcut``: Add, then the activation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from prunedeploy_export.graph.activations import add_activation
from prunedeploy_export.graph.builder import GraphBuilder, Value
from prunedeploy_export.graph.network import Shortcut


def add_shortcut(graph: GraphBuilder, layer: Shortcut, inputs: Sequence[Value], weights: Mapping[str, Tensor]) -> str:
    """See `prunedeploy_export.graph.sections.Writer`."""
    name = f"layer{layer.index}"
    total = graph.node("Add", [value.name for value in inputs], name if layer.activation == "linear" else f"{name}/sum")
    return add_activation(graph, total, layer.activation, name)
