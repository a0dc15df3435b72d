"""The gate of n:m sparsity on real files, counted again from the bytes of the file in plain loops."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper

from prunedeploy.models import Darknet, FoldedDarknet
from prunedeploy.pruning import NmPattern, Pattern
from prunedeploy.pruning.semi_structured import dense_convolutions, nm_ratio
from prunedeploy_engines.errors import EngineError, GateError
from prunedeploy_export import Quantiser, fp16_from_fp32, onnx_from_torch
from prunedeploy_export.gates.sparsity import check_onnx_pattern
from pruning.darknets import HEAD, conv, cut_by, network, random_network

CFG = network(conv(16, 3), conv(24, 3, groups=2), conv(32, activation="mish"), *HEAD)
DENSE = ("layer0", "layer3")


def cut(pattern: NmPattern) -> Darknet:
    model = random_network(CFG, seed=1)
    scores = {layer.index: model.conv(layer.index).weight.detach() for layer in CFG.convolutions}
    return cut_by(Pattern(nm_ratio(CFG, pattern), pattern=pattern), model, scores)[0].network


def exported(model: Darknet, folder: Path) -> Path:
    return onnx_from_torch(FoldedDarknet(model), folder / "model.onnx").path


def worst_block(path: Path, layer: int, m: int) -> int:
    """Most weights that are not zero in a block of m channels, from the file's own bytes."""
    tensor = next(t for t in onnx.load(path).graph.initializer if t.name == f"layer{layer}/weight")
    filters, channels, height, width = tensor.dims
    values = np.frombuffer(tensor.raw_data, dtype="<f4")
    cells, worst = height * width, 0
    for k in range(filters):
        for start in range(0, channels, m):
            for cell in range(cells):
                block = [values[(k * channels + c) * cells + cell] for c in range(start, start + m)]
                worst = max(worst, sum(value != 0 for value in block))
    return worst


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (1, 2), (2, 8), (5, 8)])
def test_the_pattern_survives_folding_and_export(tmp_path: Path, n: int, m: int) -> None:
    path = exported(cut(NmPattern(n, m)), tmp_path)
    assert {f"layer{index}" for index in dense_convolutions(CFG, NmPattern(n, m))} == set(DENSE)
    counts = check_onnx_pattern(path, n, m, dense=DENSE)
    assert list(counts) == ["layer0", "layer1", "layer2", "layer3"]
    # 24 x 8 x 9 weights of layer 1, which has two groups of 8 channels, and 32 x 24 of layer 2.
    for index, weights in ((1, 1728), (2, 768)):
        count = counts[f"layer{index}"]
        assert (count.weights, count.blocks, count.broken) == (weights, weights // m, 0)
        assert count.zeros == weights // m * (m - n)
        assert worst_block(path, index, m) == n
    assert (counts["layer0"].blocks, counts["layer0"].zeros) == (0, 0)
    assert (counts["layer3"].blocks, counts["layer3"].broken) == (6 * 32 // m, 6 * 32 // m)


def test_one_weight_too_many_in_the_file_is_found_and_named(tmp_path: Path) -> None:
    path = exported(cut(NmPattern(2, 4)), tmp_path)
    model = onnx.load(path)
    tensor = next(t for t in model.graph.initializer if t.name == "layer2/weight")
    weight = numpy_helper.to_array(tensor).copy()
    weight[tuple(np.argwhere(weight == 0)[0])] = 1e-20
    tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
    onnx.save(model, path)
    with pytest.raises(GateError, match=r"model.onnx: .* pattern 2:4: layer2 \(1 of 192 blocks\); prune again"):
        check_onnx_pattern(path, 2, 4, dense=DENSE)
    check_onnx_pattern(path, 3, 4, dense=DENSE)


def test_a_dense_network_and_a_finer_pattern_do_not_pass(tmp_path: Path) -> None:
    with pytest.raises(GateError, match=r"layer1 .*, layer2 .*"):
        check_onnx_pattern(exported(random_network(CFG), tmp_path), 2, 4, dense=DENSE)
    path = exported(cut(NmPattern(2, 4)), tmp_path)
    with pytest.raises(GateError, match=r"layer1 \(432 of 432 blocks\), layer2 \(192 of 192"):
        check_onnx_pattern(path, 1, 4, dense=DENSE)
    with pytest.raises(GateError, match=r"layer0 \(0 of 0 blocks\)"):
        check_onnx_pattern(path, 2, 4, dense=["layer3"])


def test_a_gate_that_looks_at_nothing_does_not_pass(tmp_path: Path) -> None:
    path = exported(cut(NmPattern(2, 4)), tmp_path)
    with pytest.raises(GateError, match="no convolution has the pattern"):
        check_onnx_pattern(path, 2, 4, dense=[f"layer{index}" for index in range(4)])


def test_fp16_keeps_the_pattern(tmp_path: Path) -> None:
    path = exported(cut(NmPattern(2, 4)), tmp_path)
    half = tmp_path / "model.fp16.onnx"
    fp16_from_fp32(path, half)
    stored = {tuple(tensor.dims): tensor.data_type for tensor in onnx.load(half).graph.initializer}
    assert stored[24, 8, 3, 3] == TensorProto.FLOAT16
    assert check_onnx_pattern(half, 2, 4, dense=DENSE) == check_onnx_pattern(path, 2, 4, dense=DENSE)


@pytest.mark.parametrize("activations", ["uint8", "int8"])
def test_int8_keeps_the_pattern(tmp_path: Path, activations: Literal["uint8", "int8"]) -> None:
    path = exported(cut(NmPattern(2, 4)), tmp_path)
    images = torch.rand(4, *CFG.input_shape, generator=torch.Generator().manual_seed(0)).numpy()
    Quantiser(path, images, seed=0, threads=1).write(tmp_path / "int8.onnx", activations)
    stored = {tensor.name: tensor.data_type for tensor in onnx.load(tmp_path / "int8.onnx").graph.initializer}
    assert stored["layer1/weight"] == TensorProto.INT8
    before = check_onnx_pattern(path, 2, 4, dense=DENSE)
    for name, count in check_onnx_pattern(tmp_path / "int8.onnx", 2, 4, dense=DENSE).items():
        assert count.blocks == before[name].blocks
        assert count.zeros >= before[name].zeros, "small weights may become zero, none may come back"


def in_8_bits(zero_point: int | list[int]) -> Callable[[ModelProto], None]:
    """Store layer 1's weights as integers, so that ``zero_point`` stands for 0."""

    def change(model: ModelProto) -> None:
        node = next(n for n in model.graph.node if n.op_type == "Conv" and n.input[1] == "layer1/weight")
        tensor = next(t for t in model.graph.initializer if t.name == "layer1/weight")
        weight = numpy_helper.to_array(tensor)
        zeros = np.broadcast_to(np.array(zero_point), len(weight)).astype(np.uint8)
        steps = np.where(weight == 0, 0, np.where(weight > 0, 50, -50)) + zeros.reshape(-1, 1, 1, 1)
        tensor.CopyFrom(numpy_helper.from_array(steps.astype(np.uint8), tensor.name))
        per_filter = isinstance(zero_point, list)
        scale = np.full(len(weight), 0.01, np.float32) if per_filter else np.float32(0.01)
        stored = zeros if per_filter else zeros[0]
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(scale), "scale"))
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(stored), "zero"))
        axis = {"axis": 0} if per_filter else {}
        pair = helper.make_node("DequantizeLinear", [tensor.name, "scale", "zero"], ["dequantised"], **axis)
        model.graph.node.insert(0, pair)
        node.input[1] = "dequantised"

    return change


