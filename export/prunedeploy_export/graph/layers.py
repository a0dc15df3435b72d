"""The layers of a network as ONNX nodes: what `sections` writes of each, in their order."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from prunedeploy_export.graph.builder import IMAGES, GraphBuilder, Value
from prunedeploy_export.graph.network import Cfg, Layer, Network
from prunedeploy_export.graph.sections import WRITERS


def add_layers(graph: GraphBuilder, network: Network) -> list[str]:
    """Append all layers that a head depends on.

    Args:
        graph: Where to.
        network: The network; float weights of any precision are written as float32.

    Returns:
        Names of the raw heads in cfg order, each ``(N, A * V, H, W)``.
    """
    cfg = network.cfg
    needed, heads = _needed(cfg), {head.index for head in cfg.heads}
    values = {-1: Value(IMAGES, cfg.input_shape)}
    for layer in cfg.layers:
        if layer.index in needed and layer.index not in heads:
            inputs = [values[source] for source in layer.inputs]
            name = WRITERS[layer.kind](graph, layer, inputs, _weights(network, layer))
            values[layer.index] = Value(name, layer.out_shape)
    return [values[head.inputs[0]].name for head in cfg.heads]


def _weights(network: Network, layer: Layer) -> Mapping[str, Tensor]:
    if layer.index in network.folded:
        weight, bias = network.folded[layer.index]
        return {"weight": weight, "bias": bias}
    return network.weights.get(layer.index, {})


def _needed(cfg: Cfg) -> set[int]:
    """Indices of the layers on a path to a head, and of the heads."""
    needed = {head.index for head in cfg.heads}
    for layer in reversed(cfg.layers):
        if layer.index in needed:
            needed.update(layer.inputs)
    return needed
