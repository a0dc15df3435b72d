"""What an ONNX file holds: inputs, outputs, operators, values, and what a call costs. Nothing is run.

MACs are those of convolutions and matrix products, wherever shape inference finds their shapes; an activation, a
pooling or a resize has none, as in Darknet's count.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, shape_inference

from prunedeploy_export.graph.edit import read_model

Dimension = int | str | None
"""A size, the name of a size that a call decides, or not known."""

_CONVOLUTIONS = ("Conv", "ConvInteger", "QLinearConv")
_PRODUCTS = ("MatMul", "MatMulInteger", "QLinearMatMul", "Gemm")
_QUANTISED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger")
_WEIGHT_AT = {"QLinearConv": 3, "QLinearMatMul": 3}
"""Which input is the weight where it is not the second."""


@dataclass(frozen=True)
class OnnxTensor:
    """An input or output of the graph.

    Attributes:
        name: Its name.
        type: ONNX's name of the element type, e.g. ``float``, ``uint8``.
        shape: One entry per axis; None if the file does not say the rank.
    """

    name: str
    type: str
    shape: tuple[Dimension, ...] | None


@dataclass(frozen=True)
class OnnxContents:
    """What is in an ONNX file.

    Attributes:
        ir_version: Version of the file format.
        producer: Program that wrote it, with its version; empty if the file does not say.
        opsets: Version of the operator set by domain; the default domain is ``ai.onnx``.
        inputs: What a call takes; weights are not among them.
        outputs: What a call gives.
        operators: Number of nodes by operator, the most frequent first; those of other domains as ``domain.name``, and
            those inside ``If``, ``Loop`` and ``Scan`` among them.
        values: Number of stored values by element type: those of initialisers and of nodes ``Constant``.
        parameters: Values of initialisers, but for int64, which are shapes and indices; and of weights that are nodes
            ``Constant``.
        weights: Values of the weights of convolutions and matrix products.
        macs: Multiply-accumulates for one image; None where the shape of one of them is not known.
        precision: ``int8`` if anything is quantised, else ``fp16`` or ``fp32``: what most weights are stored in.
    """

    ir_version: int
    producer: str
    opsets: dict[str, int]
    inputs: tuple[OnnxTensor, ...]
    outputs: tuple[OnnxTensor, ...]
    operators: dict[str, int]
    values: dict[str, int]
    parameters: int
    weights: int
    macs: int | None
    precision: str


def read_contents(path: str | Path) -> OnnxContents:
    """What is in an ONNX file.

    Raises:
        EngineError: It is missing, or is no ONNX file.
    """
    return contents_of(read_model(path))


def contents_of(model: ModelProto) -> OnnxContents:
    """What is in an ONNX model; it is not changed."""
    stored = {tensor.name: tensor for graph in _graphs(model.graph) for tensor in graph.initializer}
    constants = {name: tensor for node in _nodes(model.graph) for name, tensor in _constants(node)}
    values: Counter[str] = Counter()
    for tensor in (*stored.values(), *constants.values()):
        values[_type_name(tensor.data_type)] += math.prod(tensor.dims)
    weights = _weights(model.graph, {**constants, **stored})
    parameters = {name: tensor for name, tensor in stored.items() if tensor.data_type != TensorProto.INT64} | weights
    operators = Counter(_operator(node) for node in _nodes(model.graph))
    return OnnxContents(
        ir_version=model.ir_version,
        producer=" ".join((model.producer_name, model.producer_version)).strip(),
        opsets={opset.domain or "ai.onnx": opset.version for opset in model.opset_import},
        inputs=tuple(_tensor(value) for value in model.graph.input if value.name not in stored),
        outputs=tuple(_tensor(value) for value in model.graph.output),
        operators=dict(operators.most_common()),
        values=dict(values.most_common()),
        parameters=sum(math.prod(tensor.dims) for tensor in parameters.values()),
        weights=sum(math.prod(tensor.dims) for tensor in weights.values()),
        macs=_macs(model),
        precision=_precision(operators, list(weights.values())),
    )


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """The graph and those inside its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            inner = [attribute.g] if attribute.type == AttributeProto.GRAPH else attribute.graphs
            for one in inner:
                yield from _graphs(one)


def _nodes(graph: GraphProto) -> Iterator[NodeProto]:
    for one in _graphs(graph):
        yield from one.node


def _constants(node: NodeProto) -> Iterator[tuple[str, TensorProto]]:
    """What a node ``Constant`` holds as a tensor, under the name of its result."""
    if node.op_type == "Constant":
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                yield node.output[0], attribute.t


