"""Variants of the tiny detector, as ONNX files: uint8 images, suppression in the graph, convolutions in 8 and 16 bits.

Like `tiny_detector` they have the classes red, green and blue, and a box per 8 x 8 cell whose score is the cell's mean
in that colour channel.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tiny_detector import CELL, CLASS_NAMES, cell_boxes, save_tiny_detector

SCORE_THRESHOLD = 0.5
MAX_DETECTIONS = 10


def save_uint8_detector(path: Path, height: int = 32, width: int = 48) -> Path:
    """The tiny detector for ``(N, H, W, 3)`` uint8 images, which it divides by 255."""
    model = onnx.load(save_tiny_detector(path, height, width))
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["pixels"], ["channels"], perm=[0, 3, 1, 2]),
        helper.make_node("Mul", ["channels", "scale"], ["normalised"]),
    ]
    _rename_input(model, "images", "normalised")
    shape = helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", height, width, 3])
    model.graph.input[0].CopyFrom(shape)
    _add_constants(model, {"scale": np.array(1 / 255, np.float32)})
    return _save(model, [*nodes, *model.graph.node], {"uint8_input": "true"}, path)


def save_nms_detector(path: Path, height: int = 32, width: int = 48) -> Path:
    """The tiny detector with suppression: NonMaxSuppression, a mask from what it selects, then TopK."""
    model = onnx.load(save_tiny_detector(path, height, width))
    boxes = len(cell_boxes(height, width))
    constants = {
        "per_class": np.array([boxes]),
        "iou": np.array([0.45], np.float32),
        "threshold": np.array([SCORE_THRESHOLD], np.float32),
        "one": np.array([1.0], np.float32),
        "zeros": np.array(0.0, np.float32),
        "first": np.array([0]),
        "rows": np.array([0, -1]),
        "k": np.array([MAX_DETECTIONS]),
        "boxes_each": np.array(boxes),
        "last": np.array([2]),
    }
    node = helper.make_node
    nodes = [
        node("Transpose", ["scores"], ["by_class"], perm=[0, 2, 1]),  # (N, C, M)
        node("NonMaxSuppression", ["boxes", "by_class", "per_class", "iou", "threshold"], ["selected"]),  # (S, 3)
        node("Shape", ["by_class"], ["by_class_shape"]),
        node("Expand", ["zeros", "by_class_shape"], ["nothing"]),
        node("GatherND", ["by_class", "selected"], ["selected_scores"]),  # (S,)
        node("ScatterND", ["nothing", "selected", "selected_scores"], ["kept"]),  # (N, C, M)
        node("Reshape", ["kept", "rows"], ["flat_scores"]),  # (N, C * M)
        node("TopK", ["flat_scores", "k"], ["best", "where"]),  # (N, K)
        node("Div", ["where", "boxes_each"], ["class_ids"]),
        node("Mod", ["where", "boxes_each"], ["box_ids"]),
        node("Unsqueeze", ["box_ids", "last"], ["box_ids_column"]),  # (N, K, 1)
        node("GatherND", ["boxes", "box_ids_column"], ["best_boxes"], batch_dims=1),  # (N, K, 4)
        node("Unsqueeze", ["best", "last"], ["best_column"]),
        node("Cast", ["class_ids"], ["class_floats"], to=TensorProto.FLOAT),
        node("Unsqueeze", ["class_floats", "last"], ["class_column"]),
        node("Concat", ["best_boxes", "best_column", "class_column"], ["all_rows"], axis=2),
        node("Greater", ["best_column", "zeros"], ["is_detection"]),
        node("Cast", ["is_detection"], ["is_detection_float"], to=TensorProto.FLOAT),
        node("Mul", ["all_rows", "is_detection_float"], ["detections"]),
        node("Greater", ["best", "zeros"], ["counted"]),
        node("Cast", ["counted"], ["counted_int"], to=TensorProto.INT32),
        node("ReduceSum", ["counted_int", "axis_one"], ["num_detections"], keepdims=0),
    ]
    _add_constants(model, {**constants, "axis_one": np.array([1])})
    del model.graph.output[:]
    model.graph.output.extend(
        [
            helper.make_tensor_value_info("detections", TensorProto.FLOAT, ["N", MAX_DETECTIONS, 6]),
            helper.make_tensor_value_info("num_detections", TensorProto.INT32, ["N"]),
        ]
    )
    nms = {"score_threshold": SCORE_THRESHOLD, "iou_threshold": 0.45, "max_detections": MAX_DETECTIONS}
    return _save(model, [*model.graph.node, *nodes], {"nms": json.dumps(nms)}, path)


def save_conv_detector(path: Path, precision: str = "fp32", height: int = 32, width: int = 48) -> Path:
    """The tiny detector with two convolutions for the pooling: 8 x 8 cells to their means, then 1 x 1 that keeps them.

    Args:
        path: File to write.
        precision: Of the first convolution, the second is always float32: ``"fp32"``; ``"fp16"``: float16 between
            casts; ``"int8"``: between QuantizeLinear and DequantizeLinear, weights per channel.
        height: Of the input.
        width: Of the input.
    """
    model = onnx.load(save_tiny_detector(path, height, width))
    mean = np.zeros((3, 3, CELL, CELL), np.float32)
    mean[range(3), range(3)] = 1 / CELL**2
    constants = {"mean": mean, "keep": np.eye(3, dtype=np.float32)[..., None, None]}
    node = helper.make_node
    sizes = {"kernel_shape": [CELL, CELL], "strides": [CELL, CELL]}
    if precision == "fp16":
        constants["mean"] = mean.astype(np.float16)
        first = [
            node("Cast", ["images"], ["images_16"], to=TensorProto.FLOAT16),
            node("Conv", ["images_16", "mean"], ["cells_16"], name="first", **sizes),
            node("Cast", ["cells_16"], ["cell_means"], to=TensorProto.FLOAT),
        ]
    elif precision == "int8":
        constants |= {
            "mean": np.rint(mean * 127 * CELL**2).astype(np.int8),
            "mean_scale": np.full(3, 1 / (127 * CELL**2), np.float32),
            "mean_zero": np.zeros(3, np.int8),
            "pixel_scale": np.array(1 / 255, np.float32),
            "pixel_zero": np.array(0, np.uint8),
        }
        pixel, weight = ["pixel_scale", "pixel_zero"], ["mean_scale", "mean_zero"]
        first = [
            node("QuantizeLinear", ["images", *pixel], ["images_q"]),
            node("DequantizeLinear", ["images_q", *pixel], ["images_dq"]),
            node("DequantizeLinear", ["mean", *weight], ["mean_dq"], axis=0),
            node("Conv", ["images_dq", "mean_dq"], ["cells_float"], name="first", **sizes),
            node("QuantizeLinear", ["cells_float", *pixel], ["cells_q"]),
            node("DequantizeLinear", ["cells_q", *pixel], ["cell_means"]),
        ]
    else:
        first = [node("Conv", ["images", "mean"], ["cell_means"], name="first", **sizes)]
    _add_constants(model, constants)
    second = node("Conv", ["cell_means", "keep"], ["means"], name="second", kernel_shape=[1, 1])
    rest = [other for other in model.graph.node if other.op_type != "AveragePool"]
    return _save(model, [*first, second, *rest], {"precision": precision}, path)


def _rename_input(model: onnx.ModelProto, old: str, new: str) -> None:
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = new


def _add_constants(model: onnx.ModelProto, values: dict[str, np.ndarray]) -> None:
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items())


def _save(model: onnx.ModelProto, nodes: list[onnx.NodeProto], metadata: dict[str, str], path: Path) -> Path:
    kept = list(nodes)
    del model.graph.node[:]
    model.graph.node.extend(kept)
    helper.set_model_props(model, {"class_names": json.dumps(CLASS_NAMES), **metadata})
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path
