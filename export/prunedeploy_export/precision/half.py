"""fp32 ONNX to fp16: the layers compute in half precision, the decoding stays in fp32.

Boxes reach thousands of pixels through an exponential, where half precision has steps of a pixel; so the raw
heads are cast back before they are decoded. Input and outputs keep float32, and no caller notices.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto

from prunedeploy_engines.errors import EngineError
from prunedeploy_export.graph.edit import PARAMETERS, GraphEditor, head_convolutions, redirect

_LARGEST = float(np.finfo(np.float16).max)


def to_half_precision(model: ModelProto) -> ModelProto:
    """A copy of an fp32 network whose layers compute in fp16; metadata is not touched.

    Raises:
        EngineError: A weight is beyond what half precision can hold; the layer is named.
    """
    copy = ModelProto.FromString(model.SerializeToString())
    graph = copy.graph
    layers = _layers(copy)
    editor = GraphEditor(graph)
    in_half = {name for node in layers for name in node.output}
    cast: set[str] = set()
    for node in layers:
        for position, name in enumerate(node.input):
            if not name or name in in_half or position in PARAMETERS.get(node.op_type, ()):
                continue
            if name in editor.constants:
                node.input[position] = _half_constant(editor, name, node)
                continue
            node.input[position] = half = f"{name}/half"
            if name not in cast:
                cast.add(name)
                editor.insert_after(name, "Cast", [name], half, to=TensorProto.FLOAT16)
    for tensor in [name for node in layers for name in node.output]:
        readers = [node for node in editor.consumers(tensor) if in_half.isdisjoint(node.output)]
        if readers:
            single = editor.insert_after(tensor, "Cast", [tensor], f"{tensor}/single", to=TensorProto.FLOAT)
            for reader in readers:
                redirect(reader, tensor, single)
    editor.commit()
    return copy


def _layers(model: ModelProto) -> list[NodeProto]:
    """The convolutions, and the nodes between them that the heads depend on.

    What stands before the first convolution, such as the normalisation of uint8 images, is not among them.
    """
    behind: set[str] = set()  # tensors that depend on a convolution
    for node in model.graph.node:
        if node.op_type == "Conv" or not behind.isdisjoint(node.input):
            behind.update(node.output)
    needed = {node.output[0] for node in head_convolutions(model.graph)}
    found = []
    for node in reversed(model.graph.node):
        if not needed.isdisjoint(node.output) and not behind.isdisjoint(node.output):
            found.append(node)
            needed.update(node.input)
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
