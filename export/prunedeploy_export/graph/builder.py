"""A graph that grows node by node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from onnx import GraphProto, TensorProto, helper, numpy_helper
from torch import Tensor

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
