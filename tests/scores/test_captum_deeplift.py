"""DeepLIFT by Captum: where it is right it equals ours, where it is wrong it is refused."""

from __future__ import annotations

import re
from functools import partial

import numpy as np
import pytest
import torch
from captum.attr import LayerDeepLift
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from torch import Tensor, nn

from effort import examples
from prunedeploy.data.demo import SPRITES, DemoSettings, compose_scene, cut_out
from prunedeploy.models import Darknet, load_darknet
from prunedeploy.models.darknet_cfg import parse_cfg
from prunedeploy.models.sections import Maxpool
from prunedeploy.resources import asset_path, darknet_cfg_path
from prunedeploy.scores import choose_target, deeplift
from prunedeploy.scores.captum_deeplift import captum_deeplift, captum_multipliers
from prunedeploy.scores.reference import ReferenceFunction, blurred_reference, zeros_reference
from prunedeploy_engines.errors import PruningError
from pruning.darknets import HEAD, RandomCfg, conv, network, random_cfgs, random_network
from scores.examples import (
    Batch,
    contributions,
    mixed_network,
    multipliers_at_convolutions,
    pixels,
    random_batches,
    tiny_model,
)

CAPTUM_IS_RIGHT = ("linear", "relu", "leaky", "leaky leaky_slope=0.25", "logistic")


