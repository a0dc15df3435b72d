"""The PyTorch runner: the contract of every runner, and the same numbers as the network itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from contracts import RunnerContract
from prunedeploy.evaluation import TorchRunner
from prunedeploy.evaluation.torch_runner import open_torch_runner
from prunedeploy.models import Darknet, decode, load_darknet, parse_cfg

CFG = """[net]
width=64
height=32
channels=3

[convolutional]
batch_normalize=1
filters=8
size=3
stride=2
pad=1
activation=leaky

[convolutional]
batch_normalize=1
filters=8
size=3
stride=4
pad=1
activation=leaky

[convolutional]
filters=16
size=1
stride=1
activation=linear

[yolo]
mask=0,1
anchors=8,6, 14,12, 30,20
classes=3
num=3
"""


@pytest.fixture
def model() -> Darknet:
    """Two blocks with batch normalisation that does something, at 32 x 64 (height x width)."""
    model = load_darknet(parse_cfg(CFG), seed=1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith(("mean", "bias")):
                value.normal_(0, 0.5, generator=generator)
            elif name.endswith(("variance", "scale")):
                value.uniform_(0.3, 2, generator=generator)
            else:
                value.mul_(2)
    return model


def images_for(model: Darknet, count: int = 4) -> np.ndarray:
    return np.random.default_rng(0).random((count, 3, *model.cfg.input_size), dtype=np.float32)


class TestContract(RunnerContract):
    @pytest.fixture
    def runner(self, model: Darknet) -> TorchRunner:
        return TorchRunner(model)


def test_infers_what_the_network_computes(model):
    images = images_for(model)
    with torch.no_grad():
        expected_boxes, expected_scores = decode(model(torch.from_numpy(images)), model)
    boxes, scores = TorchRunner(model).infer(images)
    np.testing.assert_allclose(boxes, expected_boxes.numpy(), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(scores, expected_scores.numpy(), rtol=1e-5, atol=1e-6)
    assert scores.std() > 0.01


def test_network_in_training_mode_is_run_as_in_evaluation_and_stays_as_it_was(model):
    images = images_for(model)
    expected = TorchRunner(model).infer(images)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    boxes, scores = TorchRunner(model).infer(images)
    assert np.array_equal(boxes, expected[0])
    assert np.array_equal(scores, expected[1])
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_later_changes_of_the_model_are_not_seen(model):
    images = images_for(model)
    runner = TorchRunner(model)
    _, before = runner.infer(images)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert np.array_equal(runner.infer(images)[1], before)


def test_threads_are_set_while_inferring_and_put_back(model, monkeypatch):
    ambient = torch.get_num_threads()
    runner = TorchRunner(model, threads=ambient + 1)
    seen = []
    folded = runner._folded
    monkeypatch.setattr(
        folded,
        "forward",
        lambda images: (seen.append(torch.get_num_threads()), type(folded).forward(folded, images))[1],
    )
    runner.infer(images_for(model))
    assert seen == [ambient + 1]
    assert torch.get_num_threads() == ambient
    assert runner.describe()["threads"] == ambient + 1


def test_memory_map_can_be_inferred(model, tmp_path):
    images = images_for(model)
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    runner = TorchRunner(model)
    assert np.array_equal(runner.infer(mapped)[1], runner.infer(images)[1])


def test_no_threads_are_refused(model):
    with pytest.raises(ValueError, match="got 0"):
        TorchRunner(model, threads=0)


def test_runner_opened_from_files_is_the_models(model, tmp_path):
    cfg, weights = tmp_path / "model.cfg", tmp_path / "model.weights"
    model.save(cfg, weights)
    images = images_for(model)
    opened = open_torch_runner(str(cfg), str(weights), threads=1)
    assert np.array_equal(opened.infer(images)[1], TorchRunner(model, threads=1).infer(images)[1])
