"""Quantisation-aware training of a tiny network: what it computes, wins in ONNX Runtime, and that it resumes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from export.precisions import run
from prunedeploy.attacks import Pgd, ThreatModel
from prunedeploy.evaluation.engine_twin import EngineTwin, gated_twin
from prunedeploy.models import Darknet, FoldedDarknet
from prunedeploy.models.loss import yolo_loss
from prunedeploy.training.adversarial import robust_objective
from prunedeploy.training.loop import train
from prunedeploy.training.quantised import QuantisedDarknet
from prunedeploy_engines.runtimes.onnxruntime.runner import OnnxRuntimeRunner
from prunedeploy_export import Quantiser, onnx_from_torch
from prunedeploy_export.graph.edit import read_model
from prunedeploy_export.precision.calibration import Range
from prunedeploy_export.precision.files import Calibration
from training.small import batch_of, loop_settings, small_model, whole

ATTACK = ThreatModel(eps=0.02, step_size=0.02, steps=1)
IMAGES = torch.cat([batch_of(1000 + number).images for number in range(4)]).numpy()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Several would mostly wait for each other on tensors of this size."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def export(network: Darknet, folder: Path, kept: Calibration | None = None) -> tuple[Path, Calibration]:
    """The int8 file of a network for CPUs, and its calibration."""
    folder.mkdir(exist_ok=True)
    onnx_from_torch(FoldedDarknet(network), folder / "fp32.onnx")
    quantiser = Quantiser(folder / "fp32.onnx", IMAGES, seed=0, threads=1, sensitivity_images=1, kept=kept)
    _, record = quantiser.write(folder / "int8.onnx", "uint8")
    return folder / "int8.onnx", Calibration(quantiser.ranges("uint8"), record.skipped)


def coarse(calibration: Calibration, factor: float) -> Calibration:
    """Ranges so much wider that few of the 256 steps are used."""
    ranges = {name: Range(factor * one.low, factor * one.high) for name, one in calibration.ranges.items()}
    return Calibration(ranges, calibration.always)


def engine_loss(path: Path, network: Darknet, twin: EngineTwin, pgd: Pgd | None, count: int = 6) -> float:
    """Mean loss of the file in ONNX Runtime on the batches that it is trained on."""
    model, losses = read_model(path), []
    for number in range(count):
        batch = batch_of(number)
        images = batch.images if pgd is None else pgd(batch.images, batch.targets, batch.image_ids, number)
        heads = [torch.from_numpy(head) for head in run(model, images.numpy(), twin.file.heads)]
        losses.append(float(yolo_loss(heads, batch.targets, network.cfg).total))
    return float(np.mean(losses))


def trained(
    network: Darknet, file: Path, work: Path, steps: int, lr: float = 2e-3, stop_after: int | None = None
) -> Darknet:
    """Train a network with the roundings of a file, of which an fp32 one has none; stop by an exception if asked to."""
    settings = loop_settings(steps, lr, optimizer="adamw", checkpoint_every=2)
    work.mkdir(exist_ok=True)
    done = 0

    def advance(count: int, loss: float) -> None:
        nonlocal done
        done += count
        if stop_after is not None and done >= stop_after:
            raise KeyboardInterrupt

    detector = QuantisedDarknet(network, EngineTwin(file, network.cfg))
    objective = robust_objective(detector, settings, ATTACK, 0, torch.device("cpu"))
    train(
        network, whole(network), lambda start: (batch_of(number % 6) for number in range(start, steps)), objective,
        settings, stage="qat", work=work, log=work / "log.jsonl", advance=advance,
    )  # fmt: skip
    return network.eval()


def test_before_the_first_step_it_is_the_twin_that_passes_the_gate(tmp_path: Path) -> None:
    network = small_model()
    path, _ = export(network, tmp_path)
    detector = QuantisedDarknet(network, EngineTwin(path, network.cfg)).train()
    with OnnxRuntimeRunner(path, threads=1) as engine:
        gated = gated_twin(path, network.cfg, engine, IMAGES, score_threshold=0.01, iou_threshold=0.45, threads=1)
    images = torch.from_numpy(IMAGES)
    constant = detector.for_inference()
    for head, other, expected in zip(detector(images), constant(images), gated.twin(images), strict=True):
        assert torch.equal(head, expected)
        assert torch.equal(other, expected)
    assert all(one.grad_fn is not None for one in detector(images))
    assert not any(one.requires_grad for one in constant(images))
    with pytest.raises(ValueError, match=r"float32, not in torch\.bfloat16"):
        detector.for_inference(torch.bfloat16)


def test_attack_and_step_follow_the_weights_as_they_are(tmp_path: Path) -> None:
    """After a step the attacked network is the new one: the attack holds no copy of weights that were."""
    network = small_model()
    path, _ = export(network, tmp_path)
    detector = QuantisedDarknet(network, EngineTwin(path, network.cfg))
    before = detector.for_inference()(torch.from_numpy(IMAGES))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter *= 1.3
    after = detector.for_inference()(torch.from_numpy(IMAGES))
    assert not torch.equal(before[0], after[0])
    assert torch.equal(after[0], detector(torch.from_numpy(IMAGES))[0])


def test_training_wins_back_what_coarse_ranges_cost_in_onnx_runtime(tmp_path: Path) -> None:
    """Ranges twenty times too wide, so a dozen steps are used of 256: on clean and attacked images, beside a control.

    Without the roundings, the same steps from the same weights improve the network and not what its file computes.
    """
    start = small_model()
    export(start, tmp_path / "raw")
    fp32 = tmp_path / "raw" / "fp32.onnx"
    trained(start, fp32, tmp_path / "first", 150, 1e-2)
    fine, calibration = export(start, tmp_path / "fine")
    path, kept = export(start, tmp_path / "coarse", coarse(calibration, 20))
    convolutions = [layer.index for layer in start.cfg.convolutions if layer.batch_normalize]
    statistics = {index: start.conv(index).mean.clone() for index in convolutions}
    twin, attacks = EngineTwin(path, start.cfg), (None, Pgd.against(start, ATTACK))
    networks = {}
    for name, file in (("qat", path), ("control", fp32)):
        network = small_model()
        network.load_state_dict(start.state_dict())
        networks[name] = trained(network, file, tmp_path / f"work-{name}", 40)
    files = {name: export(network, tmp_path / name, kept)[0] for name, network in networks.items()}
    files |= {"fine": fine, "coarse": path}
    for pgd in attacks:
        losses = {name: engine_loss(file, start, twin, pgd) for name, file in files.items()}
        assert losses["coarse"] > losses["fine"] + 0.1
        assert losses["qat"] < losses["fine"]
        assert losses["qat"] < losses["control"] - 0.1
    # Normalisation has the statistics that it had, and what was trained is what was exported.
    assert all(networks["qat"].conv(index).mean.equal(mean) for index, mean in statistics.items())
    detector, images = QuantisedDarknet(networks["qat"], twin), torch.from_numpy(IMAGES)
    found = run(read_model(files["qat"]), IMAGES, twin.file.heads)
    for head, expected in zip(detector(images), found, strict=True):
        np.testing.assert_allclose(head.detach().numpy(), expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_a_run_that_was_stopped_ends_in_the_same_weights(tmp_path: Path) -> None:
    path, _ = export(small_model(), tmp_path)
    undisturbed = trained(small_model(), path, tmp_path / "whole", 7)
    for stop in (3, 3):  # counted with the steps of the checkpoint
        with pytest.raises(KeyboardInterrupt):
            trained(small_model(), path, tmp_path / "stopped", 7, stop_after=stop)
    resumed = trained(small_model(), path, tmp_path / "stopped", 7)
    for name, value in undisturbed.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert not torch.equal(undisturbed.conv(0).weight, small_model().conv(0).weight)
