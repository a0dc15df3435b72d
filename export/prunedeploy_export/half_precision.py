"""fp32 ONNX to fp16: the layers compute in half precision, the decoding stays in fp32.

Boxes reach thousands of pixels through an exponential, where half precision has steps of a pixel; so the raw
heads are cast back before they are decoded. Input and outputs keep float32, and no caller notices.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper

from prunedeploy_engines.errors import EngineError

from .onnx_edit import GraphEditor, convolutions, head_convolutions

_LARGEST = float(np.finfo(np.float16).max)
# Inputs that say how, and are not data: they keep their type.
_NO_DATA = {"Resize": (1, 2, 3), "Pad": (1,), "Slice": (1, 2, 3, 4), "Split": (1,), "Reshape": (1,)}


def to_half_precision(model: ModelProto) -> ModelProto:
    """A copy of an fp32 network whose layers compute in fp16; metadata is not touched.

    Raises:
        EngineError: A weight is beyond what half precision can hold; the layer is named.
    """
    copy = ModelProto.FromString(model.SerializeToString())
    graph = copy.graph
    layers = _up_to(copy, head_convolutions(graph))
    source = graph.input[0].name
    editor = GraphEditor(graph)
    for node in layers:
        for position, name in enumerate(node.input):
            if name == source:
                node.input[position] = f"{source}/half"
            elif name in editor.constants and position not in _NO_DATA.get(node.op_type, ()):
                node.input[position] = _half_constant(editor, name, node)
    editor.insert_after(
        source, helper.make_node("Cast", [source], [f"{source}/half"], name=f"{source}/half", to=TensorProto.FLOAT16)
    )
    in_half = {name for node in layers for name in node.output}
    for tensor in [name for node in layers for name in node.output]:
        readers = [node for node in editor.consumers(tensor) if in_half.isdisjoint(node.output)]
        if readers:
            _cast_back(editor, tensor, readers)
    editor.commit()
    return copy


def _cast_back(editor: GraphEditor, tensor: str, readers: list[NodeProto]) -> None:
    single = f"{tensor}/single"
    for reader in readers:
        for position, name in enumerate(reader.input):
            if name == tensor:
                reader.input[position] = single
    editor.insert_after(tensor, helper.make_node("Cast", [tensor], [single], name=single, to=TensorProto.FLOAT))


def _up_to(model: ModelProto, heads: list[NodeProto]) -> list[NodeProto]:
    """The nodes that the heads depend on, themselves included."""
    needed = {node.output[0] for node in heads}
    found = []
    for node in reversed(model.graph.node):
        if not needed.isdisjoint(node.output):
            found.append(node)
            needed.update(node.input)
    assert len(convolutions(model.graph)) == sum(node.op_type == "Conv" for node in found)
    return found[::-1]


def _half_constant(editor: GraphEditor, name: str, node: NodeProto) -> str:
    """Name of a constant's copy in half precision; constants that are no floats stay as they are."""
    values = editor.array(name)
    if values.dtype != np.float32:
        return name
    finite = np.abs(values[np.isfinite(values)])
    if finite.size and float(finite.max()) > _LARGEST:
        raise EngineError(
            f"a value of {finite.max():.3g} of {name} does not fit into fp16, which ends at {_LARGEST:.0f}",
            where=node.name,
            fix="leave fp16 out, or train the network with weight decay",
        )
    return editor.constant(f"{name}/half", values.astype(np.float16))
