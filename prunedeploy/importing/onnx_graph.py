"""An exported detector's graph: checked, of one input size, and without what can be computed without an image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from prunedeploy_engines.errors import OnnxImportError

LEAST_OPSET = 11
"""Before it Resize, Slice and Pad were other operators."""

_SUPPRESSION = ("NonMaxSuppression", "TopK", "EfficientNMS_TRT", "BatchedNMS_TRT", "BatchedNMSDynamic_TRT")
_QUANTISED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "ConvInteger")
_HALF = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_LARGEST = 1 << 27
"""Values of a tensor; more than any detector has, so that a file cannot fill the memory."""

_WHOLE = "export it again, or copy it again if it was cut off on its way"
_EXPORT = "export a plain fp32 detector, e.g. `yolo export model=best.pt format=onnx`"

Array = NDArray[np.generic]


@dataclass(frozen=True, eq=False)
class OnnxGraph:
    """What of a file depends on the image, in its order, and the rest as constants.

    Attributes:
        path: The file.
        nodes: The nodes that depend on the image.
        constants: Values by name: weights, and what is computed of constants and shapes.
        producers: The node that gives a tensor.
        readers: The nodes that read a tensor.
        shapes: Shapes of tensors at this input size, as far as they are known.
        image: Name of the input, ``(1, channels, height, width)``.
        output: Name of the only output.
        metadata: The file's own, by key.
        opset: Version of the operators.
    """

    path: Path
    nodes: tuple[NodeProto, ...]
    constants: Mapping[str, Array]
    producers: Mapping[str, NodeProto]
    readers: Mapping[str, tuple[NodeProto, ...]]
    shapes: Mapping[str, tuple[int, ...]]
    image: str
    output: str
    metadata: Mapping[str, str]
    opset: int

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """``(channels, height, width)``."""
        _, channels, height, width = self.shapes[self.image]
        return channels, height, width

    def shape(self, tensor: str) -> tuple[int, ...]:
        """A tensor's shape.

        Raises:
            OnnxImportError: The file does not say enough to know it.
        """
        if tensor not in self.shapes:
            raise self.refused(self.producers[tensor], "has an output whose shape the file does not fix")
        return self.shapes[tensor]

    def refused(self, node: NodeProto, why: str, fix: str = _EXPORT) -> OnnxImportError:
        """An error at a node, which is named with its operator."""
        return OnnxImportError(f"node {node.name or node.output[0]} ({node.op_type}) {why}", self.path, fix)

    def evaluator(
        self, nodes: Sequence[NodeProto], inputs: Sequence[str], outputs: Sequence[str]
    ) -> ReferenceEvaluator:
        """Some of the nodes as a program of their own."""
        return _evaluator(nodes, inputs, outputs, self.constants, self.opset)


def read_graph(path: Path, input_size: tuple[int, int] | None = None) -> OnnxGraph:
    """Read a file.

    Args:
        path: The file.
        input_size: ``(height, width)`` where the file leaves it open; not looked at where it does not.

    Raises:
        OnnxImportError: It is no detector in plain fp32 with its size fixed; the message says what to do.
    """
    model = _load(path)
    _refuse_others(model, path)
    graph = model.graph
    constants = {tensor.name: _array(tensor, path) for tensor in graph.initializer}
    image = _fix_input(graph, set(constants), input_size, path)
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    nodes, shapes = _fold(graph, constants, opset, path)
    producers = {name: node for node in nodes for name in node.output}
    readers: dict[str, list[NodeProto]] = {}
    for node in nodes:
        for name in dict.fromkeys(node.input):
            readers.setdefault(name, []).append(node)
    return OnnxGraph(
        path,
        tuple(nodes),
        constants,
        producers,
        {name: tuple(found) for name, found in readers.items()},
        shapes,
        image,
        graph.output[0].name,
        {entry.key: entry.value for entry in model.metadata_props},
        opset,
    )


def run(program: ReferenceEvaluator, inputs: Mapping[str, Array]) -> list[Array]:
    """The outputs of a program, in order."""
    found: list[Array] = list(program.run(None, dict(inputs)))  # type: ignore[arg-type]
    return found


def _load(path: Path) -> ModelProto:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise OnnxImportError(f"cannot be read ({error.strerror})", path, "give an existing .onnx file") from None
    if path.suffix.lower() in (".pt", ".pth") or data.startswith((b"PK\x03\x04", b"\x80\x02")):
        what = "is a PyTorch checkpoint, which only the program that wrote it should unpickle"
        raise OnnxImportError(what, path, f"export it there: `yolo export model={path.name} format=onnx`")
    try:
        model = onnx.load_model_from_string(data)
    except (DecodeError, ValueError):
        raise OnnxImportError("is no whole ONNX file", path, _WHOLE) from None
    if not model.graph.node or not model.graph.output or not model.opset_import:
        raise OnnxImportError("is no whole ONNX file", path, _WHOLE)
    if any(tensor.data_location == TensorProto.EXTERNAL for tensor in model.graph.initializer):
        what = "keeps its weights in another file"
        raise OnnxImportError(what, path, "save it as one file: onnx.save(onnx.load(FILE), FILE)")
    return model


def _refuse_others(model: ModelProto, path: Path) -> None:
    graph, metadata = model.graph, {entry.key: entry.value for entry in model.metadata_props}
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx") and entry.version < LEAST_OPSET:
            what = f"has operators of opset {entry.version}"
            raise OnnxImportError(what, path, f"export it with opset {LEAST_OPSET} or later, best 17")
    for node in graph.node:
        at = f"node {node.name or node.output[0]} ({node.op_type})"
        if node.op_type in _SUPPRESSION:
            what = f"{at} suppresses or ranks detections in the file"
            raise OnnxImportError(what, path, "export it without suppression: nms=False, without --end2end")
        if node.op_type in _QUANTISED:
            raise OnnxImportError(f"{at} computes in 8 bits", path, "export it in fp32; int8 files are made afterwards")
        if node.domain not in ("", "ai.onnx"):
            raise OnnxImportError(f"{at} is an operator of {node.domain}, not of ONNX", path, _EXPORT)
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise OnnxImportError(f"{at} has a graph inside", path, _EXPORT)
    halves = [tensor.name for tensor in graph.initializer if tensor.data_type in _HALF]
    halves += [value.name for value in graph.input if value.type.tensor_type.elem_type in _HALF]
    if halves:
        what = f"computes in half precision ({halves[0]})"
        raise OnnxImportError(what, path, "export it in fp32: half=False; fp16 files are made afterwards")
    task = metadata.get("task", "detect")
    if task != "detect":
        raise OnnxImportError(f"is a network for the task {task}, not detect", path, "give a detector")
    if len(graph.output) != 1:
        names = ", ".join(value.name for value in graph.output[:4])
        what = f"has {len(graph.output)} outputs ({names}), as segmentation, or heads without their decoding"
        raise OnnxImportError(what, path, "export a detector with one decoded output (YOLOv7: --grid)")


def _array(tensor: TensorProto, path: Path) -> Array:
    try:
        return numpy_helper.to_array(tensor)
    except (ValueError, TypeError):
        raise OnnxImportError(f"has less data than its tensor {tensor.name} needs", path, _WHOLE) from None


def _fix_input(graph: GraphProto, constants: set[str], input_size: tuple[int, int] | None, path: Path) -> str:
    """Write the input's size into the graph, and return its name."""
    inputs = [value for value in graph.input if value.name not in constants]
    shape = (
        [dim.dim_value if dim.HasField("dim_value") else 0 for dim in inputs[0].type.tensor_type.shape.dim]
        if inputs
        else []
    )
    if len(inputs) != 1 or len(shape) != 4 or inputs[0].type.tensor_type.elem_type != TensorProto.FLOAT:
        what = "has no single input of float images (N, channels, height, width)"
        raise OnnxImportError(what, path, _EXPORT)
    if shape[1] not in (1, 3):
        what = f"takes images of {shape[1] or 'any number of'} channels"
        raise OnnxImportError(what, path, "give a detector of images with three channels, or one")
    if not (shape[2] and shape[3]) and input_size is None:
        raise OnnxImportError("leaves the size of its input open", path, "say which: --input-size 640, or WIDTHxHEIGHT")
    height, width = (shape[2], shape[3]) if shape[2] and shape[3] else input_size or (0, 0)
    if max(height, width) > 8192:
        raise OnnxImportError(f"takes images of {width}x{height} pixels", path, "export it for at most 8192")
    name = inputs[0].name
    inputs[0].CopyFrom(helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, shape[1], height, width]))
    del graph.value_info[:]
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    return name


