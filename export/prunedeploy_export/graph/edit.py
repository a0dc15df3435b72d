"""Reading an ONNX file, changing its graph, and writing it checked: what every precision has in common."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from prunedeploy_engines.errors import EngineError
from prunedeploy_engines.files import write_atomically

PARAMETERS = {"Resize": (1, 2, 3), "Pad": (1,), "Slice": (1, 2, 3, 4), "Split": (1,), "Reshape": (1,)}
"""Positions of inputs that say how an operator computes, and are no data, by operator."""


@dataclass(frozen=True)
class OnnxFile:
    """An ONNX file that was written.

    Attributes:
        path: Where.
        bytes: Size.
        sha256: Hexadecimal SHA-256 of the content.
        opset: Version of the operator set.
        nodes: Number of nodes in the graph.
    """

    path: Path
    bytes: int
    sha256: str
    opset: int
    nodes: int


def read_model(path: str | Path) -> ModelProto:
    """Read an ONNX file with its weights.

    Raises:
        EngineError: It is missing, or is no ONNX file.
    """
    path = Path(path)
    try:
        model = onnx.load_model_from_string(path.read_bytes())
    except OSError as error:
        raise EngineError(f"cannot be read ({error.strerror})", where=path) from error
    except Exception as error:  # protobuf's DecodeError, which has moved between its versions
        raise EngineError(f"is not an ONNX file ({error})", where=path, fix="export it again") from error
    if not model.graph.node:
        raise EngineError("is not an ONNX network (it has no nodes)", where=path, fix="export it again")
    return model


def write_model(model: ModelProto, path: str | Path) -> OnnxFile:
    """Check a model and write it, the same bytes every time.

    Raises:
        onnx.checker.ValidationError: The model is not valid: a defect of whoever made it.
        StoreError: The file cannot be written; nothing is left behind.
    """
    nodes, opset = len(model.graph.node), opset_of(model)
    data = model.SerializeToString(deterministic=True)
    del model  # the checker below needs room for a copy of its own
    onnx.checker.check_model(data, full_check=True)
    write_atomically(path, data)
    return OnnxFile(Path(path), len(data), hashlib.sha256(data).hexdigest(), opset, nodes)


def opset_of(model: ModelProto) -> int:
    """Version of the default operator set."""
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)


def metadata_of(model: ModelProto) -> dict[str, str]:
    """The model's metadata entries."""
    return {entry.key: entry.value for entry in model.metadata_props}


def set_metadata(model: ModelProto, **entries: str) -> None:
    """Add or replace metadata entries; they stay sorted by key."""
    merged = dict(sorted({**metadata_of(model), **entries}.items()))
    del model.metadata_props[:]
    helper.set_model_props(model, merged)


class GraphEditor:
    """Finds things in a graph by their names, and inserts nodes where their inputs are ready.

    Args:
        graph: The graph that is changed in place. Nodes are in topological order, as ONNX demands.
    """

    def __init__(self, graph: GraphProto) -> None:
        self.graph = graph
        self.producers: dict[str | None, NodeProto] = {name: node for node in graph.node for name in node.output}
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self._added: dict[str | None, list[NodeProto]] = {}

    def consumers(self, tensor: str) -> list[NodeProto]:
        """Nodes that read a tensor, in order."""
        return [node for node in self.graph.node if tensor in node.input]

    def array(self, name: str) -> npt.NDArray:
        """Values of a constant."""
        return numpy_helper.to_array(self.constants[name])

    def constant(self, name: str, values: npt.NDArray) -> str:
        """Add a constant, or return the one of that name.

        Raises:
            ValueError: That one has other values.
        """
        tensor = numpy_helper.from_array(np.asarray(values, order="C"), name)
        if name not in self.constants:
            self.constants[name] = self.graph.initializer.add()
            self.constants[name].CopyFrom(tensor)
        elif not np.array_equal(numpy_helper.to_array(self.constants[name]), values):
            raise ValueError(f"the graph has another constant called {name}")
        return name

    def replace_constant(self, name: str, values: npt.NDArray) -> None:
        """Give a constant other values, which may be of another type."""
        self.constants[name].CopyFrom(numpy_helper.from_array(np.asarray(values, order="C"), name))

    def insert_after(self, tensor: str | None, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Place a node right behind the producer of a tensor (None, an input, a constant: at the front).

        Args:
            tensor: Which.
            op: Operator.
            inputs: What the node reads.
            output: What it gives; it is named after that.
            **attributes: The operator's.

        Returns:
            The output.
        """
        key = self.producers[tensor].output[0] if tensor in self.producers else None
        node = helper.make_node(op, inputs, [output], name=output, **attributes)
        self._added.setdefault(key, []).append(node)
        return output

    def commit(self) -> None:
        """Put the inserted nodes into the graph and drop constants that nobody reads."""
        nodes = list(self._added.get(None, []))
        for node in self.graph.node:
            nodes.append(node)
            if node.output:
                nodes.extend(self._added.get(node.output[0], []))
        kept = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del self.graph.node[:]
        self.graph.node.extend(kept)
        self._added = {}
        self._drop_idle_constants()
        self.__init__(self.graph)  # type: ignore[misc]  # everything was looked up in the old graph

    def _drop_idle_constants(self) -> None:
        read = set(_read_in(self.graph))
        for position in reversed(range(len(self.graph.initializer))):
            if self.graph.initializer[position].name not in read:
                del self.graph.initializer[position]


def _read_in(graph: GraphProto) -> Iterator[str]:
    """Names that the nodes read, those inside a Loop too."""
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _read_in(attribute.g)


def redirect(node: NodeProto, old: str, new: str) -> None:
    """Have a node read another tensor instead of one."""
    for position, name in enumerate(node.input):
        if name == old:
            node.input[position] = new


def convolutions(graph: GraphProto) -> list[NodeProto]:
    """The Conv nodes, in order."""
    return [node for node in graph.node if node.op_type == "Conv"]


def head_convolutions(graph: GraphProto) -> list[NodeProto]:
    """The Conv nodes whose output reaches ``boxes`` and ``scores`` without another convolution."""
    reaches: set[str] = {value.name for value in graph.output}
    heads = []
    for node in reversed(graph.node):
        if reaches.isdisjoint(node.output):
            continue
        if node.op_type == "Conv":
            heads.append(node)
        else:
            reaches.update(node.input)
    return heads[::-1]


def expose(model: ModelProto, tensors: Iterable[str]) -> ModelProto:
    """A copy of a model that gives these tensors as outputs too, float32 or the integers of a QuantizeLinear."""
    copy = ModelProto.FromString(model.SerializeToString())
    there = {value.name for value in copy.graph.output}
    kinds = {tensor.name: tensor.data_type for tensor in copy.graph.initializer}
    integers = {node.output[0]: kinds[node.input[2]] for node in copy.graph.node if node.op_type == "QuantizeLinear"}
    for name in tensors:
        if name not in there:
            kind = integers.get(name, TensorProto.FLOAT)
            copy.graph.output.append(helper.make_tensor_value_info(name, kind, None))
    return copy
