"""A twin with other weights: what the exporter makes of them, bit for bit, with the gradient of a plain formula."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from export.networks import folded, random_images, random_network
from export.precisions import every_block
from prunedeploy.models import Darknet
from prunedeploy_export import Quantiser, onnx_from_torch
from prunedeploy_export.gates.twin import check_twin
from prunedeploy_export.precision.files import Calibration
from prunedeploy_export.precision.quantisation import weight_scales
from prunedeploy_export.twin.network import OnnxTwin
from prunedeploy_export.twin.weights import filter_scales, rounded

ACTIVATIONS = ("uint8", "int8")


def int8_file(network: Darknet, folder: Path, activations: str, kept: Calibration | None = None) -> Calibration:
    """Write ``fp32.onnx`` and ``int8.onnx`` of a network; what the second one was calibrated to."""
    onnx_from_torch(folded(network), folder / "fp32.onnx")
    images = random_images(network.cfg, 4, 0)
    quantiser = Quantiser(folder / "fp32.onnx", images, seed=0, threads=1, sensitivity_images=1, kept=kept)
    _, record = quantiser.write(folder / "int8.onnx", activations)  # type: ignore[arg-type]
    return Calibration(quantiser.ranges(activations), record.skipped)  # type: ignore[arg-type]


def weights_of(network: Darknet) -> dict[str, torch.Tensor]:
    """Folded weights by the names of their constants."""
    return {
        f"layer{index}/{part}": values
        for index, pair in folded(network).folded.items()
        for part, values in zip(("weight", "bias"), pair, strict=True)
    }


@pytest.mark.parametrize("activations", ACTIVATIONS)
def test_other_weights_are_rounded_as_the_exporter_rounds_them(activations: str, tmp_path: Path) -> None:
    """Weights that moved, exported again with the ranges kept, against the first file's twin that is given them."""
    before, after = (tmp_path / name for name in ("before", "after"))
    network = random_network(every_block("leaky"), seed=3)
    calibration = int8_file(network, before, activations)
    with torch.no_grad():
        for layer in network.cfg.convolutions:
            conv, generator = network.conv(layer.index), torch.Generator().manual_seed(layer.index)
            conv.weight += 0.1 * conv.weight.abs().mean() * torch.randn(conv.weight.shape, generator=generator)
        network.conv(2).weight[3] = 0  # a filter that is dead, and one that is all but dead beside its bias
        network.conv(4).weight[1] *= 1e-12
    assert int8_file(network, after, activations, kept=calibration) == calibration
    twin, expected = OnnxTwin(before / "int8.onnx"), OnnxTwin(after / "int8.onnx")
    images, weights = torch.from_numpy(random_images(network.cfg, 4, 1)), weights_of(network)
    given = twin.with_weights(weights)
    for found in (twin(images, weights), given(images)):
        for head, other in zip(found, expected(images), strict=True):
            assert torch.equal(head, other)
    own = dict(expected.named_buffers())
    for name, value in given.named_buffers():
        assert torch.equal(value.flatten(), own[name].flatten()), name
    # And that is what the engine computes.
    assert check_twin(given, after / "int8.onnx", images.numpy(), threads=1)[0].values > 1000


@pytest.mark.parametrize("activations", ACTIVATIONS)
def test_its_own_weights_change_nothing_and_a_copy_leaves_it_alone(activations: str, tmp_path: Path) -> None:
    network = random_network(every_block("leaky"), seed=3)
    int8_file(network, tmp_path, activations)
    twin, images = OnnxTwin(tmp_path / "int8.onnx"), torch.from_numpy(random_images(network.cfg, 2, 1))
    before = twin(images)
    other = twin.with_weights({name: 2 * values for name, values in weights_of(network).items()})
    assert not torch.equal(other(images)[0], before[0])
    for head, same, again in zip(before, twin(images, weights_of(network)), twin(images), strict=True):
        assert torch.equal(head, same)
        assert torch.equal(head, again)


def test_filter_scales_are_the_exporters() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 5, 3, 3, generator=generator) * torch.logspace(-38, 2, 64).view(-1, 1, 1, 1)
    weight[7] = 0
    bias = torch.randn(64, generator=generator)
    smallest = np.abs(bias.double().numpy()) / (0.01 * 2.0**30)
    for found, expected in (
        (filter_scales(weight), weight_scales(weight.double().numpy())),
        (filter_scales(weight, bias), weight_scales(weight.double().numpy())),
        (filter_scales(weight, bias, 0.01), weight_scales(weight.double().numpy(), smallest)),
    ):
        assert np.array_equal(found.numpy(), expected)


