"""A small convolutional detector as ONNX, and every kind of file that the export makes of one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CLASS_NAMES = ("red", "green", "blue")
SIZE, PREDICTIONS = 32, 64
KINDS = ("fp32", "fp16", "int8")


def convolutional_detector(output_type: int = TensorProto.FLOAT, **metadata: str) -> onnx.ModelProto:
    """Three convolutions: ``images`` (N, 3, 32, 32) -> ``boxes`` (N, 64, 4), ``scores`` (N, 64, 3).

    Args:
        output_type: Type of the outputs; the decoding is in fp32 all the same.
        metadata: Entries beside precision and class names.
    """
    rng = np.random.default_rng(0)
    constants = {
        "flat": np.array([0, 7, PREDICTIONS], np.int64),
        "parts": np.array([4, 3], np.int64),
        "corner": np.array([[[-1.0, -1.0, 1.0, 1.0]]], np.float32),
        "cells": np.tile(np.mgrid[2:SIZE:4, 2:SIZE:4][::-1].reshape(1, 2, -1).transpose(0, 2, 1), 2).astype(np.float32),
    }
    nodes, tensor = [], "images"
    for number, (outputs, inputs, size, stride) in enumerate(((8, 3, 3, 2), (16, 8, 3, 2), (7, 16, 1, 1))):
        scale = 1 / np.sqrt(inputs * size * size)
        constants[f"w{number}"] = (rng.normal(size=(outputs, inputs, size, size)) * scale).astype(np.float32)
        constants[f"b{number}"] = (rng.normal(size=outputs) / 4).astype(np.float32)
        parameters = [tensor, f"w{number}", f"b{number}"]
        pads = [size // 2] * 4
        nodes.append(
            helper.make_node("Conv", parameters, [f"c{number}"], f"conv{number}", pads=pads, strides=[stride] * 2)
        )
        tensor = f"c{number}"
        if number < 2:
            nodes.append(helper.make_node("LeakyRelu", [tensor], [f"a{number}"], f"leaky{number}", alpha=0.1))
            tensor = f"a{number}"
    ends = ("boxes", "scores") if output_type == TensorProto.FLOAT else ("boxes32", "scores32")
    nodes += [
        helper.make_node("Reshape", [tensor, "flat"], ["columns"]),
        helper.make_node("Transpose", ["columns"], ["rows"], perm=[0, 2, 1]),
        helper.make_node("Split", ["rows", "parts"], ["raw", "logits"], axis=2),
        helper.make_node("Exp", ["raw"], ["grown"]),
        helper.make_node("Mul", ["grown", "corner"], ["offset"]),
        helper.make_node("Mul", ["offset", "four"], ["offset4"]),
        helper.make_node("Add", ["offset4", "cells"], [ends[0]]),
        helper.make_node("Sigmoid", ["logits"], [ends[1]]),
    ]
    constants["four"] = np.float32(4)
    if output_type != TensorProto.FLOAT:
        nodes += [helper.make_node("Cast", [f"{name}32"], [name], to=output_type) for name in ("boxes", "scores")]
    graph = helper.make_graph(
        nodes,
        "convolutional_detector",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])],
        [
            helper.make_tensor_value_info("boxes", output_type, ["batch", PREDICTIONS, 4]),
            helper.make_tensor_value_info("scores", output_type, ["batch", PREDICTIONS, 3]),
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(model, {"precision": "fp32", "class_names": json.dumps(CLASS_NAMES), **metadata})
    onnx.checker.check_model(model, full_check=True)
    return model


def write_precisions(folder: Path) -> dict[str, Path]:
    """The detector in every precision, made by the export: ``fp32``, ``fp16``, ``int8`` (signed), ``int8 cpu``."""
    from prunedeploy_export import Quantiser, fp16_from_fp32

    names = {
        "fp32": "model.onnx",
        "fp16": "model.fp16.onnx",
        "int8": "model.int8.gpu.onnx",
        "int8 cpu": "model.int8.onnx",
    }
    paths = {kind: folder / name for kind, name in names.items()}
    onnx.save(convolutional_detector(), paths["fp32"])
    fp16_from_fp32(paths["fp32"], paths["fp16"])
    images = np.random.default_rng(1).random((4, 3, SIZE, SIZE), dtype=np.float32)
    quantiser = Quantiser(paths["fp32"], images, seed=1, threads=1)
    quantiser.write(paths["int8"], "int8")
    quantiser.write(paths["int8 cpu"], "uint8")
    return paths


def variant(path: Path, *, uint8: bool = False, nms: bool = False) -> Path:
    """The file itself, or its variant with another input or output, beside it."""
    from prunedeploy_engines.runtimes.onnx_file import NmsInGraph
    from prunedeploy_export import with_nms, with_uint8_input

    model, name = onnx.load(path), path.stem
    if uint8:
        model, name = with_uint8_input(model), f"{name}.uint8"
    if nms:
        model, name = with_nms(model, NmsInGraph(0.25, 0.45, 20)), f"{name}.nms"
    other = path.with_name(f"{name}.onnx")
    onnx.save(model, other)
    return other
