"""Small networks for the tests of fp16 and int8, and what ONNX Runtime makes of a file."""

from __future__ import annotations

import functools
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from export.networks import folded, random_network
from prunedeploy_export import onnx_from_torch
from prunedeploy_export.graph.edit import expose
from prunedeploy_export.precision.calibration import Range


def every_block(activation: str) -> str:
    """A cfg with pooling, a residual, a route of two, a slice, an upsampling and two heads, at 32 x 32."""
    conv = f"[convolutional]\nbatch_normalize=1\nactivation={activation}\npad=1\n"
    head = "[convolutional]\nfilters=14\nsize=1\nactivation=linear\n"
    yolo = "[yolo]\nmask={}\nanchors=4,6, 9,12, 14,10, 20,24\nclasses=2\nnum=4\n"
    return "\n".join(
        [
            "[net]\nheight=32\nwidth=32\nchannels=3\n",
            f"{conv}filters=8\nsize=3\nstride=1\n",  # 0
            "[maxpool]\nsize=2\nstride=2\n",
            f"{conv}filters=16\nsize=3\nstride=2\n",  # 2: 8 x 8
            f"{conv}filters=8\nsize=1\nstride=1\n",
            f"{conv}filters=16\nsize=3\nstride=1\n",
            "[shortcut]\nfrom=-3\nactivation=linear\n",  # 5
            f"{conv}filters=16\nsize=3\nstride=2\n",  # 6: 4 x 4
            "[route]\nlayers=-1\ngroups=2\ngroup_id=1\n",
            f"{conv}filters=8\nsize=3\nstride=1\n",
            head,  # 9
            yolo.format("2,3"),
            "[route]\nlayers=-3\n",
            "[upsample]\nstride=2\n",
            "[route]\nlayers=-1,5\n",
            f"{conv}filters=12\nsize=3\nstride=1\n",
            head,  # 15
            yolo.format("0,1"),
        ]
    )


@functools.cache
def exported(cfg: str, seed: int = 1) -> bytes:
    """Content of the fp32 file of a random network."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        onnx_from_torch(folded(random_network(cfg, seed=seed)), path)
        return path.read_bytes()


def write_network(cfg: str, path: Path, seed: int = 1) -> ModelProto:
    """Write a random network in fp32 and read it back."""
    path.write_bytes(exported(cfg, seed))
    return onnx.load(path)


def one_convolution(weight: np.ndarray, bias: np.ndarray | None = None, *, size: int = 6) -> ModelProto:
    """``images`` (N, I, size, size) to ``conv`` by a convolution with padding, and to ``boxes`` by a Sigmoid."""
    constants = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    return network(
        [
            helper.make_node("Conv", ["images", *constants], ["conv"], name="conv", pads=[weight.shape[-1] // 2] * 4),
            helper.make_node("Sigmoid", ["conv"], ["boxes"], name="boxes"),
        ],
        {"images": ["batch", weight.shape[1], size, size]},
        {"boxes": ["batch", len(weight), size, size]},
        {name: values.astype(np.float32) for name, values in constants.items()},
    )


def network(
    nodes: Sequence[NodeProto],
    inputs: Mapping[str, Sequence],
    outputs: Mapping[str, Sequence],
    constants: Mapping[str, np.ndarray],
    opset: int = 17,
) -> ModelProto:
    """A checked model of float32 inputs and outputs."""
    graph = helper.make_graph(
        list(nodes),
        "network",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(np.asarray(values), name) for name, values in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def run(model: ModelProto, images: np.ndarray, outputs: Sequence[str], *, optimise: bool = True) -> list[np.ndarray]:
    """Values of these tensors on one thread of ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.x64quantprecision", "1")  # as our runner does
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(expose(model, outputs).SerializeToString(), options)
    return session.run(list(outputs), {session.get_inputs()[0].name: images})


def true_ranges(model: ModelProto, tensors: Sequence[str], images: np.ndarray) -> dict[str, Range]:
    """Smallest and largest value of each tensor on these images."""
    values = run(model, images, tensors)
    return {name: Range(float(array.min()), float(array.max())) for name, array in zip(tensors, values, strict=True)}


def executed_operators(model: ModelProto) -> Counter[str]:
    """Operators of the graph that ONNX Runtime executes on a CPU, after it has optimised it."""
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.optimized_model_filepath = str(Path(folder, "optimised.onnx"))
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        optimised = onnx.load(options.optimized_model_filepath)
    return Counter(node.op_type for node in optimised.graph.node)