@pytest.mark.parametrize("zero_point", [0, 128, [100 + i for i in range(24)]], ids=["none", "one", "per filter"])
def test_8_bits_are_read_with_their_zero_point(tmp_path: Path, zero_point: int | list[int]) -> None:
    path = exported(cut(NmPattern(2, 4)), tmp_path)
    changed = onnx.load(path)
    in_8_bits(zero_point)(changed)
    eight = tmp_path / "eight.onnx"
    onnx.save(changed, eight)
    onnx.checker.check_model(onnx.load(eight), full_check=True)
    assert check_onnx_pattern(eight, 2, 4, dense=DENSE) == check_onnx_pattern(path, 2, 4, dense=DENSE)


def test_files_that_cannot_be_read_and_weights_that_are_computed(tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.onnx"
    garbage.write_bytes(b"no onnx at all")
    with pytest.raises(EngineError, match=r"garbage\.onnx"):
        check_onnx_pattern(garbage, 2, 4)
    path = exported(cut(NmPattern(2, 4)), tmp_path)
    model = onnx.load(path)
    model.graph.node.insert(0, helper.make_node("Neg", ["layer1/weight"], ["computed"]))
    next(n for n in model.graph.node if "layer1/weight" in n.input and n.op_type == "Conv").input[1] = "computed"
    onnx.save(model, path)
    with pytest.raises(EngineError, match="the weights of layer1/conv are not constants"):
        check_onnx_pattern(path, 2, 4, dense=DENSE)
