"""Section ``avgpool``: GlobalAveragePool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from prunedeploy_export.graph.builder import GraphBuilder, Value
from prunedeploy_export.graph.network import Avgpool


def add_avgpool(graph: GraphBuilder, layer: Avgpool, inputs: Sequence[Value], weights: Mapping[str, Tensor]) -> str:
    """See `prunedeploy_export.graph.sections.Writer`."""
    return graph.node("GlobalAveragePool", [inputs[0].name], f"layer{layer.index}")
