"""A file's twin against ONNX Runtime, layer by layer, and its gradient against PyTorch's own fake quantisation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import ModelProto, helper, numpy_helper

from export.networks import ODD_CFG, folded, random_images, random_network
from export.precision.test_sections import SECTIONS
from export.precisions import every_block, run, true_ranges
from head_networks import SECTIONS as HEADS
from head_networks import head_cfg
from prunedeploy.models import Darknet, parse_cfg
from prunedeploy_engines.errors import EngineError, GateError
from prunedeploy_engines.runtimes.onnx_file import NmsInGraph
from prunedeploy_engines.runtimes.onnxruntime.runner import OnnxRuntimeRunner
from prunedeploy_export import onnx_from_torch, with_nms, with_uint8_input
from prunedeploy_export.gates.twin import check_twin
from prunedeploy_export.graph.edit import set_metadata, write_model
from prunedeploy_export.precision.half import to_half_precision
from prunedeploy_export.precision.quantisation import plan_quantisation, quantise
from prunedeploy_export.twin.network import OnnxTwin, raw_heads
from pruning import darknets

Files = Callable[[Darknet], Path]
PRECISIONS = ("fp32", "fp16", "uint8", "int8")


def in_precision(model: ModelProto, precision: str, images: np.ndarray) -> ModelProto:
    """A network in half precision, or in 8 bits with these activations."""
    if precision == "fp32":
        return model
    if precision == "fp16":
        model = to_half_precision(model)
        set_metadata(model, precision="fp16")
        return model
    plan = plan_quantisation(model, precision)  # type: ignore[arg-type]
    model = quantise(model, plan, true_ranges(model, plan.tensors, images))
    set_metadata(model, precision="int8")
    return model


def written(network: Darknet, precision: str, folder: Path, seed: int = 0) -> tuple[Path, np.ndarray]:
    """A network's file, and the images that 8 bits were calibrated with and two that go beyond."""
    images = random_images(network.cfg, 4, seed)
    source = onnx.load(onnx_from_torch(folded(network), folder / "fp32.onnx").path)
    path = folder / f"{precision}.onnx"
    write_model(in_precision(source, precision, images[:2] * np.float32(0.8)), path)
    return path, images


def networks() -> dict[str, Darknet]:
    """Every kind of layer, activation and head, by name."""
    found = {"odd": random_network(ODD_CFG), "mish": random_network(every_block("mish"))}
    for name in ("leaky", "relu", "swish", "relu6", "elu", "selu", "tanh", "hard_mish", "logistic", "h_swish"):
        found[name] = random_network(every_block(name))
    gate = darknets.conv(8, 3)
    for name, sections in SECTIONS.items():
        found[name] = darknets.random_network(darknets.network(gate, *sections, gate, *darknets.HEAD, size=20))
    for kind in HEADS:
        found[f"head {kind}"] = random_network(head_cfg(kind))
    return found


NETWORKS = networks()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", list(NETWORKS))
def test_twin_computes_what_onnx_runtime_computes(name: str, precision: str, tmp_path: Path) -> None:
    path, images = written(NETWORKS[name], precision, tmp_path)
    twin = OnnxTwin(path)
    assert bool(twin.quantised) == (precision in {"uint8", "int8"})
    parity, _ = check_twin(twin, path, images, threads=1)
    assert parity.images == 4
    assert (parity.values > 1000) == bool(twin.quantised)
    # And on images within the ranges the engine's heads are those of the network itself, up to rounding.
    with torch.no_grad():
        inside = torch.from_numpy(images[:2] * np.float32(0.8))
        reference, heads = folded(NETWORKS[name])(inside), twin(inside)
    apart = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(heads, reference, strict=True))
    assert apart < {"fp32": 2e-5, "fp16": 1e-2}.get(precision, 0.3)


