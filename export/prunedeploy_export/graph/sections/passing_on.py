"""Sections ``dropout``, ``cost`` and ``contrastive``: no node at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from prunedeploy_export.graph.builder import GraphBuilder, Value
from prunedeploy_export.graph.network import Layer


def add_nothing(graph: GraphBuilder, layer: Layer, inputs: Sequence[Value], weights: Mapping[str, Tensor]) -> str:
    """See `prunedeploy_export.graph.sections.Writer`."""
    return inputs[0].name
