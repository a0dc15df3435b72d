"""uint8 images as the input of a network: a quarter of the bytes to move, and normalisation in the graph."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, TensorProto, helper

from prunedeploy_export.graph.builder import IMAGES
from prunedeploy_export.graph.edit import GraphEditor, redirect, set_metadata


def with_uint8_input(model: ModelProto) -> ModelProto:
    """A copy that takes ``(N, H, W, 3)`` uint8 RGB instead of ``(N, 3, H, W)`` float32 in [0, 1].

    The pixels are divided by 255 as `prunedeploy_engines.detection.letterbox.to_input` does, so the network sees the
    same values, bit for bit.
    """
    copy = ModelProto.FromString(model.SerializeToString())
    graph = copy.graph
    editor = GraphEditor(graph)
    normalised = f"{IMAGES}/normalised"
    for node in editor.consumers(IMAGES):
        redirect(node, IMAGES, normalised)
    batch, channels, height, width = (
        dim.dim_param or dim.dim_value for dim in graph.input[0].type.tensor_type.shape.dim
    )
    shape = [batch, height, width, channels]
    graph.input[0].CopyFrom(helper.make_tensor_value_info(IMAGES, TensorProto.UINT8, shape))
    whole = editor.constant(f"{IMAGES}/255", np.asarray(255, np.float32))
    # Cast first: TensorRT has uint8 at its input only.
    single = editor.insert_after(None, "Cast", [IMAGES], f"{IMAGES}/float", to=TensorProto.FLOAT)
    nchw = editor.insert_after(None, "Transpose", [single], f"{IMAGES}/nchw", perm=[0, 3, 1, 2])
    editor.insert_after(None, "Div", [nchw, whole], normalised)
    editor.commit()
    set_metadata(copy, uint8_input="true")
    return copy
