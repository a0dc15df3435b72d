"""Activations as ONNX nodes.

Runtimes fuse Conv with the activation behind it, so the nodes stay apart here.
"""

from __future__ import annotations

from prunedeploy_export.graph.builder import GraphBuilder


def add_activation(graph: GraphBuilder, source: str, activation: str, output: str) -> str:
    """Append an activation, by its name in a cfg, and return its output; nothing for ``linear``."""
    if activation == "linear":
        return source
    if activation == "leaky":
        return graph.node("LeakyRelu", [source], output, alpha=0.1)
    if activation == "relu":
        return graph.node("Relu", [source], output)
    if activation == "logistic":
        return graph.node("Sigmoid", [source], output)
    if activation == "swish":
        return graph.node("Mul", [source, graph.node("Sigmoid", [source], f"{output}/sigmoid")], output)
    if activation == "mish":
        # x * tanh(log(1 + exp(x))); the operator Mish has no CPU kernel, and TensorRT fuses the three.
        softplus = graph.node("Softplus", [source], f"{output}/softplus")
        return graph.node("Mul", [source, graph.node("Tanh", [softplus], f"{output}/tanh")], output)
    raise ValueError(f"unknown activation {activation!r}")
