"""Options of sections and activations in the exported file, in all precisions."""

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
from export.networks import folded, random_images, torch_outputs
from export.precisions import run, true_ranges
from prunedeploy.models import Darknet
from prunedeploy.pruning import shrink
from prunedeploy_engines.builder.from_onnx import engine_from_onnx
from prunedeploy_engines.runtimes.tensorrt.library import installed_version
from prunedeploy_export import onnx_from_torch
from prunedeploy_export.gates.parity import check_tensor_parity
from prunedeploy_export.precision.half import to_half_precision
from prunedeploy_export.precision.quantisation import plan_quantisation, quantise
from pruning.darknets import ACTIVATIONS, HEAD, conv, network
from pruning.option_networks import (
    OPTION_NETWORKS,
    OptionCfg,
    fit_normalisation,
    half_of_every_group,
    random_option_cfgs,
    random_options_network,
)

NETWORKS = OPTION_NETWORKS | {
    f"activation {name}": (conv(8, 3, activation=name), conv(8, 3), f"shortcut from=-2 activation={name}", *HEAD)
    for name in ACTIVATIONS
}


def exported(model: Darknet, folder: Path) -> onnx.ModelProto:
    onnx_from_torch(folded(model), folder / "model.onnx")
    return onnx.load(folder / "model.onnx")


@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_file_computes_what_torch_computes(name: str, pruned: bool, tmp_path: Path) -> None:
    model = random_options_network(network(*NETWORKS[name]))
    model = shrink(model, half_of_every_group(model)) if pruned else model
    images = random_images(model.cfg, 2)
    boxes, scores = run(exported(model, tmp_path), images, ["boxes", "scores"])
    check_tensor_parity(torch_outputs(model, images), (boxes, scores), tolerance=1e-5)


@settings(max_examples=examples(40), suppress_health_check=[HealthCheck.too_slow])
@given(graph=random_option_cfgs(), seed=st.integers(0, 99))
def test_files_of_random_networks_compute_what_torch_computes(graph: OptionCfg, seed: int) -> None:
    model = random_options_network(graph.cfg, seed)
    model = fit_normalisation(model, torch.rand(2, 3, graph.size, graph.size))
    images = random_images(model.cfg, 2, seed)
    with tempfile.TemporaryDirectory() as folder:
        boxes, scores = run(exported(model, Path(folder)), images, ["boxes", "scores"])
    expected_boxes, expected_scores = torch_outputs(model, images)
    np.testing.assert_allclose(scores, expected_scores, atol=1e-4)
    np.testing.assert_allclose(boxes, expected_boxes, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_file_in_half_precision_and_in_8_bits_is_close(name: str, tmp_path: Path) -> None:
    model = exported(random_options_network(network(*NETWORKS[name])), tmp_path)
    images = np.random.default_rng(0).random((2, 3, 16, 16), dtype=np.float32)
    (scores,) = run(model, images, ["scores"])
    spread = float(np.ptp(scores))
    assert spread > 1e-3
    (half,) = run(to_half_precision(model), images, ["scores"])
    assert float(np.abs(half - scores).max()) < 0.05 * spread
    plan = plan_quantisation(model, "uint8")
    wanted = [tensor for tensor in plan.tensors if tensor not in plan.same_as]
    (integer,) = run(quantise(model, plan, true_ranges(model, wanted, images)), images, ["scores"])
    assert float(np.abs(integer - scores).mean()) < 0.1 * spread


@pytest.mark.skipif(installed_version("tensorrt_rtx") is None, reason="needs tensorrt-rtx")
@pytest.mark.parametrize("name", OPTION_NETWORKS)
def test_tensorrt_rtx_builds_an_engine_of_it(name: str, tmp_path: Path) -> None:
    model = random_options_network(network(*OPTION_NETWORKS[name]))
    exported(model, tmp_path)
    engine = engine_from_onnx(tmp_path / "model.onnx", tmp_path / "engines", target="sm86", precision="fp32")
    assert engine.layers == {"fp32": len(model.cfg.all_convolutions)}
