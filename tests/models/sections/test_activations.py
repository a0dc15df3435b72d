"""Activations against their formulas."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from models.arithmetic import FORMULAS
from prunedeploy.models import load_darknet
from prunedeploy.models.sections.activations import activate
from prunedeploy_engines.errors import DarknetFormatError
from pruning.darknets import HEAD, conv, network, random_network


@pytest.mark.parametrize("activation", FORMULAS)
def test_activations_equal_their_formulas(activation: str) -> None:
    x = np.linspace(-6, 6, 121)
    ours = activate(torch.from_numpy(x.copy()), activation).numpy()
    np.testing.assert_allclose(ours, FORMULAS[activation](x), rtol=1e-6, atol=1e-9)


# Those that OpenCV reads from a cfg.
@pytest.mark.parametrize("activation", ["linear", "leaky", "relu", "mish", "swish", "logistic", "tanh"])
def test_activations_equal_opencvs(tmp_path: Path, activation: str) -> None:
    model = random_network(network(conv(8, 3, activation=activation), HEAD[0], f"{HEAD[1]} num=1", size=32))
    model.save(tmp_path / "x.cfg", tmp_path / "x.weights")
    net = cv2.dnn.readNetFromDarknet(str(tmp_path / "x.cfg"), str(tmp_path / "x.weights"))
    image = np.random.default_rng(0).random((1, 3, 32, 32), dtype=np.float32)
    net.setInput(image)
    theirs = net.forward("conv_1")
    with torch.no_grad():
        (ours,) = model(torch.from_numpy(image))
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-4, atol=1e-4)


def test_a_slope_of_its_own_is_a_key_that_darknet_does_not_have(tmp_path: Path) -> None:
    cfg = network(conv(8, 3) + " leaky_slope=0.25", conv(8), "shortcut from=0 activation=leaky leaky_slope=0.5", *HEAD)
    assert [getattr(layer, "activation", None) for layer in cfg.layers[:3]] == ["leaky:0.25", "leaky", "leaky:0.5"]
    assert cfg.not_for_darknet == "the cfg is not for Darknet, which has no leaky_slope"
    model = random_network(cfg)
    model.save(tmp_path / "x.cfg", tmp_path / "x.weights")
    again = load_darknet(tmp_path / "x.cfg", tmp_path / "x.weights")
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(again(image), model(image), rtol=0, atol=0)
    both = network(conv(8, activation="h_swish"), conv(8) + " leaky_slope=0.2", *HEAD)
    assert both.not_for_darknet == "the cfg is not for Darknet, which has no h_swish, leaky_slope"
    assert network(conv(8) + " leaky_slope=0.1", *HEAD).not_for_darknet is None


@pytest.mark.parametrize(("activation", "slope"), [("relu", 0.2), ("leaky", 0), ("leaky", 1.5)])
def test_a_slope_that_means_nothing_is_refused(activation: str, slope: float) -> None:
    with pytest.raises(DarknetFormatError, match="give a slope between 0 and 1 beside activation=leaky"):
        network(f"{conv(8, activation=activation)} leaky_slope={slope}", *HEAD)


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(ValueError, match="gelu"):
        activate(torch.zeros(1), "gelu")
