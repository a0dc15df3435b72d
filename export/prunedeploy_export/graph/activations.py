"""Activations as ONNX nodes.

Runtimes fuse Conv with the activation behind it, so the nodes stay apart here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prunedeploy_export.graph.builder import GraphBuilder


def add_activation(graph: GraphBuilder, source: str, activation: str, output: str) -> str:
    """Append an activation, by its name in a cfg, and return its output; nothing for ``linear``."""
    if activation not in _NODES:
        raise ValueError(f"unknown activation {activation!r}")
    return _NODES[activation](graph, source, output)


def _swish(graph: GraphBuilder, source: str, output: str) -> str:
    return graph.node("Mul", [source, graph.node("Sigmoid", [source], f"{output}/sigmoid")], output)


def _mish(graph: GraphBuilder, source: str, output: str) -> str:
    # x * tanh(log(1 + exp(x))); the operator Mish has no CPU kernel, and TensorRT fuses the three.
    softplus = graph.node("Softplus", [source], f"{output}/softplus")
    return graph.node("Mul", [source, graph.node("Tanh", [softplus], f"{output}/tanh")], output)


_NODES: Mapping[str, Callable[[GraphBuilder, str, str], str]] = {
    "linear": lambda _, source, __: source,
    "leaky": lambda graph, source, output: graph.node("LeakyRelu", [source], output, alpha=0.1),
    "relu": lambda graph, source, output: graph.node("Relu", [source], output),
    "logistic": lambda graph, source, output: graph.node("Sigmoid", [source], output),
    "swish": _swish,
    "mish": _mish,
}