def _fold(
    graph: GraphProto, constants: dict[str, Array], opset: int, path: Path
) -> tuple[list[NodeProto], dict[str, tuple[int, ...]]]:
    """Compute what does not depend on the image's content, into ``constants``, until nothing more is known.

    Returns:
        The nodes that are left, and shapes.
    """
    nodes = list(graph.node)
    while True:
        shapes = _shapes(graph, nodes, constants, opset, path)
        left = []
        for node in nodes:
            if node.op_type == "Shape" and node.input[0] in shapes:
                constants[node.output[0]] = np.array(shapes[node.input[0]], np.int64)
            elif all(not name or name in constants for name in node.input):
                values = _run(node, constants, opset, path)
                constants.update(zip(node.output, values, strict=False))
            else:
                left.append(node)
        if len(left) == len(nodes):
            return _needed(left, graph.output[0].name), shapes
        nodes = left


def _needed(nodes: Sequence[NodeProto], output: str) -> list[NodeProto]:
    needed, kept = {output}, []
    for node in reversed(nodes):
        if not needed.isdisjoint(node.output):
            kept.append(node)
            needed.update(node.input)
    return kept[::-1]


def _run(node: NodeProto, constants: Mapping[str, Array], opset: int, path: Path) -> list[Array]:
    if node.op_type == "Identity":
        return [constants[node.input[0]]]
    try:
        read = [name for name in dict.fromkeys(node.input) if name]
        program = _evaluator([node], (), [name for name in node.output if name], {n: constants[n] for n in read}, opset)
        found = program.run(None, {})
    except Exception as error:  # whatever an operator makes of what a file gives it
        what = f"node {node.name or node.output[0]} ({node.op_type}) cannot be computed ({type(error).__name__})"
        raise OnnxImportError(what, path, _EXPORT) from error
    return list(found)


