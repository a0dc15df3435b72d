"""Activations as ONNX nodes.

Runtimes fuse Conv with the activation behind it, so the nodes stay apart here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from prunedeploy_export.graph.builder import GraphBuilder


def add_activation(graph: GraphBuilder, source: str, activation: str, output: str) -> str:
    """Append an activation, by its name in a cfg, and return its output; nothing for ``linear``.

    A leaky one that is not Darknet's has its slope in its name: ``leaky:0.2``.
    """
    name, _, slope = activation.partition(":")
    if name == "leaky":
        return graph.node("LeakyRelu", [source], output, alpha=float(slope or 0.1))
    if activation not in _NODES:
        raise ValueError(f"unknown activation {activation!r}")
    return _NODES[activation](graph, source, output)


def _swish(graph: GraphBuilder, source: str, output: str) -> str:
    return graph.node("Mul", [source, graph.node("Sigmoid", [source], f"{output}/sigmoid")], output)


def _mish(graph: GraphBuilder, source: str, output: str) -> str:
    # x * tanh(log(1 + exp(x))); the operator Mish has no CPU kernel, and TensorRT fuses the three.
    softplus = graph.node("Softplus", [source], f"{output}/softplus")
    return graph.node("Mul", [source, graph.node("Tanh", [softplus], f"{output}/tanh")], output)


def _h_swish(graph: GraphBuilder, source: str, output: str) -> str:
    # The operator HardSwish is younger than what some runtimes read, and they put these two together again.
    gate = graph.node("HardSigmoid", [source], f"{output}/gate", alpha=1 / 6, beta=0.5)
    return graph.node("Mul", [source, gate], output)


def _clip(graph: GraphBuilder, source: str, low: int, high: int, output: str) -> str:
    bounds = [graph.constant(f"float_{value}", np.array(value, dtype=np.float32)) for value in (low, high)]
    return graph.node("Clip", [source, *bounds], output)


def _hard_mish(graph: GraphBuilder, source: str, output: str) -> str:
    # relu(x) + low (low / 2 + 1), low = x between -2 and 0
    low = _clip(graph, source, -2, 0, f"{output}/low")
    half, one = (graph.constant(name, np.array(value, dtype=np.float32)) for name, value in (("half", 0.5), ("one", 1)))
    gate = graph.node("Add", [graph.node("Mul", [low, half], f"{output}/half"), one], f"{output}/gate")
    curve = graph.node("Mul", [low, gate], f"{output}/curve")
    return graph.node("Add", [graph.node("Relu", [source], f"{output}/relu"), curve], output)


_NODES: Mapping[str, Callable[[GraphBuilder, str, str], str]] = {
    "linear": lambda _, source, __: source,
    "relu": lambda graph, source, output: graph.node("Relu", [source], output),
    "logistic": lambda graph, source, output: graph.node("Sigmoid", [source], output),
    "swish": _swish,
    "h_swish": _h_swish,
    "mish": _mish,
    "relu6": lambda graph, source, output: _clip(graph, source, 0, 6, output),
    "elu": lambda graph, source, output: graph.node("Elu", [source], output, alpha=1.0),
    # Darknet's constants, as in `prunedeploy.models.sections.activations`
    "selu": lambda graph, source, output: graph.node("Selu", [source], output, alpha=1.6732, gamma=1.0507),
    "tanh": lambda graph, source, output: graph.node("Tanh", [source], output),
    "hard_mish": _hard_mish,
}
