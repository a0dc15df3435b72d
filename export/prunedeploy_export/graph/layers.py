"""The layers of a network as ONNX nodes.

Runtimes fuse Conv with the activation behind it, so the nodes stay apart here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from onnx import GraphProto, TensorProto, helper, numpy_helper
from torch import Tensor

from prunedeploy_export.graph.network import Convolutional, Layer, Maxpool, Network, Route, Shortcut, Upsample

IMAGES = "images"


class Value(NamedTuple):
    """What a layer has computed: its name in the graph, and ``(channels, height, width)``."""

    name: str
    shape: tuple[int, int, int]


class GraphBuilder:
    """Adds nodes and constants to a graph.

    Weights are declared first and filled in by `fill_weights`, so that a check of the shapes, which copies
    the graph several times, copies no weights.

    Args:
        graph: The graph that grows.
    """

    def __init__(self, graph: GraphProto) -> None:
        self._graph = graph
        self._constants: set[str] = set()
        self._weights: list[tuple[TensorProto, Tensor]] = []

    def node(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Append a node with one output; it is named after the output, which is returned."""
        return self.nodes(op, inputs, [output], output, **attributes)[0]

    def nodes(
        self, op: str, inputs: Sequence[str], outputs: Sequence[str], name: str, **attributes: Any
    ) -> Sequence[str]:
        """Append a node with several outputs, which are returned."""
        self._graph.node.append(helper.make_node(op, list(inputs), list(outputs), name=name, **attributes))
        return outputs

    def split(self, source: str, outputs: Sequence[str], sizes: Sequence[int], axis: int) -> Sequence[str]:
        """Append a Split and return its outputs."""
        return self.nodes("Split", [source, self.integers(sizes)], outputs, f"{source}/split", axis=axis)

    def integers(self, values: Sequence[int]) -> str:
        """Return the name of a constant int64 vector; equal ones are stored once."""
        return self.constant("int64_" + "_".join(map(str, values)), np.array(values, dtype=np.int64))

    def constant(self, name: str, values: npt.NDArray) -> str:
        """Add a constant and return its name; a second one of the same name is the same one."""
        if name not in self._constants:
            self._constants.add(name)
            self._graph.initializer.append(numpy_helper.from_array(values, name))
        return name

    def weight(self, name: str, values: Tensor) -> str:
        """Declare a float32 constant of the shape of ``values`` and return its name."""
        tensor = self._graph.initializer.add(name=name, data_type=TensorProto.FLOAT, dims=values.shape)
        self._weights.append((tensor, values))
        return name

    def fill_weights(self) -> None:
        """Write the values of all declared weights."""
        for tensor, values in self._weights:
            array = values.detach().to("cpu", torch.float32).numpy()
            tensor.raw_data = array.astype("<f4", copy=False).tobytes()

    def reshape(self, source: str, shape: Sequence[int], output: str) -> str:
        """Append a Reshape; 0 in ``shape`` keeps that dimension."""
        return self.node("Reshape", [source, self.integers(shape)], output)


def add_layers(graph: GraphBuilder, network: Network) -> list[str]:
    """Append all layers that a head depends on.

    Args:
        graph: Where to.
        network: The network; float weights of any precision are written as float32.

    Returns:
        Names of the raw heads in cfg order, each ``(N, A * (5 + C), H, W)``.
    """
    cfg = network.cfg
    needed = _needed(cfg.layers)
    values = {-1: Value(IMAGES, cfg.input_shape)}
    for layer in cfg.layers:
        if layer.index in needed and layer.kind != "yolo":
            inputs = [values[source] for source in layer.inputs]
            if layer.kind == "convolutional":
                weight, bias = network.folded[layer.index]
                name = _add_convolutional(graph, cast(Convolutional, layer), inputs[0].name, weight, bias)
            else:
                name = _RULES[layer.kind](graph, layer, inputs)
            values[layer.index] = Value(name, layer.out_shape)
    return [values[head.inputs[0]].name for head in cfg.heads]


def _needed(layers: Sequence[Layer]) -> set[int]:
    """Indices of the layers on a path to a head."""
    needed: set[int] = set()
    for layer in reversed(layers):
        if layer.kind == "yolo" or layer.index in needed:
            needed.update((layer.index, *layer.inputs))
    return needed


def _add_convolutional(graph: GraphBuilder, layer: Convolutional, source: str, weight: Tensor, bias: Tensor) -> str:
    name = f"layer{layer.index}"
    convolved = graph.node(
        "Conv",
        [source, graph.weight(f"{name}/weight", weight), graph.weight(f"{name}/bias", bias)],
        name if layer.activation == "linear" else f"{name}/conv",
        kernel_shape=[layer.size] * 2,
        strides=[layer.stride] * 2,
        pads=[layer.padding] * 4,
        dilations=[layer.dilation] * 2,
        group=layer.groups,
    )
    return add_activation(graph, convolved, layer.activation, name)


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


def _add_maxpool(graph: GraphBuilder, layer: Maxpool, inputs: Sequence[Value]) -> str:
    name, source, size = f"layer{layer.index}", inputs[0].name, layer.size
    before = layer.padding // 2
    # As much padding as the last window reads and no more: an even map at 2/2 needs none.
    below, right = (
        max(0, (out - 1) * layer.stride + size - before - side)
        for out, side in zip(layer.out_shape[1:], inputs[0].shape[1:], strict=True)
    )
    pads = [before, before, below, right]
    if max(pads) >= size:  # which MaxPool does not allow
        amounts = graph.integers([0, 0, before, before, 0, 0, below, right])
        lowest = graph.constant("minus_infinity", np.array(-math.inf, dtype=np.float32))
        source, pads = graph.node("Pad", [source, amounts, lowest], f"{name}/pad"), [0, 0, 0, 0]
    window = {"kernel_shape": [size] * 2, "strides": [layer.stride] * 2}
    return graph.node("MaxPool", [source], name, pads=pads, **window)


def _add_upsample(graph: GraphBuilder, layer: Upsample, inputs: Sequence[Value]) -> str:
    factor = layer.stride
    scales = graph.constant(f"scales_{factor}", np.array([1, 1, factor, factor], dtype=np.float32))
    # Asymmetric and floor: output cell i reads input cell floor(i / factor), as Darknet and PyTorch do.
    return graph.node(
        "Resize",
        [inputs[0].name, "", scales],
        f"layer{layer.index}",
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


def _add_route(graph: GraphBuilder, layer: Route, inputs: Sequence[Value]) -> str:
    name = f"layer{layer.index}"
    parts = [value.name for value in inputs]
    if layer.groups > 1:
        parts = []
        for position, value in enumerate(inputs):
            length = value.shape[0] // layer.groups
            start, end = layer.group_id * length, (layer.group_id + 1) * length
            bounds = [graph.integers([number]) for number in (start, end, 1)]
            output = name if len(inputs) == 1 else f"{name}/part{position}"
            parts.append(graph.node("Slice", [value.name, *bounds], output))
    return parts[0] if len(parts) == 1 else graph.node("Concat", parts, name, axis=1)


def _add_shortcut(graph: GraphBuilder, layer: Shortcut, inputs: Sequence[Value]) -> str:
    name = f"layer{layer.index}"
    total = graph.node("Add", [value.name for value in inputs], name if layer.activation == "linear" else f"{name}/sum")
    return add_activation(graph, total, layer.activation, name)


_RULES: dict[str, Callable[[GraphBuilder, Any, Sequence[Value]], str]] = {
    "maxpool": _add_maxpool,
    "upsample": _add_upsample,
    "route": _add_route,
    "shortcut": _add_shortcut,
}