def test_whole_network_in_8_bits_is_the_engine_to_the_last_step(tmp_path: Path) -> None:
    """Sums of integers are exact, so nothing is left to chance but the one product behind each of them."""
    path, images = written(random_network(every_block("leaky"), seed=3), "uint8", tmp_path)
    twin, model = OnnxTwin(path), onnx.load(path)
    engine = run(model, images, twin.heads)
    with torch.no_grad():
        for head, expected in zip(twin(torch.from_numpy(images)), engine, strict=True):
            np.testing.assert_allclose(head.numpy(), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_uint8_images_and_suppression_change_nothing_before_the_heads(tmp_path: Path) -> None:
    plain, images = written(random_network(every_block("leaky")), "uint8", tmp_path)
    model = with_nms(with_uint8_input(onnx.load(plain)), NmsInGraph(0.1, 0.45, 10))
    path = tmp_path / "device.onnx"
    write_model(model, path)
    twin, on_lattice = OnnxTwin(path), (np.rint(images * 255) / np.float32(255)).astype(np.float32)
    assert twin.uint8_input
    assert twin.heads == OnnxTwin(plain).heads
    assert twin.input_shape == (3, 32, 32)
    with torch.no_grad():
        rounded = twin(torch.from_numpy(images))  # as a runner rounds float images
        expected = OnnxTwin(plain)(torch.from_numpy(on_lattice))
    for head, other in zip(rounded, expected, strict=True):
        assert torch.equal(head, other)
    assert check_twin(twin, path, images, threads=1)[0].heads < 1e-5


def fake_quantised(x: torch.Tensor, model: ModelProto, tensor: str) -> torch.Tensor:
    """By PyTorch's own operator, with the file's scale and zero point."""
    constants = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    scale, zero_point = constants[f"{tensor}/scale"], constants[f"{tensor}/zero_point"]
    limits = np.iinfo(zero_point.dtype)
    return torch.fake_quantize_per_tensor_affine(x, float(scale), int(zero_point), limits.min, limits.max)


def weights_of(model: ModelProto, node: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A convolution's weight and bias as real numbers."""
    constants = {one.name: numpy_helper.to_array(one).astype(np.float64) for one in model.graph.initializer}
    found = []
    for part in ("weight", "bias"):
        values = constants[f"{node}/{part}"]
        if f"{node}/{part}/scale" in constants:
            values = values * constants[f"{node}/{part}/scale"].reshape(-1, *([1] * (values.ndim - 1)))
        found.append(torch.from_numpy(values.astype(np.float32)))
    return found[0], found[1]


@pytest.mark.parametrize("activations", ["uint8", "int8"])
def test_gradient_is_that_of_pytorchs_fake_quantisation(activations: str, tmp_path: Path) -> None:
    network = random_network(head_cfg("yolo"), seed=4)
    path, images = written(network, activations, tmp_path)
    model, twin = onnx.load(path), OnnxTwin(path)
    pairs = {node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}

    def maybe(x: torch.Tensor, tensor: str) -> torch.Tensor:
        return fake_quantised(x, model, tensor) if tensor in pairs else x

    def by_hand(x: torch.Tensor) -> torch.Tensor:
        """conv, leaky; conv, leaky; maxpool; conv: `head_networks.head_cfg`."""
        x = maybe(x, "images")
        for number in range(2):
            weight, bias = weights_of(model, f"layer{number}")
            x = maybe(F.conv2d(x, weight, bias, stride=2, padding=1), f"layer{number}/conv")
            x = maybe(F.leaky_relu(x, 0.1), f"layer{number}")
        x = maybe(F.max_pool2d(x, 2, 2), "layer2")
        return maybe(F.conv2d(x, *weights_of(model, "layer3")), "layer3")

    seen = []
    direction = torch.randn(4, 16, 4, 6, generator=torch.Generator().manual_seed(0))
    for compute in (lambda x: twin(x)[0], by_hand):
        x = torch.from_numpy(images).requires_grad_(True)
        head = compute(x)
        (gradient,) = torch.autograd.grad((head * direction).sum(), x)
        seen.append((head.detach(), gradient))
    (head, gradient), (expected, expected_gradient) = seen
    assert len(pairs) >= 3
    # All but what lies behind a value on the very edge of two steps, which may round either way.
    for one, other in ((head, expected), (gradient, expected_gradient)):
        assert float(((one - other).abs() < 1e-4 * other.abs().max()).float().mean()) > 0.99
    assert float((gradient == 0).float().mean()) > 0.01  # pixels beyond the range of the first tensor, or of no use


def test_backward_pass_changes_nothing_and_reaches_the_images_only(tmp_path: Path) -> None:
    path, images = written(random_network(every_block("leaky")), "uint8", tmp_path)
    twin = OnnxTwin(path)
    assert not list(twin.parameters())
    before = [(value._version, value.clone()) for value in twin.buffers()]
    x = torch.from_numpy(images).requires_grad_(True)
    sum(head.square().sum() for head in twin(x)).backward()  # type: ignore[union-attr]
    assert x.grad is not None
    assert bool((x.grad.flatten(1).abs().sum(1) > 0).all())
    for value, (version, content) in zip(twin.buffers(), before, strict=True):
        assert value._version == version
        assert torch.equal(value, content)


def test_gate_finds_a_scale_that_is_off(tmp_path: Path) -> None:
    path, images = written(random_network(every_block("leaky")), "uint8", tmp_path)
    twin = OnnxTwin(path)
    scale = twin.get_buffer(twin._held["layer0/conv/scale"][0])
    scale *= 1.05
    with pytest.raises(GateError, match=r"uint8.onnx: its twin in PyTorch computes layer0/conv/quantised \d+ steps"):
        check_twin(twin, path, images, threads=1)


def test_gate_finds_a_head_that_is_off(tmp_path: Path) -> None:
    path, images = written(random_network(every_block("leaky")), "fp16", tmp_path)
    twin = OnnxTwin(path)
    bias = twin.get_buffer(twin._held["layer9/bias/half"][0])
    bias[0] += 1
    with pytest.raises(GateError, match="its twin in PyTorch computes layer9/single"):
        check_twin(twin, path, images, threads=1)


def test_wrong_images_are_refused_with_both_shapes(tmp_path: Path) -> None:
    path, _ = written(random_network(every_block("leaky")), "uint8", tmp_path)
    with pytest.raises(ValueError, match=r"\(B, 3, 32, 32\), got \(1, 3, 16, 32\)"):
        OnnxTwin(path)(torch.zeros(1, 3, 16, 32))


def changed(path: Path, change: Callable[[ModelProto], Any]) -> Path:
    model = onnx.load(path)
    change(model)
    onnx.save(model, path)
    return path


def test_unknown_operator_is_refused_by_name_and_node(tmp_path: Path) -> None:
    path, _ = written(random_network(every_block("leaky")), "fp32", tmp_path)
    pool = next(node for node in onnx.load(path).graph.node if node.op_type == "MaxPool").name

    def other_pool(model: ModelProto) -> None:
        node = next(node for node in model.graph.node if node.name == pool)
        node.op_type = "LpPool"

    with pytest.raises(EngineError, match=f"fp32.onnx: node '{pool}' is a LpPool, which has no twin in PyTorch"):
        OnnxTwin(changed(path, other_pool))


def test_unknown_attribute_is_refused_by_name_and_node(tmp_path: Path) -> None:
    path, _ = written(random_network(every_block("leaky")), "fp32", tmp_path)

    def rounds_up(model: ModelProto) -> None:
        node = next(node for node in model.graph.node if node.op_type == "MaxPool")
        node.attribute.append(helper.make_attribute("ceil_mode", 1))

    with pytest.raises(EngineError, match=r"node 'layer1', a MaxPool, is not as prunedeploy writes it .*ceil_mode"):
        OnnxTwin(changed(path, rounds_up))


def test_unknown_way_of_resizing_is_refused_when_the_file_is_read(tmp_path: Path) -> None:
    path, _ = written(random_network(every_block("leaky")), "fp32", tmp_path)

    def smooth(model: ModelProto) -> None:
        node = next(node for node in model.graph.node if node.op_type == "Resize")
        next(one for one in node.attribute if one.name == "mode").s = b"linear"

    with pytest.raises(EngineError, match=r"cannot be computed in PyTorch \(linear, asymmetric, floor"):
        OnnxTwin(changed(path, smooth))


def test_operators_behind_the_heads_do_not_matter(tmp_path: Path) -> None:
    """Decoding is the cfg's business."""
    path, images = written(random_network(every_block("leaky")), "fp32", tmp_path)
    before = OnnxTwin(path)(torch.from_numpy(images))

    def other_exp(model: ModelProto) -> None:
        next(node for node in model.graph.node if node.op_type == "Exp").op_type = "Sqrt"

    after = OnnxTwin(changed(path, other_exp))(torch.from_numpy(images))
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_foreign_detectors_have_no_heads(shared: Path) -> None:
    path = shared / "real" / "onnx" / "yolov8n-160.onnx"
    assert raw_heads(onnx.load(path).graph) == ()
    with pytest.raises(EngineError, match=r"has no detection heads that prunedeploy knows; give an ONNX file that"):
        OnnxTwin(path)


def test_engine_is_what_the_runner_runs(tmp_path: Path) -> None:
    """`check_twin` looks into the network, which changes nothing of what ONNX Runtime computes."""
    network = random_network(every_block("leaky"), seed=2)
    path, images = written(network, "uint8", tmp_path)
    from prunedeploy.models import decode

    with OnnxRuntimeRunner(path, threads=1) as engine, torch.no_grad():
        boxes, scores = decode(OnnxTwin(path)(torch.from_numpy(images)), network)
        for own, found in zip((boxes, scores), engine.infer(images), strict=True):
            np.testing.assert_allclose(own.numpy(), found, rtol=0, atol=1e-5 * np.abs(found).max())


def test_grey_networks_have_twins(tmp_path: Path) -> None:
    cfg = parse_cfg(every_block("leaky").replace("channels=3", "channels=1"))
    path, images = written(random_network(cfg), "uint8", tmp_path)
    assert check_twin(OnnxTwin(path), path, images, threads=1)[0].images == 4
