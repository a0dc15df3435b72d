"""fp16 files: layers in half precision, decoding and both ends in float32."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, numpy_helper

from export.networks import ODD_CFG
from export.precisions import every_block, run, write_network
from prunedeploy_engines.errors import EngineError
from prunedeploy_engines.runtimes.onnx_file import NmsInGraph
from prunedeploy_export import fp16_from_fp32, with_nms, with_uint8_input
from prunedeploy_export.graph.edit import read_model, write_model
from prunedeploy_export.precision.half import to_half_precision

# A head that a later layer reads, and a yolo section right behind a shortcut, one of whose inputs a convolution reads.
ENTANGLED_CFG = """[net]
height=32
width=32
channels=3

[convolutional]
filters=14
size=3
stride=2
pad=1
activation=leaky

[convolutional]
filters=14
size=3
stride=1
pad=1
activation=linear

[shortcut]
from=-2
activation=linear

[yolo]
mask=0,1
anchors=4,6, 9,12, 14,10, 20,24
classes=2
num=4

[route]
layers=-2,1

[convolutional]
filters=14
size=1
activation=linear

[yolo]
mask=2,3
anchors=4,6, 9,12, 14,10, 20,24
classes=2
num=4
"""

# Pooling with more padding than its window, for which the graph has a Pad of minus infinity.
PADDED_CFG = """[net]
height=32
width=32
channels=3

[convolutional]
filters=8
size=3
stride=2
pad=1
activation=leaky

[maxpool]
size=2
stride=2
padding=4

[convolutional]
filters=14
size=1
activation=linear