def test_rounding_by_hand() -> None:
    """Filter 0 has the scale 2.54 / 127 = 0.02: 0.031 is 1.55 steps, -0.01 half a step, which goes to the even 0."""
    weight = torch.tensor([[2.54, 0.031, -0.0101], [0.5, -1.27, 0.004]], requires_grad=True)
    steps = rounded(weight, filter_scales(weight), 127)
    assert steps.steps.tolist() == [[127.0, 2.0, -1.0], [50.0, -127.0, 0.0]]
    torch.testing.assert_close(steps.scale.flatten(), torch.tensor([0.02, 0.01]))
    (steps.real * torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])).sum().backward()
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))


def by_hand(weight: torch.Tensor, bias: torch.Tensor, step: float, round_bias: bool) -> list[torch.Tensor]:
    """Fake-quantised weight and bias as x + (q(x) - x).detach(), the usual way to write a straight-through gradient."""
    scale = (weight.detach().abs().amax((1, 2, 3)) / 127).view(-1, 1, 1, 1)
    rounded_weight = (weight / scale).round().clamp(-127, 127) * scale
    found = [weight + (rounded_weight - weight).detach()]
    bias_scale = scale.flatten() * step
    rounded_bias = (bias / bias_scale).round() * bias_scale if round_bias else bias
    return [*found, bias + (rounded_bias - bias).detach()]


CONV = "[convolutional]\nfilters={}\nsize=3\nstride=1\npad=1\nactivation=leaky\n"
NET = "[net]\nheight=16\nwidth=16\nchannels=3\n\n" + "\n".join(
    [CONV.format(8), CONV.format(6), "[convolutional]\nfilters=7\nsize=1\nstride=1\nactivation=linear\n",
     "[yolo]\nmask=0\nanchors=4,6\nclasses=2\nnum=1\n"]
)  # fmt: skip


@pytest.mark.parametrize("activations", ACTIVATIONS)
def test_gradients_are_those_of_a_plain_formula(activations: str, tmp_path: Path) -> None:
    """Of weights, biases and images, against PyTorch's fake quantisation of activations and `by_hand` of weights."""
    network = random_network(NET, seed=5)
    int8_file(network, tmp_path, activations)
    twin = OnnxTwin(tmp_path / "int8.onnx")
    images = torch.from_numpy(random_images(network.cfg, 4, 2))
    leaves = {name: values.clone().requires_grad_(True) for name, values in weights_of(network).items()}
    direction = torch.randn(4, 7, 16, 16, generator=torch.Generator().manual_seed(0))

    def constant(name: str) -> float:
        return float(twin.get_buffer(twin._held[name][0]))

    low, high = (0, 255) if activations == "uint8" else (-128, 127)

    def fake(x: torch.Tensor, tensor: str) -> torch.Tensor:
        if f"{tensor}/quantised" not in twin.quantised:
            return x
        scale, zero = constant(f"{tensor}/scale"), int(constant(f"{tensor}/zero_point"))
        return torch.fake_quantize_per_tensor_affine(x, scale, zero, low, high)

    def plain(x: torch.Tensor) -> torch.Tensor:
        for number in range(2):
            weight, bias = leaves[f"layer{number}/weight"], leaves[f"layer{number}/bias"]
            source = "images" if number == 0 else "layer0"
            if any(one.weight_read != one.weight for one in twin.convolutions if one.weight == f"layer{number}/weight"):
                x = fake(x, source)
                weight, bias = by_hand(weight, bias, constant(f"{source}/scale"), activations == "uint8")
            x = fake(F.conv2d(x, weight, bias, padding=1), f"layer{number}/conv")
            x = fake(F.leaky_relu(x, 0.1), f"layer{number}")
        return F.conv2d(x, leaves["layer2/weight"], leaves["layer2/bias"])

    assert sum(one.weight_read != one.weight for one in twin.convolutions) >= 1
    seen = []
    compute: Callable[[torch.Tensor], torch.Tensor]
    for compute in (lambda x: twin(x, leaves)[0], plain):
        x = images.clone().requires_grad_(True)
        seen.append(torch.autograd.grad((compute(x) * direction).sum(), [x, *leaves.values()]))
    for name, one, other in zip(["images", *leaves], *seen, strict=True):
        assert float(other.abs().max()) > 0, name
        # All but what lies behind a value on the very edge of two steps, which may round either way.
        assert float((one - other).norm() / other.norm()) < 2e-2, name
