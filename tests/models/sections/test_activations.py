"""Activations against their formulas."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from models.arithmetic import FORMULAS
from prunedeploy.models.sections.activations import activate
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


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(ValueError, match="gelu"):
        activate(torch.zeros(1), "gelu")
