"""The blur of ``antialiasing``: means of 2 x 2."""

from __future__ import annotations

from prunedeploy_export.graph.builder import GraphBuilder
from prunedeploy_export.graph.network import Blur


def add_blur(graph: GraphBuilder, blur: Blur | None, source: str, output: str) -> str:
    """Append a blur and return its output; ``source`` itself if there is none."""
    if blur is None:
        return source
    window = {"kernel_shape": [2, 2], "count_include_pad": 1}
    if blur.size == 3:
        source = graph.node("AveragePool", [source], f"{output}/blur", strides=[1, 1], pads=[1] * 4, **window)
    return graph.node("AveragePool", [source], output, strides=list(blur.strides), **window)
