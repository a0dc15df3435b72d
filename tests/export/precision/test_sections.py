"""fp16 and 8 bits of networks with the sections that newer and older cfgs have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from export.networks import folded
from export.precisions import run, true_ranges
from prunedeploy_export import onnx_from_torch
from prunedeploy_export.precision.half import to_half_precision
from prunedeploy_export.precision.quantisation import Activations, plan_quantisation, quantise
from pruning.darknets import HEAD, conv, network, random_network

GATE = conv(8, activation="logistic")
SECTIONS = {
    "local_avgpool": ("local_avgpool size=3 stride=2",),
    "reorg": ("reorg stride=2",),
    "reorg reversed": ("reorg stride=2 reverse=1",),
    "reorg3d": ("reorg3d stride=2",),
    "sam": (GATE, "sam from=-2"),
    "scale_channels": ("avgpool", GATE, "scale_channels from=-3"),
    "dropout": ("dropout",),
    "attention": (
        *("route layers=0", conv(4), "route layers=0", conv(4), "route layers=0", conv(8)),
        "attention from=2,4,6 heads=2 scale=0.2",
    ),
}
OUTPUTS = ("boxes", "scores")


@pytest.fixture(params=list(SECTIONS))
def exported(request: pytest.FixtureRequest, tmp_path: Path) -> onnx.ModelProto:
    model = random_network(network(conv(8, 3), *SECTIONS[request.param], conv(8, 3), *HEAD, size=20))
    return onnx.load(onnx_from_torch(folded(model), tmp_path / "model.onnx").path)


IMAGES = np.random.default_rng(0).random((2, 3, 20, 20), dtype=np.float32)


def differences(model: onnx.ModelProto, other: onnx.ModelProto) -> list[float]:
    """Largest difference of each output, relative to its largest value."""
    pairs = zip(run(model, IMAGES, OUTPUTS), run(other, IMAGES, OUTPUTS), strict=True)
    return [float(np.abs(a - b).max() / np.abs(a).max()) for a, b in pairs]


def test_half_precision_is_near(exported: onnx.ModelProto) -> None:
    half = to_half_precision(exported)
    onnx.checker.check_model(half, full_check=True)
    assert max(differences(exported, half)) < 2e-3


@pytest.mark.parametrize("activations", ["uint8", "int8"])
def test_eight_bits_are_near(exported: onnx.ModelProto, activations: Activations) -> None:
    plan = plan_quantisation(exported, activations)
    assert len(plan.convolutions) >= 3
    quantised = quantise(exported, plan, true_ranges(exported, plan.tensors, IMAGES))
    assert 0 < max(differences(exported, quantised)) < 2e-2