def random_reference(images: Tensor) -> Tensor:
    return torch.rand(images.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def test_multipliers_worked_by_hand() -> None:
    model = tiny_model().double()
    images = pixels(2.0, -1.0).images.double()
    with torch.no_grad():
        target = choose_target(model, model(images), 1)
    reference = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    # The target is 4 leaky(3 x - 1), the reference's -.1. At x = 2 leaky gives 5 at 5: 4 * (5 + .1) / (5 + 1);
    # at x = -1 it gives -.4 at -4: 4 * (-.4 + .1) / (-4 + 1).
    multipliers = captum_multipliers(model, images, reference, target, 0)
    assert multipliers.flatten().tolist() == pytest.approx([4 * 5.1 / 6, 4 * 0.1])
    assert captum_multipliers(model, images, reference, target, 1)[:, :, 0, 0].tolist() == [[0, 0, 0, 0, 1, 1]] * 2
    # |multiplier * 3 * x|, in the mean; of the head's 4 the difference of leaky: 5.1 and -.3.
    batch = Batch(images, torch.zeros(0, 6), [0, 1])
    scores = captum_deeplift(model, [batch], reference=zeros_reference, predictions=1).scores
    assert float(scores[0]) == pytest.approx((3.4 * 6 + 0.4 * 3) / 2)
    assert scores[1].flatten().tolist() == pytest.approx([0, 0, 0, 0, 0, 4 * (5.1 + 0.3) / 2])


@pytest.mark.parametrize("activation", CAPTUM_IS_RIGHT)
def test_float64_multipliers_and_scores_equal_captum(activation: str) -> None:
    model = mixed_network(activation)
    batches = random_batches([2, 1])
    images = batches[0].images
    reference = random_reference(images)
    with torch.no_grad():
        target = choose_target(model, model(images), 3)
    ours = multipliers_at_convolutions(model, images, reference, target)
    for index, value in ours.items():
        expected = captum_multipliers(model, images, reference, target, index)
        assert float(expected.abs().max()) > 1e-3
        assert float((value - expected).abs().max()) < 1e-8 * float(expected.abs().max())
    done: list[int] = []
    found = captum_deeplift(model, batches, reference=random_reference, predictions=3, layer_done=done.append)
    for index, value in deeplift(model, batches, reference=random_reference, predictions=3).scores.items():
        assert float((value - found.scores[index]).abs().max()) < 1e-8 * float(found.scores[index].max())
    assert found.images == 3
    assert done == [2] * len(ours) + [1] * len(ours), "after every layer of every batch"
    assert set(found.summation.layers) == set(ours)
    assert found.summation.worst_layer < 1e-12
    assert found.summation.target < 1e-12


@given(graph=random_cfgs(products=False), seed=st.integers(0, 100))
@settings(max_examples=examples(20), suppress_health_check=[HealthCheck.filter_too_much])
def test_float64_scores_of_random_networks_equal_captum(graph: RandomCfg, seed: int) -> None:
    # Those that Captum has a rule for, and leaky for the others
    cfg = parse_cfg(re.sub(r"activation=(?!(linear|leaky|relu|logistic)\b)\w+", "activation=leaky", graph.cfg.text))
    assume(all(layer.size <= layer.stride for layer in cfg.layers if isinstance(layer, Maxpool)))
    model = random_network(cfg, seed).double()
    batches = random_batches([2], graph.size, seed)
    try:
        scores = deeplift(model, batches, reference=random_reference, predictions=3).scores
    except PruningError:
        # A relu layer that is off on images and references alike; then Captum finds nothing either.
        with pytest.raises(PruningError, match="the target is the same on every image and its reference"):
            captum_deeplift(model, batches, reference=random_reference, predictions=3)
        return
    expected = captum_deeplift(model, batches, reference=random_reference, predictions=3)
    assert expected.summation.target < 1e-9
    for index, value in scores.items():
        assert float((value - expected.scores[index]).abs().max()) <= 1e-8 * float(expected.scores[index].max())


@pytest.mark.parametrize(
    ("weights", "reference"),
    [("demo-clean.weights", zeros_reference), ("demo-robust.weights", partial(blurred_reference, sigma=8.0))],
    ids=["clean, zeros", "robust, blurred"],
)
def test_float32_scores_of_the_demo_network_rank_as_captum_s(weights: str, reference: ReferenceFunction) -> None:
    model = load_darknet(darknet_cfg_path("yolov3-slim"), asset_path(weights))
    with np.load(SPRITES) as sprites:
        cut_outs = [cut_out(sprite) for sprite in sprites["test_images"]]
        labels = sprites["test_labels"]
    scenes = [compose_scene(np.random.default_rng((0, i)), cut_outs, labels, DemoSettings())[0] for i in range(2)]
    images = torch.from_numpy(np.stack(scenes)).permute(0, 3, 1, 2).float() / 255
    batch = Batch(images, torch.zeros(0, 6), [0, 1])
    expected = captum_deeplift(model, [batch], reference=reference).scores
    scores = deeplift(model, [batch], reference=reference).scores
    for index, value in expected.items():
        assert float(value.max()) > 0
        assert spearmanr(value.flatten(), scores[index].flatten()).statistic >= 0.99


def test_a_cell_without_difference_is_explained_by_its_own_image() -> None:
    """Captum's maxpool gives such cells the gradient of the batch's first image."""
    sections = ("convolutional filters=1 size=1 activation=linear", "maxpool size=2 stride=2", *HEAD)
    model = random_network(network(*sections, size=2, channels=2)).double()
    with torch.no_grad():
        model.conv(0).weight.copy_(torch.ones(1, 2, 1, 1))
        model.conv(0).bias.zero_()
    # Four cells of two channels, their sums 0 1 2 3 and 3 2 1 0. In the second image the largest is as in the
    # reference of zeros, but one channel is up and the other down: both weights contribute, 5 and -5.
    first = torch.tensor([[0.0, 1.0, 2.0, 3.0], [0.0, 0.0, 0.0, 0.0]]).view(2, 2, 2)
    second = torch.tensor([[5.0, -1.0, -2.0, -3.0], [-5.0, 0.0, 0.0, 0.0]]).view(2, 2, 2)
    images = torch.stack([first, second]).double()
    reference = torch.zeros(1, 2, 2, 2, dtype=torch.float64)
    with torch.no_grad():
        target = choose_target(model, model(images), 1)
    together = captum_multipliers(model, images, reference, target, 0)
    alone = captum_multipliers(model, images[1:], reference, type(target)(tuple(w[1:] for w in target.weights)), 0)
    assert torch.equal(together[1:], alone)
    assert float(alone[0, 0, 0, 0].abs()) > 0
    assert torch.equal(multipliers_at_convolutions(model, images, reference, target)[0], together)
    found = contributions(model, images, reference, target)[0][1].flatten()
    assert float(found[0]) == pytest.approx(float(5 * alone[0, 0, 0, 0]))
    assert float(found[1]) == -float(found[0])


class _Small(nn.Module):
    """A convolution, what is tried, and a sum of its output with positive factors, so that losses do not cancel."""

    def __init__(self, tried: nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.tried = tried

    def forward(self, x: Tensor) -> Tensor:
        y = self.tried(self.first(x))
        return (y * torch.linspace(1, 2, y[0].numel(), dtype=y.dtype).view(y[0].shape)).flatten(1).sum(1)


@pytest.mark.parametrize(
    ("tried", "right"),
    [
        (nn.ReLU(), True),
        (nn.LeakyReLU(0.1), True),
        (nn.Sigmoid(), True),
        (nn.MaxPool2d(2, 2), True),
        (nn.Mish(), False),
        (nn.SiLU(), False),
        (nn.MaxPool2d(2, 1), False),
        (nn.MaxPool2d(3, 2, 1), False),
        (nn.MaxPool2d(5, 1, 2), False),
    ],
    ids=str,
)
def test_captum_explains_the_whole_difference_only_where_it_is_not_refused(tried: nn.Module, right: bool) -> None:
    torch.manual_seed(0)
    module = _Small(tried).double()
    x = torch.rand(1, 3, 8, 8, dtype=torch.float64)
    contributed = LayerDeepLift(module, module.first).attribute(x, torch.zeros_like(x)).sum().detach()
    with torch.no_grad():
        difference = (module(x) - module(torch.zeros_like(x))).sum()
    lost = float((contributed - difference).abs() / difference.abs())
    assert lost < 1e-12 if right else lost > 1e-2


@pytest.mark.parametrize(
    ("section", "line"),
    [
        (conv(4, 3, activation="mish"), r"layer 1 \[convolutional\] has the activation mish, of which Captum's"),
        (conv(4, 3, activation="swish"), r"layer 1 \[convolutional\] has the activation swish, of which Captum's"),
        ("shortcut from=-1 activation=mish", r"layer 1 \[shortcut\] has the activation mish, of which Captum's"),
        ("maxpool size=2 stride=1", r"layer 1 \[maxpool\] has windows that overlap \(size 2, stride 1\), in which"),
        ("maxpool size=5 stride=1", r"layer 1 \[maxpool\] has windows that overlap \(size 5, stride 1\), in which"),
    ],
)
def test_where_captum_is_wrong_it_is_refused_by_name(section: str, line: str) -> None:
    model = random_network(network(conv(4, 3), section, *HEAD))
    with pytest.raises(PruningError, match=f"^cfg:13: {line}.*; use scores.backend=own"):
        captum_deeplift(model, random_batches([1], 16), reference=zeros_reference)


@pytest.mark.parametrize(("size", "stride", "side"), [(2, 2, 5), (2, 2, 7), (3, 3, 8), (1, 2, 7), (2, 3, 7)])
def test_pools_that_reach_over_the_border_or_leave_cells_out_are_explained(size: int, stride: int, side: int) -> None:
    model = random_network(network(conv(4, 3), f"maxpool size={size} stride={stride}", conv(4, 3), *HEAD, size=side))
    batches = random_batches([2], side)
    found = captum_deeplift(model.double(), batches, reference=random_reference)
    assert found.summation.target < 1e-12
    for index, value in deeplift(model, batches, reference=random_reference).scores.items():
        assert float((value - found.scores[index]).abs().max()) < 1e-8 * float(found.scores[index].max())


def test_no_images_is_one_clear_line() -> None:
    with pytest.raises(PruningError, match=r"^scores: there are no images .*; give at least one image$"):
        captum_deeplift(tiny_model(), [], reference=zeros_reference)


def test_the_model_is_left_as_it_was() -> None:
    model: Darknet = mixed_network().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    captum_deeplift(model, random_batches([1]), reference=zeros_reference)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())
