"""ONNX files that no runtime can run, each wrong in one way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tiny_detector import save_tiny_detector


def save_one_node(
    path: Path, operator: str = "Relu", *, domain: str = "", opset: int = 17, ir_version: int = 8
) -> Path:
    """A graph of one node, not checked; with ``domain`` the node is of that domain."""
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph(
        [helper.make_node(operator, ["x"], ["y"], domain=domain)], "one_node", value[:1], value[1:]
    )
    opsets = [helper.make_opsetid("", opset)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=ir_version), path)
    return path


def save_without_its_weights(path: Path) -> Path:
    """A model whose weights are in a file that is not there, ``weights.bin``."""
    model = onnx.load(save_tiny_detector(path))
    for tensor in model.graph.initializer:
        if tensor.name == "cells":
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value="weights.bin")
    onnx.save(model, path)
    return path


def save_greedy_detector(path: Path) -> Path:
    """The tiny detector, but it wants 4 TB of memory for every image."""
    model = onnx.load(save_tiny_detector(path))
    values = {"terabytes": np.array([10**12]), "zeros": np.zeros(1, np.float32), "all": np.array([0])}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items())
    for node in model.graph.node:
        if node.output[0] == "scores":
            node.output[0] = "honest_scores"
    model.graph.node.extend([
        helper.make_node("Mul", ["batch", "terabytes"], ["size"]),
        helper.make_node("Expand", ["zeros", "size"], ["heap"]),
        helper.make_node("ReduceSum", ["heap", "all"], ["nothing"], keepdims=1),
        helper.make_node("Add", ["honest_scores", "nothing"], ["scores"]),
    ])  # fmt: skip
    onnx.save(model, path)
    return path
