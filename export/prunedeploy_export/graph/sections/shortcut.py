"""Section ``shortcut``: Add, then the activation; before it Mul where inputs have weights, Slice and Pad to fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from prunedeploy_export.graph.activations import add_activation
from prunedeploy_export.graph.builder import GraphBuilder, Value
from prunedeploy_export.graph.network import Shortcut


def add_shortcut(graph: GraphBuilder, layer: Shortcut, inputs: Sequence[Value], weights: Mapping[str, Tensor]) -> str:
    """See `prunedeploy_export.graph.sections.Writer`."""
    name, width, factors = f"layer{layer.index}", layer.out_shape[0], layer.factors(weights)
    summands = []
    for position, (source, (channels, _, _)) in enumerate(inputs):
        part = f"{name}/input{position}"
        if channels > width:
            source = graph.node("Slice", [source, *(graph.integers([value]) for value in (0, width, 1))], f"{part}/fit")
        if factors is not None:
            factor = factors[position, : min(channels, width), None, None]
            source = graph.node("Mul", [source, graph.weight(f"{part}/factor", factor)], f"{part}/weighted")
        if channels < width:
            source = graph.node("Pad", [source, graph.integers([0, 0, 0, 0, 0, width - channels, 0, 0])], f"{part}/pad")
        summands.append(source)
    total, *others = summands
    for position, other in enumerate(others, start=1):
        is_last = position == len(others)
        output = name if is_last and layer.activation == "linear" else f"{name}/sum"
        total = graph.node("Add", [total, other], output if is_last else f"{output}{position}")
    return add_activation(graph, total, layer.activation, name)
