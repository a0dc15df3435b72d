"""Section shortcut against Darknet's own loop and OpenCV: widths that differ, several layers, learned weights."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from export.networks import random_network as fitted_network
from prunedeploy.config import TrainingConfig
from prunedeploy.models import load_darknet, read_cfg
from prunedeploy.models.sections import Shortcut
from prunedeploy.pruning import shrink
from prunedeploy.training.optimisation import ParameterSet, make_optimizer
from prunedeploy_engines.errors import DarknetFormatError
from pruning.darknets import HEAD, conv, network
from pruning.option_networks import half_of_every_group, random_options_network

TYPES = ["none", "per_feature", "per_channel"]


def darknets_shortcut(
    inputs: list[np.ndarray], weights: np.ndarray | None, normalisation: str, eps: float = 1e-4
) -> np.ndarray:
    """Darknet's shortcut_multilayer_cpu, one flat index at a time: ``(C, H, W)`` arrays, the previous layer first."""
    first, *others = (x.ravel() for x in inputs)
    out = np.zeros(first.size)
    layer_step = 0 if weights is None else weights.size // len(inputs)
    for index in range(first.size):
        factors = [1.0] * len(inputs)
        if weights is not None:
            step = first.size // layer_step
            factors = [float(weights.ravel()[index // step + i * layer_step]) for i in range(len(inputs))]
            if normalisation == "relu":
                total = eps + sum(max(w, 0.0) for w in factors)
                factors = [max(w, 0.0) / total for w in factors]
            elif normalisation == "softmax":
                total = eps + sum(math.exp(w - max(factors)) for w in factors)
                factors = [math.exp(w - max(factors)) / total for w in factors]
        out[index] = first[index] * factors[0]
        for other, factor in zip(others, factors[1:], strict=True):
            if index < other.size:
                out[index] += other[index] * factor
    return out.reshape(inputs[0].shape)


@pytest.mark.parametrize("normalisation", ["none", "relu", "softmax"])
@pytest.mark.parametrize("weights_type", TYPES)
@pytest.mark.parametrize("widths", [(6, 6), (6, 4), (4, 6), (5, 3, 8), (5, 5, 2)])
def test_a_shortcut_equals_darknets_loop(widths: tuple[int, ...], weights_type: str, normalisation: str) -> None:
    *others, first = (conv(width) for width in (*widths[1:], widths[0]))
    text = f"shortcut from={','.join(map(str, range(len(others))))} weights_type={weights_type}"
    model = random_options_network(
        network(*others, first, f"{text} weights_normalization={normalisation}", *HEAD, size=4)
    ).double()
    layer = model.cfg.layers[len(widths)]
    assert isinstance(layer, Shortcut)
    generator = np.random.default_rng(0)
    inputs = [generator.normal(size=(width, 4, 4)) for width in widths]
    own = model.layer_weights().get(layer.index, {})
    with torch.no_grad():
        ours = layer.run([torch.from_numpy(x)[None] for x in inputs], own)[0].numpy()
    weights = own["weights"].detach().numpy() if own else None
    assert (weights is None) == (weights_type == "none")
    np.testing.assert_allclose(ours, darknets_shortcut(inputs, weights, normalisation), rtol=1e-9, atol=1e-12)


@pytest.mark.shared
def test_a_genuine_network_that_adds_layers_of_other_widths_equals_opencvs_whole_and_pruned(
    shared: Path, tmp_path: Path
) -> None:
    cfg = read_cfg(shared / "real" / "darknet-cfg" / "yolov3-tiny-prn.cfg")
    assert (128, 256) in [layer.in_channels for layer in cfg.layers if isinstance(layer, Shortcut)]
    whole = fitted_network(cfg)
    image = np.random.default_rng(1).random((1, *cfg.input_shape), dtype=np.float32)
    for model in (whole, shrink(whole, half_of_every_group(whole))):
        model.save(tmp_path / "x.cfg", tmp_path / "x.weights")
        net = cv2.dnn.readNetFromDarknet(str(tmp_path / "x.cfg"), str(tmp_path / "x.weights"))
        net.setInput(image)
        theirs = net.forward([f"conv_{head.inputs[0]}" for head in cfg.heads])
        with torch.no_grad():
            ours = model(torch.from_numpy(image))
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(one.numpy(), other, rtol=0, atol=1e-4 * np.abs(other).max())


@pytest.mark.parametrize(("weights_type", "count"), [("per_feature", 3), ("per_layer", 3), ("per_channel", 3 * 8)])
def test_weights_stand_in_the_file_in_cfg_order_and_come_back_bit_for_bit(
    tmp_path: Path, weights_type: str, count: int
) -> None:
    cfg = network(conv(8), conv(8), conv(8), f"shortcut from=0,1 weights_type={weights_type}", *HEAD)
    model = random_options_network(cfg)
    model.save(tmp_path / "x.cfg", tmp_path / "x.weights")
    values = np.fromfile(tmp_path / "x.weights", "<f4", offset=20)
    before = sum(value.numel() for index in range(3) for value in model.conv(index).state_dict().values())
    behind = 8 * 6 + 6  # the head's convolution
    assert values.size == before + count + behind
    own = model.layer_weights()[3]["weights"].detach().numpy()
    np.testing.assert_array_equal(values[before : before + count], own.ravel())
    load_darknet(tmp_path / "x.cfg", tmp_path / "x.weights").save(tmp_path / "y.cfg", tmp_path / "y.weights")
    assert (tmp_path / "x.weights").read_bytes() == (tmp_path / "y.weights").read_bytes()


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_weights_are_trained_and_do_not_decay(optimizer: str) -> None:
    model = load_darknet(network(conv(8), conv(8), "shortcut from=-2 weights_type=per_channel", *HEAD)).train()
    weights = model.layer_weights()[2]["weights"]
    assert bool((weights == 1).all())  # what Darknet starts with
    settings = TrainingConfig(optimizer=optimizer, lr=0.1, weight_decay=0.5, warmup_steps=0)
    optimiser = make_optimizer([ParameterSet(tuple(model.parameters()))], settings)
    (group,) = [one for one in optimiser.param_groups if any(weights is tensor for tensor in one["params"])]
    assert group["weight_decay"] == 0.0
    model(torch.rand(2, 3, 16, 16))[0].square().sum().backward()
    optimiser.step()
    assert bool((weights != 1).all())


def test_maps_of_different_sizes_are_refused_and_so_are_unknown_weights() -> None:
    with pytest.raises(DarknetFormatError, match=r":\d+: adds maps of different sizes, 8x8 and 16x16 of layer 0"):
        network(conv(8), conv(8) + " stride=2", "shortcut from=-2", *HEAD)
    with pytest.raises(DarknetFormatError, match=r":\d+: unknown weights_type 'each'; .*per_channel"):
        network(conv(8), conv(8), "shortcut from=-2 weights_type=each", *HEAD)
