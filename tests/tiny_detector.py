"""A detector small enough to work out by hand, as an ONNX file.

It has three classes, red, green and blue. Each 8 x 8 cell of the input is a box; the score of a class is the
cell's mean in that colour channel.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CELL = 8
CLASS_NAMES = ("red", "green", "blue")


def cell_boxes(height: int, width: int) -> np.ndarray:
    """``(M, 4)`` float32 xyxy, input pixels, row by row."""
    return np.array(
        [(x, y, x + CELL, y + CELL) for y in range(0, height, CELL) for x in range(0, width, CELL)],
        dtype=np.float32,
    )


def cell_scores(images: np.ndarray) -> np.ndarray:
    """What the detector computes: ``(N, 3, H, W)`` -> ``(N, M, 3)``."""
    count, channels, height, width = images.shape
    cells = images.reshape(count, channels, height // CELL, CELL, width // CELL, CELL).mean(axis=(3, 5))
    return cells.reshape(count, channels, -1).transpose(0, 2, 1)


def save_tiny_detector(path: Path, height: int = 32, width: int = 48) -> Path:
    """Write the detector for inputs of ``height`` x ``width``, dynamic batch."""
    boxes = cell_boxes(height, width)[None]
    constants = {
        "cells": boxes,
        "flat": np.array([0, 3, -1]),
        "zero": np.array([0]),
        "tail": np.array([1, 1]),
    }
    nodes = [
        helper.make_node("AveragePool", ["images"], ["means"], kernel_shape=[CELL, CELL], strides=[CELL, CELL]),
        helper.make_node("Reshape", ["means", "flat"], ["columns"]),
        helper.make_node("Transpose", ["columns"], ["scores"], perm=[0, 2, 1]),
        helper.make_node("Shape", ["images"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["batch"]),
        helper.make_node("Concat", ["batch", "tail"], ["repeats"], axis=0),
        helper.make_node("Expand", ["cells", "repeats"], ["boxes"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny_detector",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 3, height, width])],
        [
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["N", boxes.shape[1], 4]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", boxes.shape[1], 3]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path
