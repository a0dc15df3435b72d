"""Section ``convolutional``: Conv, the activation, and a blur."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from prunedeploy_export.graph.activations import add_activation
from prunedeploy_export.graph.builder import GraphBuilder, Value
from prunedeploy_export.graph.network import Convolutional
from prunedeploy_export.graph.sections.blur import add_blur


def add_convolutional(
    graph: GraphBuilder, layer: Convolutional, inputs: Sequence[Value], weights: Mapping[str, Tensor]
) -> str:
    """See `prunedeploy_export.graph.sections.Writer`."""
    name = f"layer{layer.index}"
    activated = name if layer.blur is None else f"{name}/sharp"
    convolved = graph.node(
        "Conv",
        [inputs[0].name, *(graph.weight(f"{name}/{part}", weights[part]) for part in ("weight", "bias"))],
        activated if layer.activation == "linear" else f"{name}/conv",
        kernel_shape=[layer.size] * 2,
        strides=list(layer.strides),
        pads=[layer.padding] * 4,
        dilations=[layer.dilation] * 2,
        group=layer.groups,
    )
    return add_blur(graph, layer.blur, add_activation(graph, convolved, layer.activation, activated), name)