def _shapes(
    graph: GraphProto, nodes: Sequence[NodeProto], constants: Mapping[str, Array], opset: int, path: Path
) -> dict[str, tuple[int, ...]]:
    """Static shapes by ONNX's inference, of a copy of the graph in which large constants are inputs."""
    inputs = [value for value in graph.input if value.name not in constants]
    small, read = [], {name for node in nodes for name in node.input}
    for name in sorted(read & set(constants)):
        value = constants[name]
        if value.size <= 64:
            small.append(numpy_helper.from_array(np.asarray(value), name))
        else:
            kind = helper.np_dtype_to_tensor_dtype(value.dtype)
            inputs.append(helper.make_tensor_value_info(name, kind, value.shape))
    light = helper.make_graph(nodes, "shapes", inputs, list(graph.output), small)
    model = helper.make_model(light, opset_imports=[helper.make_opsetid("", opset)])
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except Exception as error:  # the C++ side raises several types
        raise OnnxImportError(f"has shapes that do not fit together ({type(error).__name__})", path, _WHOLE) from error
    found = {}
    for value in (*inferred.value_info, *inferred.input, *inferred.output):
        dims = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in dims):
            found[value.name] = tuple(dim.dim_value for dim in dims)
            if math.prod(found[value.name]) > _LARGEST:
                raise OnnxImportError(f"has a tensor of shape {found[value.name]} ({value.name})", path, _EXPORT)
    return found


def _evaluator(
    nodes: Sequence[NodeProto],
    inputs: Sequence[str],
    outputs: Sequence[str],
    constants: Mapping[str, Array],
    opset: int,
) -> ReferenceEvaluator:
    read = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "part",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(constants[name]), name) for name in sorted(read & set(constants))],
    )
    return ReferenceEvaluator(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)]))
