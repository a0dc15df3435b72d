"""Checks of attacks: they pass on a network with honest gradients, and each fails where what it looks for is wrong."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

from prunedeploy.attacks import Pgd, ThreatModel
from prunedeploy.attacks.objectives import objective_for
from prunedeploy.data.coco import load_test_split
from prunedeploy.data.demo import DemoSettings, write_demo
from prunedeploy.data.loader import EvaluationLoader
from prunedeploy.data.records import CocoDataset
from prunedeploy.evaluation import attack_checks
from prunedeploy.evaluation.attack_checks import check_attacks, measurements
from prunedeploy.models import Darknet, FoldedDarknet, load_darknet, parse_cfg
from prunedeploy.resources import asset_path, darknet_cfg_path

NAMES = ["zero-gradient", "not-converged", "order-broken", "transfer", "randomness", "wrong-gradient"]


def network(weights: str) -> Darknet:
    return load_darknet(darknet_cfg_path("yolov3-slim"), asset_path(weights)).eval()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> CocoDataset:
    folder: Path = tmp_path_factory.mktemp("demo") / "demo"
    write_demo(folder, DemoSettings(train_scenes=1, test_scenes=2))
    return load_test_split(folder)


def test_a_network_with_honest_gradients_passes_and_the_bar_is_full(dataset):
    seen: list[int] = []
    loader = EvaluationLoader(dataset, (160, 160), batch_size=2)
    clean, robust = network("demo-clean.weights"), network("demo-robust.weights")
    found = check_attacks(
        robust, loader, dataset, ThreatModel(), "quick", parent=clean, iou_threshold=0.45, score_threshold=0.001,
        progress=seen.append,
    )  # fmt: skip
    assert [one.name for one in found] == NAMES
    assert [one.says for one in found if not one.passed] == []
    assert sum(seen) == measurements(clean) * len(dataset.images)


def test_a_network_that_does_not_see_the_image_is_found_out(dataset):
    blind = network("demo-robust.weights")
    with torch.no_grad():
        for head in blind.cfg.heads:
            blind.conv(head.index - 1).weight.zero_()
    batch = next(iter(EvaluationLoader(dataset, (160, 160), batch_size=2)))
    for model, passed in ((blind, False), (network("demo-robust.weights"), True)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            Pgd.against(model, ThreatModel(steps=2)).of_model(model, batch.images, batch.targets)
        found = attack_checks._zero_gradient(caught)
        assert found.passed is passed
        assert ("2 of 2 images" in found.says) is not passed


def test_transfer_that_hurts_more_than_the_white_box_is_found_out():
    assert attack_checks._transfer(0.3, 0.2).passed
    assert attack_checks._transfer(0.2, 0.203).passed  # within the slack
    assert not attack_checks._transfer(0.2, 0.3).passed


def test_a_network_that_draws_is_found_out(dataset, monkeypatch):
    class Drawing(FoldedDarknet):
        def forward(self, images: Tensor) -> list[Tensor]:
            return [head + 1e-3 * torch.randn_like(head) for head in super().forward(images)]

    batch = next(iter(EvaluationLoader(dataset, (160, 160), batch_size=1)))
    model = network("demo-robust.weights")
    assert attack_checks._repeatable(model, batch).passed
    monkeypatch.setattr("prunedeploy.models.darknet.FoldedDarknet", Drawing)
    assert not attack_checks._repeatable(model, batch).passed


def test_a_wrong_gradient_is_found_out(dataset, monkeypatch):
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(context, value):
            return value.clone()

        @staticmethod
        def backward(context, gradient):
            return 2 * gradient

    batch = next(iter(EvaluationLoader(dataset, (160, 160), batch_size=1)))
    model = network("demo-robust.weights")
    assert attack_checks._gradient(model, batch).passed

    def wrong(*arguments):
        objective = objective_for(*arguments)
        return lambda heads: Doubled.apply(objective(heads))

    monkeypatch.setattr(attack_checks, "objective_for", wrong)
    assert not attack_checks._gradient(model, batch).passed


def test_ties_of_max_pooling_in_a_letterbox_are_no_wrong_gradient(dataset):
    """As of the genuine yolov3-tiny, whose slopes differed by 1 to 8 % at images with grey borders."""
    convolution = "[convolutional]\nfilters={}\nsize={}\nstride=1\npad=1\nactivation={}\n"
    cfg = "[net]\nwidth=96\nheight=64\nchannels=3\n" + convolution.format(8, 3, "leaky")
    cfg += "[maxpool]\nsize=2\nstride=2\n" * 3 + convolution.format(30, 1, "linear")
    cfg += "[yolo]\nmask=0,1\nanchors=12,12, 30,30\nclasses=10\nnum=2\n"
    model = load_darknet(parse_cfg(cfg), seed=1)
    batch = next(iter(EvaluationLoader(dataset, (64, 96), batch_size=1)))
    assert attack_checks._gradient(model, batch).passed


@pytest.mark.parametrize(
    ("maps", "radii", "says"),
    [
        ({"noise": 0.7, "fgsm": 0.5, "pgd": 0.4, "ensemble": 0.3}, [(0.01, 0.6), (0.05, 0.3), (1.0, 0.0)], ""),
        ({"noise": 0.5, "fgsm": 0.6, "pgd": 0.4, "ensemble": 0.3}, [(1.0, 0.0)], "fgsm leaves 0.6000 mAP, noise 0.5"),
        ({"noise": 0.5, "fgsm": 0.4, "pgd": 0.2, "ensemble": 0.3}, [(1.0, 0.0)], "ensemble leaves 0.3"),
        ({"noise": 0.5}, [(0.01, 0.3), (0.05, 0.4), (1.0, 0.0)], "eps 0.05 leaves 0.4"),
        ({"noise": 0.5}, [(0.05, 0.3), (1.0, 0.1)], "eps 1 leaves 0.1000 mAP, where any image is allowed"),
        # By chance: within the slack.
        ({"noise": 0.5, "fgsm": 0.504}, [(0.05, 0.3), (1.0, 0.009)], ""),
    ],
)
def test_order_of_attacks_and_radii(maps, radii, says):
    found = attack_checks._ordered(maps, [{"eps": eps, "map": value} for eps, value in radii])
    assert found.passed == (not says)
    assert says in found.says
