"""int8 files compute what integer arithmetic computes, and runtimes find in them what they can fuse."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from export.precisions import (
    every_block,
    executed_operators,
    network,
    one_convolution,
    run,
    true_ranges,
    write_network,
)
from prunedeploy_engines.builder.from_onnx import engine_from_onnx
from prunedeploy_engines.runtimes.tensorrt.library import installed_version
from prunedeploy_export.graph.edit import head_convolutions, read_model, set_metadata, write_model
from prunedeploy_export.precision.calibration import Range
from prunedeploy_export.precision.quantisation import plan_quantisation, quantise, weight_scales

ACTIVATIONS = ("leaky", "relu", "swish", "mish", "linear", "logistic")


def constants_of(model: ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def convolve(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Stride 1 on ``(N, I, H, W)`` that is padded already, one output at a time, in the type of the inputs."""
    outputs, _, size, _ = weight.shape
    count, _, height, width = x.shape
    y = np.zeros((count, outputs, height - size + 1, width - size + 1), x.dtype)
    for n, o, i, j in np.ndindex(y.shape):
        y[n, o, i, j] = (x[n, :, i : i + size, j : j + size] * weight[o]).sum()
    return y


def padded(x: np.ndarray, value: int) -> np.ndarray:
    return np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=value)


def layer(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights whose filters have sizes from 0.01 to 10, biases, and images that are not around 0."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(5, 3, 3, 3)) * np.array([0.01, 0.1, 1, 10, 1])[:, None, None, None]
    bias = rng.normal(size=5) * np.array([0.01, 0.1, 1, 10, 30])
    images = (rng.random((2, 3, 6, 6)) * 3 - 1).astype(np.float32)
    return weight.astype(np.float32), bias.astype(np.float32), images


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("with_bias", [True, False])
def test_unsigned_convolution_is_integer_arithmetic(seed, with_bias):
    weight, bias, images = layer(seed)
    bias = bias if with_bias else np.zeros_like(bias)
    model = one_convolution(weight, bias if with_bias else None)
    ranges = true_ranges(model, ["images", "conv"], images)
    int8 = quantise(model, plan_quantisation(model, "uint8"), ranges)
    assert executed_operators(int8)["QLinearConv"] == 1
    (found,) = run(int8, images, ["conv/dequantised"])

    # Jacob et al. 2018, equations 7 and following: sums of products in int32, then one factor per filter.
    scale_x = (images.max() - images.min()) / 255
    zero_x = np.rint(-images.min() / scale_x).astype(np.int64)
    x = np.clip(np.rint(images / scale_x) + zero_x, 0, 255).astype(np.int64)
    scale_w = np.abs(weight).max(axis=(1, 2, 3)) / 127
    w = np.rint(weight / scale_w[:, None, None, None]).astype(np.int64)
    b = np.rint(bias / (scale_w * scale_x)).astype(np.int64)
    total = convolve(padded(x, zero_x) - zero_x, w) + b[:, None, None]
    assert np.abs(total).max() < 2**31
    low, high = ranges["conv"].low, ranges["conv"].high
    scale_y = (high - low) / 255
    zero_y = np.rint(-low / scale_y)
    factor = (scale_x * scale_w / scale_y)[:, None, None]
    y = np.clip(np.rint(total * factor) + zero_y, 0, 255)
    steps = (found / scale_y + zero_y) - y
    assert np.abs(steps).max() < 1.01
    assert (np.abs(steps) > 0.01).mean() < 0.02  # only where a rounding of exactly a half goes one way or the other
    # And it is about the convolution: half a step from the rounding, the rest from weights and pixels.
    (exact,) = run(model, images, ["conv"])
    assert np.abs(found - exact).max() < 3 * scale_y


@pytest.mark.parametrize("seed", range(3))
def test_signed_convolution_is_integer_arithmetic(seed):
    weight, bias, images = layer(seed)
    model = one_convolution(weight, bias)
    int8 = quantise(model, plan_quantisation(model, "int8"), true_ranges(model, ["images"], images))
    (found,) = run(int8, images, ["conv"])

    scale_x = np.abs(images).max() / 127
    x = np.clip(np.rint(images / scale_x), -127, 127).astype(np.int64)
    scale_w = np.abs(weight).max(axis=(1, 2, 3)) / 127
    w = np.rint(weight / scale_w[:, None, None, None]).astype(np.int64)
    total = convolve(padded(x, 0), w)
    expected = total * (scale_x * scale_w)[:, None, None] + bias[:, None, None]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def quantised_network(folder, activation: str, activations: str, skip: tuple[str, ...] = ()):
    model = write_network(every_block(activation), folder / "model.onnx")
    images = np.random.default_rng(0).random((2, 3, 32, 32), dtype=np.float32)
    heads = [node.name for node in head_convolutions(model.graph)]
    plan = plan_quantisation(model, activations, [*heads, *skip])
    return model, quantise(model, plan, true_ranges(model, plan.tensors, images)), plan, images


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("activations", ["uint8", "int8"])
def test_file_computes_about_what_its_parent_computes(activation, activations, tmp_path):
    model, int8, _, images = quantised_network(tmp_path, activation, activations)
    onnx.checker.check_model(int8, full_check=True)
    for before, after in zip(
        run(model, images, ["boxes", "scores"]), run(int8, images, ["boxes", "scores"]), strict=True
    ):
        assert 0 < np.abs(before - after).max() < 0.12 * np.abs(before).max()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("skip", [(), ("layer0/conv",), ("layer2/conv", "layer6/conv")])
def test_every_chosen_convolution_is_one_in_onnx_runtime(activation, skip, tmp_path):
    skip = tuple(name if activation != "linear" else name.removesuffix("/conv") for name in skip)
    _, int8, plan, _ = quantised_network(tmp_path, activation, "uint8", skip)
    operators = executed_operators(int8)
    assert len(plan.convolutions) == 7 - len(skip)
    assert operators["QLinearConv"] == len(plan.convolutions)
    assert operators["Conv"] + operators["FusedConv"] == 2 + len(skip)  # heads, and those left out


def test_what_moves_values_moves_8_bits_behind_leaky_convolutions(tmp_path):
    _, int8, plan, _ = quantised_network(tmp_path, "leaky", "uint8")
    operators = executed_operators(int8)
    assert operators["QuantizeLinear"] == 1  # of the images
    assert operators["DequantizeLinear"] == 2  # before the heads
    assert operators["QLinearLeakyRelu"] == 7
    assert operators["QLinearAdd"] == operators["QLinearConcat"] == 1
    # Pooling, slicing and upsampling keep the scale of what they read, or they could not stay in 8 bits.
    constants = constants_of(int8)
    assert {"layer1", "layer7", "layer12"} <= set(plan.same_as)
    for tensor, source in plan.same_as.items():
        for parameter in ("scale", "zero_point"):
            assert constants[f"{tensor}/{parameter}"] == constants[f"{source}/{parameter}"]


@pytest.mark.parametrize("activations", ["uint8", "int8"])
@pytest.mark.parametrize("activation", ["leaky", "swish"])
def test_second_implementation_of_the_operators_agrees(activation, activations, tmp_path):
    _, int8, _, images = quantised_network(tmp_path, activation, activations)
    copy = ModelProto.FromString(int8.SerializeToString())
    copy.opset_import[0].version = 19  # the evaluator knows no older DequantizeLinear; the others are the same
    reference = ReferenceEvaluator(copy).run(None, {"images": images[:1]})
    found = run(int8, images[:1], ["boxes", "scores"], optimise=False)
    for ours, theirs in zip(found, reference, strict=True):
        # A rounding that goes the other way moves single values by a step of their tensor.
        assert np.abs(ours - theirs).max() < 0.02 * np.abs(theirs).max()
        assert np.median(np.abs(ours - theirs)) < 1e-3 * np.abs(theirs).max()


def test_signed_file_has_what_tensorrt_asks_for(tmp_path):
    _, int8, plan, _ = quantised_network(tmp_path, "leaky", "int8")
    constants = constants_of(int8)
    convolutions = {node.name: node for node in int8.graph.node if node.op_type == "Conv"}
    producers = {name: node for node in int8.graph.node for name in node.output}
    for node in int8.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = constants[node.input[2]]
            assert zero.dtype == np.int8
            assert not zero.any()
    for name in plan.convolutions:
        source, weight, bias = (producers.get(tensor) for tensor in convolutions[name].input)
        assert source.op_type == weight.op_type == "DequantizeLinear"
        assert bias is None  # a float constant
        assert constants[convolutions[name].input[2]].dtype == np.float32
        assert helper.get_node_attr_value(weight, "axis") == 0
        # Nothing stands between the convolution and its activation, so that they stay one kernel.
        readers = [node.op_type for node in int8.graph.node if convolutions[name].output[0] in node.input]
        assert readers == ["LeakyRelu"]


@pytest.mark.skipif(
    installed_version("tensorrt_rtx") is None, reason="needs tensorrt-rtx (pip install 'prunedeploy[rtx]')"
)
@pytest.mark.parametrize("activation", ["leaky", "relu", "swish", "mish"])
def test_tensorrt_builds_the_signed_file(activation, tmp_path):
    _, int8, plan, _ = quantised_network(tmp_path, activation, "int8")
    set_metadata(int8, precision="int8", class_names=json.dumps(["a", "b"]))
    write_model(int8, tmp_path / "int8.onnx")
    engine = engine_from_onnx(tmp_path / "int8.onnx", tmp_path / "out", target="sm86", precision="int8")
    assert engine.layers == {"int8": len(plan.convolutions), "fp32": 2}


@pytest.mark.parametrize("activations", ["uint8", "int8"])
def test_weights_have_a_scale_per_filter(activations, tmp_path):
    model, int8, plan, _ = quantised_network(tmp_path, "leaky", activations)
    before, after = constants_of(model), constants_of(int8)
    for name in plan.convolutions:
        weight = f"{name.removesuffix('/conv')}/weight"
        largest = np.abs(before[weight]).max(axis=(1, 2, 3))
        np.testing.assert_allclose(after[f"{weight}/scale"], largest / 127, rtol=1e-6)
        assert after[weight].dtype == np.int8
        assert (np.abs(after[weight]).max(axis=(1, 2, 3)) == 127).all()
        error = after[weight] * after[f"{weight}/scale"][:, None, None, None] - before[weight]
        assert (np.abs(error) <= 0.5001 * after[f"{weight}/scale"][:, None, None, None]).all()


def test_scales_are_those_of_onnx_runtimes_own_quantiser(tmp_path):
    quantization = pytest.importorskip("onnxruntime.quantization")
    model = write_network(every_block("leaky"), tmp_path / "model.onnx")
    images = np.random.default_rng(0).random((3, 3, 32, 32), dtype=np.float32)

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.left = list(images)

        def get_next(self):
            return {"images": self.left.pop(0)[None]} if self.left else None

    heads = [node.name for node in head_convolutions(model.graph)]
    quantization.quantize_static(
        tmp_path / "model.onnx",
        tmp_path / "theirs.onnx",
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        op_types_to_quantize=["Conv"],
        nodes_to_exclude=heads,
        calibrate_method=quantization.CalibrationMethod.MinMax,
    )
    theirs = constants_of(onnx.load(tmp_path / "theirs.onnx"))
    plan = plan_quantisation(model, "uint8", heads)
    ours = constants_of(quantise(model, plan, true_ranges(model, plan.tensors, images)))
    compared = 0
    for tensor in plan.tensors:
        if tensor not in plan.same_as and f"{tensor}_scale" in theirs:
            compared += 1
            np.testing.assert_allclose(ours[f"{tensor}/scale"], theirs[f"{tensor}_scale"], rtol=1e-5)
            assert abs(int(ours[f"{tensor}/zero_point"]) - int(theirs[f"{tensor}_zero_point"])) <= 1
    assert compared >= 8
    for number in (0, 2, 3, 4, 6, 8, 14):
        weight, bias = f"layer{number}/weight", f"layer{number}/bias"
        np.testing.assert_allclose(ours[f"{weight}/scale"], theirs[f"{weight}_scale"], rtol=1e-5)
        assert np.abs(ours[weight].astype(int) - theirs[f"{weight}_quantized"]).max() <= 1
        if plan.same_as.get(f"layer{number}") is None and number not in (2, 8):  # read what has its own scale
            np.testing.assert_allclose(ours[f"{bias}/scale"], theirs[f"{bias}_quantized_scale"], rtol=1e-5)


@pytest.mark.parametrize("activations", ["uint8", "int8"])
@pytest.mark.parametrize("size", [0.0, 1e-40, 1e-20, 1e-9])
def test_filter_that_training_has_killed_still_gives_its_bias(size, activations):
    # Its bias is 0.7, which in steps of weight scale * input scale is beyond int32 if the weights are tiny.
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(3, 3, 3, 3)), np.array([0.2, 0.7, -0.003])
    weight[1] *= size
    weight[2] = 0
    images = rng.random((2, 3, 6, 6), dtype=np.float32)
    model = one_convolution(weight, bias)
    with np.errstate(all="raise", under="ignore"):
        int8 = quantise(model, plan_quantisation(model, activations), true_ranges(model, ["images", "conv"], images))
    exact, found = (run(m, images, ["conv"])[0] for m in (model, int8))
    np.testing.assert_allclose(found[:, 1], exact[:, 1], rtol=1e-5)
    np.testing.assert_allclose(found[:, 2], exact[:, 2], rtol=1e-5)
    if activations == "uint8":
        assert executed_operators(int8)["QLinearConv"] == 1
        (integer,) = run(int8, images, ["conv/dequantised"])
        step = constants_of(int8)["conv/scale"]
        assert np.abs(integer[:, 1:] - exact[:, 1:]).max() < 0.51 * step