def _operator(node: NodeProto) -> str:
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"


def _type_name(data_type: int) -> str:
    return TensorProto.DataType.Name(data_type).lower()


def _tensor(value: ValueInfoProto) -> OnnxTensor:
    return OnnxTensor(value.name, _type_name(value.type.tensor_type.elem_type), _shape(value))


def _shape(value: ValueInfoProto) -> tuple[Dimension, ...] | None:
    if not value.type.tensor_type.HasField("shape"):
        return None
    return tuple(
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None
        for dim in value.type.tensor_type.shape.dim
    )


def _weights(graph: GraphProto, stored: Mapping[str, TensorProto]) -> dict[str, TensorProto]:
    """The stored tensors that convolutions and matrix products multiply with, also by way of a DequantizeLinear."""
    behind = {
        node.output[0]: node.input[0]
        for node in _nodes(graph)
        if node.op_type in ("DequantizeLinear", "Cast") and node.input
    }
    found: dict[str, TensorProto] = {}
    for node in _nodes(graph):
        if node.op_type not in (*_CONVOLUTIONS, *_PRODUCTS, "ConvTranspose"):
            continue
        at = _WEIGHT_AT.get(node.op_type, 1)
        for name in node.input[at : at + 1]:
            name = behind.get(name, name)
            if name in stored:
                found[name] = stored[name]
    return found


def _precision(operators: Mapping[str, int], weights: Sequence[TensorProto]) -> str:
    if any(name in operators for name in _QUANTISED) or any(name.startswith("QLinear") for name in operators):
        return "int8"
    sizes: Counter[bool] = Counter()
    for tensor in weights:
        sizes[tensor.data_type in (TensorProto.FLOAT16, TensorProto.BFLOAT16)] += math.prod(tensor.dims)
    return "fp16" if sizes[True] > sizes[False] else "fp32"


def _macs(model: ModelProto) -> int | None:
    """Of one image: a batch whose size a call decides is taken as 1."""
    copy = ModelProto()
    copy.CopyFrom(model)
    for value in copy.graph.input:
        dims = value.type.tensor_type.shape.dim
        if dims and not dims[0].HasField("dim_value"):
            dims[0].dim_value = 1
    for value in (*copy.graph.output, *copy.graph.value_info):  # what they call the batch is a number now
        for dim in value.type.tensor_type.shape.dim:
            dim.ClearField("dim_param")
    try:
        inferred = shape_inference.infer_shapes(copy, data_prop=True)
    except shape_inference.InferenceError:  # the graph contradicts itself, which is for a runtime to say
        return None
    shapes: dict[str, tuple[Dimension, ...] | None] = {}
    for graph in _graphs(inferred.graph):
        for value in (*graph.value_info, *graph.input, *graph.output):
            shapes[value.name] = _shape(value)
        for tensor in graph.initializer:
            shapes[tensor.name] = tuple(tensor.dims)
    total = 0
    for node in _nodes(inferred.graph):
        if node.op_type in (*_CONVOLUTIONS, *_PRODUCTS, "ConvTranspose"):
            macs = _node_macs(node, shapes)
            if macs is None:
                return None
            total += macs
    batch = shapes.get(inferred.graph.input[0].name) if inferred.graph.input else None
    images = batch[0] if batch and isinstance(batch[0], int) and batch[0] > 0 else 1
    return total // images


def _node_macs(node: NodeProto, shapes: Mapping[str, tuple[Dimension, ...] | None]) -> int | None:
    """Multiply-accumulates of a node: of each cell of its result, as many as the weights that make it.

    A transposed convolution spreads each cell of its input instead.
    """
    at = _WEIGHT_AT.get(node.op_type, 1)
    if len(node.input) <= at or not node.output:
        return None
    result, data, weight = (_known(shapes.get(name)) for name in (node.output[0], node.input[0], node.input[at]))
    if data is None or (weight is None and node.op_type not in _PRODUCTS):
        return None
    if node.op_type == "ConvTranspose":
        return math.prod(data) * math.prod((weight or ())[1:])
    if result is None:
        return None
    if node.op_type in _CONVOLUTIONS:
        return math.prod(result) * math.prod((weight or ())[1:])
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return math.prod(result) * data[0 if transposed else -1]


def _known(shape: tuple[Dimension, ...] | None) -> tuple[int, ...] | None:
    """A shape whose sizes are all known, else None."""
    if shape is None or not all(isinstance(size, int) for size in shape):
        return None
    return tuple(size for size in shape if isinstance(size, int))
