"""What `contents` counts against onnx's own reading, figures that others publish, and a plain sum."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from detector_variants import save_conv_detector
from export.networks import ODD_CFG, folded, random_network
from prunedeploy_engines.errors import EngineError
from prunedeploy_export import onnx_from_torch
from prunedeploy_export.graph.contents import OnnxTensor, contents_of, read_contents

# FLOPs at 640 x 640 in units of 1e9, as ultralytics publishes them; a MAC is two of them.
PUBLISHED_GFLOPS = {"yolov8n": 8.7, "yolov5nu": 7.7, "yolo11n": 6.5}


@pytest.mark.parametrize("name", PUBLISHED_GFLOPS)
def test_genuine_files_have_the_parameters_that_onnx_reads_and_the_flops_that_are_published(
    shared: Path, name: str
) -> None:
    path = shared / "real" / "onnx" / f"{name}-160.onnx"
    found = read_contents(path)
    arrays = [numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer]
    assert found.parameters == sum(array.size for array in arrays if array.dtype == np.float32)
    assert found.weights == sum(array.size for array in arrays if array.ndim == 4)
    # At 160 x 160 there are a sixteenth as many cells; attention, which grows faster, is small.
    assert found.macs is not None
    assert 2 * found.macs * 16 / 1e9 == pytest.approx(PUBLISHED_GFLOPS[name], abs=0.06)
    assert (found.precision, found.opsets, found.ir_version) == ("fp32", {"ai.onnx": 17}, 8)
    assert found.inputs == (OnnxTensor("images", "float", (1, 3, 160, 160)),)
    assert found.outputs == (OnnxTensor("output0", "float", (1, 84, 525)),)


def test_our_file_costs_what_its_cfg_costs(tmp_path: Path) -> None:
    """The cfg counts cell by cell from its options, the file from inferred shapes; groups and dilation are in both."""
    model = random_network(ODD_CFG)
    onnx_from_torch(folded(model), tmp_path / "odd.onnx")
    found = read_contents(tmp_path / "odd.onnx")
    read = [layer for layer in model.cfg.convolutions if layer.index != 18]  # which no layer reads: the file is without
    assert found.macs == sum(math.prod((*layer.weight_shape, *layer.out_shape[1:])) for layer in read)
    assert found.weights == sum(math.prod(layer.weight_shape) for layer in read)
    assert found.operators["Conv"] == len(read)
    assert found.producer.startswith("prunedeploy ")


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_the_precision_is_that_of_the_weights(tmp_path: Path, precision: str) -> None:
    found = read_contents(save_conv_detector(tmp_path / "model.onnx", precision))
    assert found.precision == precision
    # 8 x 8 cells of three channels to three means, then 3 x 3 channels in each of 4 x 6 cells.
    assert found.weights == 3 * 3 * 8 * 8 + 3 * 3
    assert found.macs == 4 * 6 * (3 * 3 * 8 * 8 + 3 * 3)


def model_of(*nodes: onnx.NodeProto, shape: list[int | str], **stored: np.ndarray) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def weights(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


@pytest.mark.parametrize(
    ("model", "macs"),
    [
        # Each of 2 x 5 x 5 results is a sum of 4 x 3 x 3 products.
        (model_of(helper.make_node("Conv", ["x", "w"], ["y"]), shape=[1, 4, 7, 7], w=weights(2, 4, 3, 3)), 50 * 36),
        # In two groups each is a sum of half as many.
        (
            model_of(helper.make_node("Conv", ["x", "w"], ["y"], group=2), shape=["N", 4, 7, 7], w=weights(2, 2, 3, 3)),
            50 * 18,
        ),
        # Each of 4 x 7 x 7 values is spread over 2 x 3 x 3.
        (
            model_of(helper.make_node("ConvTranspose", ["x", "w"], ["y"]), shape=[1, 4, 7, 7], w=weights(4, 2, 3, 3)),
            196 * 18,
        ),
        (model_of(helper.make_node("MatMul", ["x", "w"], ["y"]), shape=[1, 6, 5], w=weights(5, 8)), 6 * 8 * 5),
        # x is 5 x 6 and used as 6 x 5.
        (
            model_of(helper.make_node("Gemm", ["x", "w"], ["y"], transA=1), shape=[5, 6], w=weights(5, 8)),
            6 * 8 * 5 // 5,  # of one image in a batch of five
        ),
        # Of a batch of four, the same for one image.
        (model_of(helper.make_node("Conv", ["x", "w"], ["y"]), shape=[4, 4, 7, 7], w=weights(2, 4, 3, 3)), 50 * 36),
        (model_of(helper.make_node("Conv", ["x", "w"], ["y"]), shape=[1, 4, "h", 7], w=weights(2, 4, 3, 3)), None),
        (model_of(helper.make_node("Relu", ["x"], ["y"]), shape=[1, 4, 7, 7]), 0),
    ],
)
def test_macs_worked_out_by_hand(model: onnx.ModelProto, macs: int | None) -> None:
    before = model.SerializeToString()
    assert contents_of(model).macs == macs
    assert model.SerializeToString() == before


def test_shapes_and_indices_are_no_parameters_and_branches_are_looked_into() -> None:
    branch = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["b"])],
        "branch",
        [],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weights(2, 4, 1, 1), "w")],
    )
    model = model_of(
        helper.make_node("If", ["flag"], ["y"], then_branch=branch, else_branch=branch),
        helper.make_node("Mine", ["y"], ["z"], domain="people.own"),
        shape=[1, 4, 7, 7],
        flag=np.array(True),
        shape_of_something=np.array([1, 2, 3]),
    )
    found = contents_of(model)
    assert found.operators == {"Conv": 2, "If": 1, "people.own.Mine": 1}
    assert found.values == {"float": 8, "int64": 3, "bool": 1}
    assert found.parameters == 9


@pytest.mark.parametrize("keep", [0, 10, 500, -1])
def test_a_file_that_is_cut_off_is_one_line(tmp_path: Path, keep: int) -> None:
    whole = save_conv_detector(tmp_path / "whole.onnx").read_bytes()
    (tmp_path / "cut.onnx").write_bytes(whole[:keep])
    with pytest.raises(EngineError, match="not an ONNX") as caught:
        read_contents(tmp_path / "cut.onnx")
    assert "\n" not in str(caught.value)