[yolo]
mask=0,1
anchors=4,6, 9,12, 14,10, 20,24
classes=2
num=4
"""

CFGS = {
    **{activation: every_block(activation) for activation in ("leaky", "relu", "swish", "mish", "logistic")},
    "odd": ODD_CFG,
    "entangled": ENTANGLED_CFG,
}


def types_of(model: ModelProto) -> dict[str, int]:
    """Element type of every tensor, as shape inference finds it."""
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    values = (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
    return {value.name: value.type.tensor_type.elem_type for value in values} | {
        tensor.name: tensor.data_type for tensor in model.graph.initializer
    }


@pytest.mark.parametrize("name", CFGS)
def test_layers_are_half_and_decoding_is_single(name, tmp_path):
    single = write_network(CFGS[name], tmp_path / "model.onnx")
    half = to_half_precision(single)
    onnx.checker.check_model(half, full_check=True)
    types = types_of(half)
    convolutions = [node for node in half.graph.node if node.op_type == "Conv"]
    assert len(convolutions) == sum(node.op_type == "Conv" for node in single.graph.node)
    for node in convolutions:
        assert [types[tensor] for tensor in (*node.input, *node.output)] == [TensorProto.FLOAT16] * 4
    decoding = [node for node in half.graph.node if node.name.startswith(("head", "decode", "boxes", "scores"))]
    assert len(decoding) > 10
    for node in decoding:
        assert {types[tensor] for tensor in (*node.input, *node.output)} <= {TensorProto.FLOAT, TensorProto.INT64}
    for value in (*half.graph.input, *half.graph.output):
        assert value.type.tensor_type.elem_type == TensorProto.FLOAT


@pytest.mark.parametrize("name", CFGS)
def test_half_precision_agrees_with_single(name, tmp_path):
    single = write_network(CFGS[name], tmp_path / "model.onnx")
    images = np.random.default_rng(0).random(
        (2, *(dim.dim_value for dim in single.graph.input[0].type.tensor_type.shape.dim[1:])), dtype=np.float32
    )
    # Half precision rounds by at most 2^-11 = 5e-4 of a value. The networks are at most 9 layers deep and every layer
    # rounds its weights, inputs and output; errors of single values average out in the sums, so that 20 roundings in
    # a row are more than enough: 1e-2 of the largest value.
    for before, after in zip(
        run(single, images, ["boxes", "scores"]),
        run(to_half_precision(single), images, ["boxes", "scores"]),
        strict=True,
    ):
        assert after.dtype == np.float32
        assert 0 < np.abs(before - after).max() < 1e-2 * np.abs(before).max()


def test_weights_are_rounded_to_the_nearest(tmp_path):
    single = write_network(every_block("leaky"), tmp_path / "model.onnx")
    before = {tensor.name: numpy_helper.to_array(tensor) for tensor in single.graph.initializer}
    after = {tensor.name: numpy_helper.to_array(tensor) for tensor in to_half_precision(single).graph.initializer}
    for number in (0, 2, 3, 4, 6, 8, 9, 14, 15):
        for kind in ("weight", "bias"):
            name = f"layer{number}/{kind}"
            assert name not in after  # no float32 copy stays in the file
            assert after[f"{name}/half"].dtype == np.float16
            bits = 2.0**-11
            np.testing.assert_allclose(after[f"{name}/half"].astype(np.float32), before[name], rtol=bits, atol=2**-25)


def test_file_is_half_as_large_and_says_what_it_is(tmp_path):
    write_network(every_block("leaky"), tmp_path / "model.onnx")
    record = fp16_from_fp32(tmp_path / "model.onnx", tmp_path / "half.onnx")
    weights = sum(
        numpy_helper.to_array(tensor).size
        for tensor in read_model(tmp_path / "model.onnx").graph.initializer
        if tensor.name.startswith("layer")
    )
    # Two bytes less for each weight; the casts and longer names take some back.
    saved = (tmp_path / "model.onnx").stat().st_size - record.bytes
    assert 0 <= 2 * weights - saved < 1500
    entries = {entry.key: entry.value for entry in read_model(tmp_path / "half.onnx").metadata_props}
    assert entries == {"input_size": "[32, 32]", "precision": "fp16"}


def test_source_is_not_changed_and_the_result_is_always_the_same(tmp_path):
    single = write_network(ODD_CFG, tmp_path / "model.onnx")
    first = to_half_precision(single)
    assert single == read_model(tmp_path / "model.onnx")
    assert first.SerializeToString(deterministic=True) == to_half_precision(single).SerializeToString(
        deterministic=True
    )


@pytest.mark.parametrize(("constant", "layer"), [("layer3/weight", "layer3/conv"), ("layer15/bias", "layer15")])
@pytest.mark.parametrize("value", [66000.0, -1e6])
def test_weight_that_does_not_fit_is_refused_with_its_layer(constant, layer, value, tmp_path):
    model = write_network(every_block("leaky"), tmp_path / "model.onnx")
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == constant)
    values = numpy_helper.to_array(tensor).copy()
    values.flat[3] = value
    tensor.CopyFrom(numpy_helper.from_array(values, constant))
    write_model(model, tmp_path / "large.onnx")
    with pytest.raises(EngineError, match=f"{layer}: a value of .* of {constant} does not fit into fp16") as caught:
        fp16_from_fp32(tmp_path / "large.onnx", tmp_path / "half.onnx")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "half.onnx").exists()


def test_padding_with_minus_infinity_stays_so(tmp_path):
    model = write_network(PADDED_CFG, tmp_path / "model.onnx")
    assert any(node.op_type == "Pad" for node in model.graph.node)
    padding = next(tensor for tensor in to_half_precision(model).graph.initializer if "infinity" in tensor.name)
    assert padding.data_type == TensorProto.FLOAT16
    assert numpy_helper.to_array(padding) == -np.inf
    # At the border a window sees nothing but padding, and what comes of it is no number, in either precision.
    images = np.random.default_rng(0).random((1, 3, 32, 32), dtype=np.float32)
    before, after = (run(network, images, ["scores"])[0] for network in (model, to_half_precision(model)))
    assert np.isfinite(before).any()
    np.testing.assert_allclose(after, before, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("changes", [(with_uint8_input,), (lambda model: with_nms(model, NmsInGraph(0.3, 0.5, 9)),)])
def test_half_precision_of_a_file_that_was_changed_before(changes, tmp_path):
    model = write_network(every_block("leaky"), tmp_path / "model.onnx")
    for change in changes:
        model = change(model)
    write_model(model, tmp_path / "changed.onnx")
    fp16_from_fp32(tmp_path / "changed.onnx", tmp_path / "half.onnx")
    half = read_model(tmp_path / "half.onnx")
    assert {types_of(half)[node.input[1]] for node in half.graph.node if node.op_type == "Conv"} == {
        TensorProto.FLOAT16
    }
    assert [value.type.tensor_type.elem_type for value in half.graph.input] == [
        value.type.tensor_type.elem_type for value in model.graph.input
    ]
