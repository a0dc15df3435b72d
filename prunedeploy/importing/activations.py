"""What stands behind a convolution or a sum in an exported graph: normalisation, then an activation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from prunedeploy.importing.onnx_graph import OnnxGraph
from prunedeploy.models.sections.activations import SLOPE

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Behind:
    """What becomes part of the section before.

    Attributes:
        output: Name of the tensor behind it.
        activation: By its name in a cfg, and what stands beside it: the lines of its options.
        inside: Outputs of the nodes that it consists of.
        factor: What normalisation multiplies by, ``(filters,)``; None without.
        shift: What it adds then.
    """

    output: str
    activation: str = "linear"
    inside: frozenset[str] = frozenset()
    factor: Floats | None = None
    shift: Floats | None = None

    def normalised(self, weight: Floats, bias: Floats) -> tuple[Floats, Floats]:
        """Weights ``(filters, in, size, size)`` and bias ``(filters,)`` with the normalisation folded in."""
        if self.factor is None or self.shift is None:
            return weight, bias
        return weight * self.factor[:, None, None, None], bias * self.factor + self.shift


def activation_behind(graph: OnnxGraph, tensor: str, normalised: bool = True) -> Behind:
    """Follow a tensor through normalisation and activation, as far as nothing else reads what is between.

    Args:
        graph: The file's.
        tensor: A convolution's output, or a sum's.
        normalised: Whether a normalisation may stand there.

    Raises:
        OnnxImportError: An activation is of a kind that no section has.
    """
    readers = graph.readers.get(tensor, ())
    if normalised and len(readers) == 1 and readers[0].op_type == "BatchNormalization":
        node = readers[0]
        scale, shift, mean, variance = (np.asarray(graph.constants[name], np.float64) for name in node.input[1:5])
        factor = scale / np.sqrt(variance + _number(node, "epsilon", 1e-5))
        rest = activation_behind(graph, node.output[0], normalised=False)
        moved = (shift - mean * factor).astype(np.float32)
        inside = rest.inside | {node.output[0]}
        return Behind(rest.output, rest.activation, inside, factor.astype(np.float32), moved)
    if len(readers) == 1 and readers[0].op_type in _ONE:
        node = readers[0]
        activation = _ONE[node.op_type](graph, node)
        if activation is None:
            raise graph.refused(
                node, "is an activation that no section has: known are SiLU, ReLU, LeakyReLU, HardSwish, Mish"
            )
        return Behind(node.output[0], activation, frozenset(node.output))
    if len(readers) == 2:
        product = next((node for node in readers if node.op_type == "Mul"), None)
        gate = next((node for node in readers if node is not product), None)
        if product is not None and gate is not None and tensor in product.input:
            other = next((name for name in product.input if name != tensor), "")
            inside = frozenset((*gate.output, *product.output))
            if gate.op_type == "Sigmoid" and other == gate.output[0]:
                return Behind(product.output[0], "swish", inside)
            tanh = graph.producers.get(other)
            if (
                gate.op_type == "Softplus"
                and tanh is not None
                and tanh.op_type == "Tanh"
                and tanh.input[0] == gate.output[0]
            ):
                return Behind(product.output[0], "mish", inside | {other})
            if gate.op_type == "HardSigmoid" and other == gate.output[0] and _is_h_swish(gate):
                return Behind(product.output[0], "h_swish", inside)
            return _relu6_gate(graph, tensor, gate, product) or Behind(tensor)
    return Behind(tensor)


def _number(node: NodeProto, name: str, default: float) -> float:
    return next((entry.f for entry in node.attribute if entry.name == name), default)


def _leaky(graph: OnnxGraph, node: NodeProto) -> str | None:
    slope = np.float32(_number(node, "alpha", 0.01))
    if abs(slope - 0.1) < 1e-6:
        return "leaky"
    return f"leaky\n{SLOPE}={slope!s}" if 0 < slope < 1 else None  # the fewest digits that are this float32


def _is_h_swish(gate: NodeProto) -> bool:
    return abs(_number(gate, "alpha", 0.2) - 1 / 6) < 1e-6 and _number(gate, "beta", 0.5) == 0.5


def _relu6_gate(graph: OnnxGraph, tensor: str, gate: NodeProto, product: NodeProto) -> Behind | None:
    """h_swish written out, x clip(x + 3, 0, 6) / 6, divided before or after the product; None if it is not."""
    three = gate.op_type == "Add" and _constant(graph, gate) == 3.0
    clips = graph.readers.get(gate.output[0], ())
    if not three or len(clips) != 1 or clips[0].op_type != "Clip" or _clip(graph, clips[0]) != "relu6":
        return None
    clipped = clips[0].output[0]
    inside = frozenset((*gate.output, clipped, *product.output))
    other = next(name for name in product.input if name != tensor)
    divided = product.output[0] if other == clipped else clipped
    last = graph.readers.get(divided, ())
    if len(last) != 1 or last[0].op_type not in ("Div", "Mul") or (other != clipped and last[0].output[0] != other):
        return None
    factor = _constant(graph, last[0])
    if factor is None or (last[0].op_type == "Div" and last[0].input[0] != divided):
        return None
    if abs((1 / factor if last[0].op_type == "Div" else factor) - 1 / 6) > 1e-6:
        return None
    return Behind(last[0].output[0] if other == clipped else product.output[0], "h_swish", inside | {*last[0].output})


def _constant(graph: OnnxGraph, node: NodeProto) -> float | None:
    """The single number that a node combines something with; None without one, or if it is 0."""
    values = [graph.constants[name] for name in node.input if name in graph.constants]
    return float(values[0].reshape(-1)[0]) or None if len(values) == 1 and values[0].size == 1 else None


def _clip(graph: OnnxGraph, node: NodeProto) -> str | None:
    bounds = [float(graph.constants[name].reshape(-1)[0]) for name in node.input[1:] if name in graph.constants]
    return "relu6" if bounds == [0.0, 6.0] else None


_ONE: Mapping[str, Callable[[OnnxGraph, NodeProto], str | None]] = {
    "Relu": lambda *_: "relu",
    "LeakyRelu": _leaky,
    "Sigmoid": lambda *_: "logistic",
    "Tanh": lambda *_: "tanh",
    "Mish": lambda *_: "mish",
    "Clip": _clip,
    "HardSwish": lambda *_: "h_swish",
    "HardSigmoid": lambda *_: None,
    "Elu": lambda _, node: "elu" if _number(node, "alpha", 1.0) == 1.0 else None,
    "Selu": lambda *_: None,
    "Gelu": lambda *_: None,
    "PRelu": lambda *_: None,
    "Softplus": lambda *_: None,
}
