"""Attacks on an engine's twin: all of them run on it, and what they find is what the engine sees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor

from attacks.test_pgd import SECTIONS, TARGETS
from export.networks import folded
from export.precisions import run, true_ranges
from prunedeploy.attacks import Apgd, CarliniWagner, Pgd, ThreatModel
from prunedeploy.attacks.objectives import OBJECTIVES
from prunedeploy.attacks.suite import attack_suite
from prunedeploy.evaluation.engine_twin import EngineTwin, GatedTwin, gated_twin
from prunedeploy.models import Darknet, decode, parse_cfg, yolo_losses
from prunedeploy.models.detector import Detector
from prunedeploy_engines.errors import ConfigError, GateError
from prunedeploy_engines.runtimes.onnx_file import NmsInGraph
from prunedeploy_engines.runtimes.onnxruntime.runner import OnnxRuntimeRunner
from prunedeploy_engines.runtimes.runner import Float32Array
from prunedeploy_export import fp16_from_fp32, onnx_from_torch, with_nms, with_uint8_input
from prunedeploy_export.graph.edit import read_model, set_metadata, write_model
from prunedeploy_export.precision.calibration import Range
from prunedeploy_export.precision.quantisation import plan_quantisation, quantise
from pruning.darknets import network, random_network

IMAGES = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model() -> Darknet:
    return random_network(network(*SECTIONS), seed=1)


@pytest.fixture(scope="module")
def folder(model: Darknet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``fp32``, ``fp16``, ``int8``, ``coarse`` (32 steps for what int8 has 255 for) and ``device.onnx``."""
    folder = tmp_path_factory.mktemp("files")
    onnx_from_torch(folded(model), folder / "fp32.onnx")
    fp16_from_fp32(folder / "fp32.onnx", folder / "fp16.onnx")
    source = onnx.load(folder / "fp32.onnx")
    plan = plan_quantisation(source, "uint8")
    ranges = true_ranges(source, plan.tensors, IMAGES.numpy())
    for name, wider in (("int8", 1), ("coarse", 8)):
        file = quantise(source, plan, {key: Range(wider * one.low, wider * one.high) for key, one in ranges.items()})
        set_metadata(file, precision="int8")
        write_model(file, folder / f"{name}.onnx")
    device = with_nms(with_uint8_input(read_model(folder / "int8.onnx")), NmsInGraph(0.05, 0.4, 20))
    write_model(device, folder / "device.onnx")
    return folder


def gated(path: Path, model: Darknet, iou_threshold: float = 0.45) -> GatedTwin:
    with OnnxRuntimeRunner(path, threads=1) as engine:
        return gated_twin(
            path, model.cfg, engine, IMAGES.numpy(), score_threshold=0.001, iou_threshold=iou_threshold, threads=1
        )


@pytest.mark.parametrize("name", ["int8", "fp16", "coarse", "device"])
def test_twins_of_our_files_pass_their_gates(folder: Path, model: Darknet, name: str) -> None:
    found = gated(folder / f"{name}.onnx", model)
    assert found.tensors.images == 4
    assert found.tensors.heads < 5e-3
    for parity in (found.same, found.near):
        assert parity is not None
        assert parity.detections > 0
        assert parity.matched_share == 1
        # Of a file with suppression in its graph, its own thresholds.
        assert parity.score_threshold == (0.05 if name == "device" else 0.001)
        assert parity.iou_threshold == (0.4 if name == "device" else 0.45)


def objects_that_it_finds(detector: Detector) -> Tensor:
    """Targets ``(4, 6)``: of each image the best prediction, since there is nothing to lose of an object not found."""
    with torch.no_grad():
        boxes, scores = decode(detector(IMAGES), detector)
    found, classes = scores.flatten(1).argmax(1) // scores.shape[2], scores.flatten(1).argmax(1) % scores.shape[2]
    corners = boxes[torch.arange(4), found] / 16
    centres = torch.cat(((corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]), 1)
    return torch.cat((torch.arange(4)[:, None], classes[:, None], centres), 1)


def test_every_attack_of_the_suite_and_every_objective_runs_on_a_twin(folder: Path, model: Darknet) -> None:
    twin = EngineTwin(folder / "int8.onnx", model.cfg)
    references = ["noise", "fgsm", "ensemble", *(f"pgd:{one}" for one in OBJECTIVES), "apgd:rank + box"]
    suite = attack_suite(twin, references, ThreatModel(), "quick")
    targets = objects_that_it_finds(twin)
    still = set()
    for name, attack in suite.attacks.items():
        attacked = attack(twin, IMAGES, targets)  # asserts the ball, the range and the unchanged network
        assert attacked.shape == IMAGES.shape
        still |= {name} if torch.equal(attacked, IMAGES) else set()
    assert still == set()
    assert len(suite.ensembles["ensemble"]) == 6
    l2 = Apgd(twin, twin, 1.0, 5, "box", "l2", starts=2)(IMAGES, TARGETS)
    assert 0 < float((l2 - IMAGES).flatten(1).norm(dim=1).max()) < 1.0001


