"""The ONNX file computes what the network computes, for every kind of section."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from effort import examples
from export.networks import folded, torch_outputs
from prunedeploy.models import Darknet, load_darknet
from prunedeploy_engines.builder.from_onnx import engine_from_onnx
from prunedeploy_engines.runtimes.onnxruntime.runner import OnnxRuntimeRunner
from prunedeploy_engines.runtimes.opening import unavailable_reason
from prunedeploy_engines.runtimes.openvino.process import OpenVinoProcess
from prunedeploy_engines.runtimes.tensorrt.library import installed_version
from prunedeploy_export import onnx_from_torch
from pruning.darknets import HEAD, RandomCfg, conv, network, random_cfgs, random_network

GATE = conv(8, activation="logistic")


def check_onnx(model: Darknet, size: int, folder: Path) -> onnx.ModelProto:
    """Compare both outputs on images, relative to the largest value of the batch."""
    file = onnx_from_torch(folded(model), folder / "model.onnx")
    images = np.random.default_rng(0).random((3, 3, size, size), dtype=np.float32)
    with OnnxRuntimeRunner(file.path, threads=1, allow_spinning=False) as runner:
        found = runner.infer(images)
    for expected, value in zip(torch_outputs(model, images), found, strict=True):
        assert float(np.abs(expected - value).max()) <= 1e-5 * max(1.0, float(np.abs(expected).max()))
    return onnx.load(file.path)


ATTENTION = (
    *("route layers=0", conv(4), "route layers=0", conv(4), "route layers=0", conv(8)),
    "attention from=2,4,6 heads=2 scale=0.5",
)

SECTIONS: list[tuple[tuple[str, ...], set[str]]] = [
    (("local_avgpool size=3 stride=2",), {"AveragePool"}),
    (("local_avgpool size=4 stride=3 padding=3",), {"AveragePool"}),
    (("local_avgpool size=2 stride=2 padding=0",), {"AveragePool"}),
    (("local_avgpool size=3 stride_x=1 stride_y=2",), {"AveragePool"}),
    (("dropout probability=.5", "cost", "contrastive"), set()),
    (("reorg stride=2",), {"Reshape", "SpaceToDepth"}),
    (("reorg stride=2 reverse=1",), {"DepthToSpace"}),
    (("reorg3d stride=2",), {"SpaceToDepth"}),
    ((conv(16), "reorg3d stride=2 reverse=1"), {"Reshape", "DepthToSpace"}),
    ((GATE, "sam from=-2"), {"Mul"}),
    ((GATE, "sam from=-2 activation=mish"), {"Mul"}),
    (("avgpool", GATE, "scale_channels from=-3"), {"Mul", "GlobalAveragePool"}),
    ((conv(1, activation="logistic"), "scale_channels from=-2 scale_wh=1"), {"Mul"}),
    (ATTENTION, {"Reshape", "Mul", "Transpose", "MatMul", "Softmax"}),
]


@pytest.mark.parametrize(("sections", "operators"), SECTIONS)
def test_onnx_computes_what_torch_computes(sections: tuple[str, ...], operators: set[str], tmp_path: Path) -> None:
    model = random_network(network(conv(8, 3), *sections, conv(8, 3), *HEAD, size=20))
    layers = [node for node in check_onnx(model, 20, tmp_path).graph.node if node.name.startswith("layer")]
    plain = {"Conv", "LeakyRelu", "Sigmoid", "Softplus", "Tanh"}
    assert {node.op_type for node in layers} - plain == operators


@pytest.mark.skipif(unavailable_reason("openvino") is not None, reason="needs openvino (prunedeploy[openvino])")
@pytest.mark.parametrize("sections", [sections for sections, _ in SECTIONS])
def test_openvino_computes_it_too(sections: tuple[str, ...], tmp_path: Path) -> None:
    model = random_network(network(conv(8, 3), *sections, conv(8, 3), *HEAD, size=20))
    file = onnx_from_torch(folded(model), tmp_path / "model.onnx")
    images = np.random.default_rng(0).random((1, 3, 20, 20), dtype=np.float32)
    with OpenVinoProcess(file.path, threads=1) as runner:
        found = runner.infer(images)
    for expected, value in zip(torch_outputs(model, images), found, strict=True):
        assert float(np.abs(expected - value).max()) <= 1e-4 * max(1.0, float(np.abs(expected).max()))


@pytest.mark.skipif(installed_version("tensorrt_rtx") is None, reason="needs tensorrt-rtx (prunedeploy[rtx])")
@pytest.mark.parametrize("sections", [sections for sections, _ in SECTIONS])
def test_tensorrt_rtx_builds_an_engine_of_it(sections: tuple[str, ...], tmp_path: Path) -> None:
    model = random_network(network(conv(8, 3), *sections, conv(8, 3), *HEAD, size=20))
    onnx_from_torch(folded(model), tmp_path / "model.onnx")
    engine = engine_from_onnx(tmp_path / "model.onnx", tmp_path / "engines", target="sm86", precision="fp32")
    assert engine.layers["fp32"] >= len(model.cfg.convolutions)


@settings(max_examples=examples(40), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(graph=random_cfgs(attention=True), seed=st.integers(0, 99))
def test_onnx_of_random_networks_computes_what_torch_computes(graph: RandomCfg, seed: int) -> None:
    model = random_network(graph.cfg, seed)
    with tempfile.TemporaryDirectory() as folder:
        check_onnx(model, graph.size, Path(folder))


@settings(max_examples=examples(40), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(graph=random_cfgs(attention=True), seed=st.integers(0, 99))
def test_weight_files_of_random_networks_come_back_bit_for_bit(graph: RandomCfg, seed: int) -> None:
    model = random_network(graph.cfg, seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model.save(folder / "a.cfg", folder / "a.weights")
        again = load_darknet(folder / "a.cfg", folder / "a.weights")
        again.save(folder / "b.cfg", folder / "b.weights")
        assert (folder / "a.weights").read_bytes() == (folder / "b.weights").read_bytes()
        assert again.cfg.layers == graph.cfg.layers
    state = again.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
