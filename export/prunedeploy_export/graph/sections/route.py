"""Section ``route``: Slice and Concat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from prunedeploy_export.graph.builder import GraphBuilder, Value
from prunedeploy_export.graph.network import Route


def add_route(graph: GraphBuilder, layer: Route, inputs: Sequence[Value], weights: Mapping[str, Tensor]) -> str:
    """See `prunedeploy_export.graph.sections.Writer`."""
    name = f"layer{layer.index}"
    parts = [value.name for value in inputs]
    if layer.groups > 1:
        parts = []
        for position, value in enumerate(inputs):
            length = value.shape[0] // layer.groups
            start, end = layer.group_id * length, (layer.group_id + 1) * length
            bounds = [graph.integers([number]) for number in (start, end, 1)]
            output = name if len(inputs) == 1 else f"{name}/part{position}"
            parts.append(graph.node("Slice", [value.name, *bounds], output))
    return parts[0] if len(parts) == 1 else graph.node("Concat", parts, name, axis=1)