def test_carlini_and_wagner_lose_objects_of_a_twin(folder: Path, model: Darknet) -> None:
    twin = EngineTwin(folder / "int8.onnx", model.cfg)
    lost = CarliniWagner(twin, twin, steps=20, searches=3, score_threshold=0.01)(IMAGES, TARGETS)
    reached = ~lost.l2.isnan()
    assert bool((reached <= lost.attackable).all())
    distance = (lost.images - IMAGES).flatten(1).norm(dim=1)
    assert torch.allclose(distance[reached], lost.l2[reached])


def engine_losses(path: Path, images: Tensor, model: Darknet) -> Tensor:
    """The detection loss of each image by ONNX Runtime's own heads."""
    file = onnx.load(path)
    heads = [torch.from_numpy(one) for one in run(file, images.numpy(), EngineTwin(path, model.cfg).file.heads)]
    return yolo_losses(heads, TARGETS, model.cfg)


def test_attack_on_a_twin_hurts_the_engine_more_than_its_parents_images_do(folder: Path, model: Darknet) -> None:
    """The coarser the steps, the less the parent knows of the engine."""
    path, attack = folder / "coarse.onnx", ThreatModel(steps=20, iterate="best")
    adaptive = Pgd.against(EngineTwin(path, model.cfg), attack)(IMAGES, TARGETS)
    transfer = Pgd.against(model, attack)(IMAGES, TARGETS)
    clean, by_transfer, by_twin = (engine_losses(path, images, model) for images in (IMAGES, transfer, adaptive))
    assert float(by_transfer.sum()) > float(clean.sum())
    assert float(by_twin.sum()) > float(by_transfer.sum())


def test_best_iterate_of_a_twin_is_never_weaker_on_the_engine_than_the_clean_image(
    folder: Path, model: Darknet
) -> None:
    """The twin's loss is the engine's: what it takes for a gain is one."""
    for name in ("int8", "coarse"):
        path = folder / f"{name}.onnx"
        attacked = Apgd(twin := EngineTwin(path, model.cfg), twin, 0.05, 10)(IMAGES, TARGETS)
        gained = engine_losses(path, attacked, model) - engine_losses(path, IMAGES, model)
        assert float(gained.min()) > -1e-3


def test_fp32_file_is_its_parent(folder: Path, model: Darknet) -> None:
    with pytest.raises(ConfigError, match=r"fp32.onnx: is fp32: an attack on its twin is the attack on its parent"):
        gated(folder / "fp32.onnx", model)


def test_file_of_another_network_is_refused(folder: Path) -> None:
    narrower = parse_cfg(
        random_network(network(*SECTIONS))
        .cfg.text.replace("filters=14", "filters=16")
        .replace("classes=2", "classes=3")
    )
    with pytest.raises(ConfigError, match="is not of the network that is its parent here; give its own parent"):
        EngineTwin(folder / "int8.onnx", narrower)


def test_other_anchors_do_not_pass(folder: Path, model: Darknet) -> None:
    """Shapes fit; detections do not."""
    other = parse_cfg(model.cfg.text.replace("anchors=5,6,9,8", "anchors=15,6,9,18"))
    path = folder / "int8.onnx"
    with OnnxRuntimeRunner(path, threads=1) as engine, pytest.raises(GateError, match="onnxruntime computes something"):
        gated_twin(path, other, engine, IMAGES.numpy(), score_threshold=0.001, iou_threshold=0.45)


class Shifted(OnnxRuntimeRunner):
    """An engine that computes something else than its file says."""

    def _infer(self, images: Float32Array) -> tuple[Float32Array, Float32Array]:
        boxes, scores = super()._infer(images)
        return boxes + np.float32(3), scores


def test_engine_that_does_not_compute_its_file_is_refused(folder: Path, model: Darknet) -> None:
    path = folder / "int8.onnx"
    with Shifted(path, threads=1) as engine, pytest.raises(GateError, match="leave --adaptive out for this runtime"):
        gated_twin(path, model.cfg, engine, IMAGES.numpy(), score_threshold=0.001, iou_threshold=0.45)