@pytest.mark.parametrize("low", [-0.1, -0.499, -0.501, -1.0, -254.4, -254.6])
def test_zero_point_is_the_nearest_step(low):
    # Of steps of 1: the lowest value that is kept lies at most half a step beside what was asked for.
    weight, bias, _ = layer(0)
    model = one_convolution(weight, bias)
    asked = Range(low, low + 255)
    constants = constants_of(quantise(model, plan_quantisation(model, "uint8"), {"images": asked, "conv": asked}))
    assert constants["images/scale"] == pytest.approx(1)
    assert constants["images/zero_point"] == round(-low)
    assert constants["images/zero_point"].dtype == np.uint8


def test_scale_of_weights_is_their_largest_by_127():
    weight = np.array([[[[0.5]], [[-2.54]]], [[[0.0]], [[0.0]]], [[[1e-44]], [[0.0]]]])
    np.testing.assert_allclose(weight_scales(weight), [0.02, 1, 1])
    np.testing.assert_allclose(weight_scales(weight, np.array([0.03, 1e-3, 0.0])), [0.03, 1e-3, 1])
    assert weight_scales(weight).dtype == np.float32


@pytest.mark.parametrize("activations", ["uint8", "int8"])
@pytest.mark.parametrize("found", [Range(0.0, 0.0), Range(0.0, 1e-44), Range(-1e-40, 1e-41), Range(-3.0, 0.0)])
def test_range_of_next_to_nothing_divides_by_nothing(found, activations):
    weight, bias, images = layer(0)
    model = one_convolution(weight, bias)
    with np.errstate(all="raise", under="ignore"):
        int8 = quantise(model, plan_quantisation(model, activations), {"images": found, "conv": found})
    constants = constants_of(int8)
    assert 0 < constants["images/scale"] < np.inf
    assert all(np.isfinite(values).all() for values in constants.values())
    assert np.isfinite(run(int8, images, ["conv"])[0]).all()


