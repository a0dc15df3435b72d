"""Sections ``reorg`` and ``reorg3d``: SpaceToDepth or DepthToSpace, between two Reshapes in Darknet's odd order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from prunedeploy_export.graph.builder import GraphBuilder, Value
from prunedeploy_export.graph.network import Rearranging


def add_rearranging(
    graph: GraphBuilder, layer: Rearranging, inputs: Sequence[Value], weights: Mapping[str, Tensor]
) -> str:
    """See `prunedeploy_export.graph.sections.Writer`."""
    name, stride, source = f"layer{layer.index}", layer.stride, inputs[0].name
    output = name
    if layer.odd:
        channels, height, width = inputs[0].shape
        interleaved = [0, channels // stride**2, height * stride, width * stride]
        source, output = graph.reshape(source, interleaved, f"{name}/interleaved"), f"{name}/rearranged"
    if layer.reverse:
        output = graph.node("DepthToSpace", [source], output, blocksize=stride, mode="DCR")
    else:
        output = graph.node("SpaceToDepth", [source], output, blocksize=stride)
    return graph.reshape(output, [0, *layer.out_shape], name) if layer.odd else output
