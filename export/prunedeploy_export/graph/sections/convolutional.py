"""Section ``convolutional``: Conv, then the activation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from prunedeploy_export.graph.activations import add_activation
from prunedeploy_export.graph.builder import GraphBuilder, Value
from prunedeploy_export.graph.network import Convolutional


def add_convolutional(
    graph: GraphBuilder, layer: Convolutional, inputs: Sequence[Value], weights: Mapping[str, Tensor]
) -> str:
    """See `prunedeploy_export.graph.sections.Writer`."""
    name = f"layer{layer.index}"
    convolved = graph.node(
        "Conv",
        [inputs[0].name, *(graph.weight(f"{name}/{part}", weights[part]) for part in ("weight", "bias"))],
        name if layer.activation == "linear" else f"{name}/conv",
        kernel_shape=[layer.size] * 2,
        strides=[layer.stride] * 2,
        pads=[layer.padding] * 4,
        dilations=[layer.dilation] * 2,
        group=layer.groups,
    )
    return add_activation(graph, convolved, layer.activation, name)