def test_what_is_left_out_computes_in_float(tmp_path):
    model, int8, plan, _ = quantised_network(tmp_path, "leaky", "uint8", ("layer3/conv", "layer4/conv"))
    before, after = constants_of(model), constants_of(int8)
    for number in (3, 4):
        np.testing.assert_array_equal(after[f"layer{number}/weight"], before[f"layer{number}/weight"])
        assert f"layer{number}/conv" not in plan.convolutions
        assert f"layer{number}" not in plan.operators
    # The sum of a float and an 8-bit value is a float one.
    assert "layer5" not in plan.operators


def test_plan_that_chooses_nothing_changes_nothing(tmp_path):
    model = write_network(every_block("leaky"), tmp_path / "model.onnx")
    names = [node.name for node in model.graph.node if node.op_type == "Conv"]
    for activations in ("uint8", "int8"):
        plan = plan_quantisation(model, activations, names)
        assert (plan.convolutions, plan.operators, plan.tensors) == ((), (), ())
        assert quantise(model, plan, {}).graph == model.graph


def test_source_is_not_changed_and_the_result_is_always_the_same(tmp_path):
    model, int8, plan, images = quantised_network(tmp_path, "mish", "uint8")
    before = read_model(tmp_path / "model.onnx")
    assert model == before
    again = quantise(model, plan, true_ranges(model, plan.tensors, images))
    assert again.SerializeToString(deterministic=True) == int8.SerializeToString(deterministic=True)


def test_output_that_a_convolution_gives_stays_float():
    rng = np.random.default_rng(0)
    model = network(
        [
            helper.make_node("Conv", ["images", "w"], ["boxes"], name="first", pads=[1, 1, 1, 1]),
            helper.make_node("Conv", ["boxes", "v"], ["scores"], name="second", pads=[1, 1, 1, 1]),
        ],
        {"images": ["batch", 3, 6, 6]},
        {"boxes": ["batch", 3, 6, 6], "scores": ["batch", 3, 6, 6]},
        {name: rng.normal(size=(3, 3, 3, 3)).astype(np.float32) for name in ("w", "v")},
    )
    images = rng.random((1, 3, 6, 6), dtype=np.float32)
    plan = plan_quantisation(model, "uint8", ["second"])
    int8 = quantise(model, plan, true_ranges(model, plan.tensors, images))
    onnx.checker.check_model(int8, full_check=True)
    assert [value.type.tensor_type.elem_type for value in int8.graph.output] == [TensorProto.FLOAT] * 2
