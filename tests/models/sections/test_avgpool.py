"""Section avgpool: the mean over the map, in PyTorch, in ONNX, and under DeepLIFT."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from export.networks import folded, torch_outputs
from prunedeploy.models import DarknetCfg
from prunedeploy.models.sections import Avgpool
from prunedeploy.pruning.constants import fold_constants
from prunedeploy.scores.deeplift_backward import backward
from prunedeploy.scores.deeplift_trace import IMAGE, trace
from prunedeploy.scores.target import choose_target
from prunedeploy_engines.runtimes.onnxruntime.runner import OnnxRuntimeRunner
from prunedeploy_export import onnx_from_torch
from prunedeploy_export.gates.parity import check_tensor_parity
from pruning.darknets import HEAD, conv, network, random_network


def pooled(activation: str = "leaky") -> DarknetCfg:
    """The pooled map is read by a convolution with a kernel of its own size only; its head has one cell."""
    return network(conv(8, 3, activation=activation), "avgpool", conv(6, activation=activation), *HEAD, size=12)


def test_it_is_the_mean_of_each_channel() -> None:
    layer = pooled().layers[1]
    assert isinstance(layer, Avgpool)
    assert layer.out_shape == (8, 1, 1)
    x = torch.rand(2, 8, 12, 12)
    expected = [[sum(x[image, c].flatten().tolist()) / 144 for c in range(8)] for image in range(2)]
    np.testing.assert_allclose(layer.run([x], {}).numpy(), np.array(expected)[:, :, None, None], rtol=1e-6)


def test_onnx_computes_what_torch_computes(tmp_path: Path) -> None:
    model = random_network(pooled(), seed=1)
    file = onnx_from_torch(folded(model), tmp_path / "model.onnx")
    images = np.random.default_rng(0).random((3, 3, 12, 12), dtype=np.float32)
    with OnnxRuntimeRunner(file.path, threads=1, allow_spinning=False) as runner:
        check_tensor_parity(torch_outputs(model, images), runner.infer(images), tolerance=1e-5)


def test_constants_pass_through() -> None:
    model = random_network(pooled())
    with torch.no_grad():
        model.conv(0).weight[3] = 0.0
    values = fold_constants(model).values
    assert values[1].isnan().tolist() == [channel != 3 for channel in range(8)]
    assert values[1][3] == values[0][3]


def test_deeplift_explains_the_whole_difference() -> None:
    """Summation to delta: multipliers times differences of pixels are the target's difference."""
    model = random_network(pooled("mish")).double()
    images, reference = torch.rand(2, 3, 12, 12).double(), torch.zeros(1, 3, 12, 12).double()
    found = trace(model, images, reference, "rescale")
    target = choose_target(model, found.heads, 1)
    multipliers = backward(model.cfg, found, target, lambda _: None)
    explained = (multipliers * found.deltas[IMAGE]).flatten(1).sum(1)
    torch.testing.assert_close(explained, target(found.heads) - target(found.reference_heads))
