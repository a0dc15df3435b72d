"""Section ``local_avgpool``: AveragePool without the padding's cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from prunedeploy_export.graph.builder import GraphBuilder, Value
from prunedeploy_export.graph.network import LocalAvgpool


def add_local_avgpool(
    graph: GraphBuilder, layer: LocalAvgpool, inputs: Sequence[Value], weights: Mapping[str, Tensor]
) -> str:
    """See `prunedeploy_export.graph.sections.Writer`."""
    before = layer.padding // 2
    # As much padding as the last window reads and no more.
    below, right = (
        max(0, (out - 1) * stride + layer.size - before - side)
        for out, stride, side in zip(layer.out_shape[1:], layer.strides, inputs[0].shape[1:], strict=True)
    )
    return graph.node(
        "AveragePool",
        [inputs[0].name],
        f"layer{layer.index}",
        kernel_shape=[layer.size] * 2,
        strides=list(layer.strides),
        pads=[before, before, below, right],
        count_include_pad=0,
    )
