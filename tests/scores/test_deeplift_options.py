"""DeepLIFT through options of sections: against dense matrices, and summation-to-delta."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from prunedeploy.scores import deeplift
from prunedeploy.scores.captum_deeplift import captum_deeplift, check_captum_is_right
from prunedeploy.scores.deeplift_trace import trace
from prunedeploy_engines.errors import PruningError
from pruning.darknets import network
from pruning.option_networks import OPTION_NETWORKS, random_options_network
from scores.dense_deeplift import dense_contributions
from scores.examples import contributions, random_batches
from scores.test_deeplift import RULES, images_and_target, random_reference

SHARING = ["shared weights", "shared grouped weights"]
SHORTCUTS = [name for name in OPTION_NETWORKS if "added" in name or ("weight" in name and name not in SHARING)]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", [name for name in OPTION_NETWORKS if name not in SHARING])
def test_contributions_sum_to_the_difference(name: str, rule: str) -> None:
    model = random_options_network(network(*OPTION_NETWORKS[name], size=8)).double()
    found = deeplift(model, random_batches([2]), reference=random_reference, rule=rule, predictions=3)
    assert found.summation.worst_layer < 1e-9
    assert found.summation.target < 1e-9
    assert all(bool((value > 0).any()) for value in found.scores.values())


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", SHORTCUTS)
def test_contributions_through_shortcuts_equal_those_of_dense_matrices(name: str, rule: str) -> None:
    model = random_options_network(network(*OPTION_NETWORKS[name], size=5)).double()
    images, target = images_and_target(model, 1, 5)
    reference = random_reference(images)
    found = contributions(model, images, reference, target, rule)
    weights = [weight[0].numpy() for weight in target.weights]
    expected, _ = dense_contributions(model, images[0].numpy(), reference[0].numpy(), weights, rule)
    for index, value in expected.items():
        assert np.abs(found[index][0].numpy() - value).max() < 1e-9 * np.abs(value).max()


@pytest.mark.parametrize("name", SHARING)
def test_shared_weights_are_refused_by_name(name: str) -> None:
    model = random_options_network(network(*OPTION_NETWORKS[name]))
    with pytest.raises(PruningError, match=r"no rule for weights that are those of layer 1 as well"):
        trace(model, torch.rand(1, 3, 16, 16), torch.zeros(1, 3, 16, 16), "rescale")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("antialiasing", "antialiasing"),
        ("largest of channels", "maximum over channels"),
        ("shared grouped weights", "shares the weights of layer 1"),
    ],
)
def test_captum_is_refused_by_name(name: str, says: str) -> None:
    with pytest.raises(PruningError, match=says):
        check_captum_is_right(network(*OPTION_NETWORKS[name]))


@pytest.mark.parametrize("name", ["a wider layer is added", "a weight per channel", "bare weights per channel"])
def test_captum_goes_through_shortcuts_as_we_do(name: str) -> None:
    model = random_options_network(network(*OPTION_NETWORKS[name], size=8)).double()
    settings = {"reference": random_reference, "predictions": 3}
    ours = deeplift(model, random_batches([2]), **settings).scores
    theirs = captum_deeplift(model, random_batches([2]), **settings).scores
    for index, value in theirs.items():
        assert float((ours[index] - value).abs().max()) <= 1e-8 * float(value.max())
