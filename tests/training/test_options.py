"""Score optimisation and the average of weights where layers share their weights, and where shortcuts have some."""

from __future__ import annotations

import pytest
import torch

from prunedeploy.pruning import Weights
from prunedeploy.pruning.cut import make_cut
from prunedeploy.training.hydra import ScoredDarknet
from prunedeploy.training.optimisation import WeightAverage
from pruning.darknets import network, scores_of
from pruning.option_networks import OPTION_NETWORKS, random_options_network

NETWORKS = ["shared weights", "shared grouped weights", "a weight per channel", "antialiasing"]


@pytest.mark.parametrize("name", NETWORKS)
def test_the_selected_subnetwork_is_what_will_be_cut(name: str) -> None:
    model = random_options_network(network(*OPTION_NETWORKS[name])).double()
    scores = {index: value.double() for index, value in scores_of(model.cfg).items()}
    select = Weights(0.5).selection(model.cfg, Weights(0.5).allocate(model.cfg))
    scored = ScoredDarknet(model, scores, select, freeze_bn=True)
    images = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    (ours,) = scored(images)
    with torch.no_grad():
        (cut,) = make_cut(model, scored.masks().as_bool()).network(images)
        (folded,) = scored.folded(scored.masks(), torch.float64)(images)
        (dense,) = model(images)
    torch.testing.assert_close(ours.detach(), cut)
    torch.testing.assert_close(folded, cut)
    assert float((dense - cut).abs().max()) > 0.01
    ours.square().sum().backward()
    masked = scored.masks().weights
    assert all(bool((scored.scores[str(index)].grad != 0).any()) for index in masked)


def test_statistics_follow_every_use_of_shared_normalisation_and_the_average_has_shortcut_weights() -> None:
    model = random_options_network(network(*OPTION_NETWORKS["shared weights"])).train()
    conv, before = model.conv(1), model.conv(1).mean.clone()
    momentum = conv.momentum
    seen: list[torch.Tensor] = []
    handle = conv.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    with torch.no_grad():
        model(torch.rand(2, 3, 16, 16))
    handle.remove()
    assert len(seen) == 2
    expected = before
    for x, dilation in zip(seen, (1, 2), strict=True):
        y = torch.nn.functional.conv2d(x, conv.weight, None, 1, dilation, dilation).detach()
        expected = (1 - momentum) * expected + momentum * y.mean((0, 2, 3))
    torch.testing.assert_close(conv.mean, expected)

    weighted = random_options_network(network(*OPTION_NETWORKS["a weight per channel"]))
    average = WeightAverage(weighted, 0.9)
    assert any(value.shape == (3, 8) for value in average.values.values())
