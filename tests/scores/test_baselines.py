"""Scores that follow from the network alone."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings

from prunedeploy.models import Darknet
from prunedeploy.scores import bn_scale_scores, magnitude_scores, random_scores, scaled_scores
from prunedeploy_engines.errors import PruningError
from pruning.darknets import HEAD, RandomCfg, conv, network, random_cfgs, random_network


@pytest.fixture
def model() -> Darknet:
    return random_network(network(conv(4, size=3), conv(8, size=3, groups=2), *HEAD))


def test_scaled_scores_worked_by_hand(model: Darknet) -> None:
    with torch.no_grad():
        weight = model.conv(0).weight
        weight.zero_()
        weight[0, 0, 0, 0], weight[1, 2, 2, 1] = 2.0, -8.0
    scores = scaled_scores(model)[0]
    # fan_in = 3 channels x 9 = 27; the largest |w| is 8: sqrt(6 / 27) * 2 / 8 and -sqrt(6 / 27).
    assert float(scores[0, 0, 0, 0]) == pytest.approx(math.sqrt(6 / 27) / 4)
    assert float(scores[1, 2, 2, 1]) == pytest.approx(-math.sqrt(6 / 27))
    assert int((scores != 0).sum()) == 2


def test_the_fan_in_of_a_grouped_convolution_counts_one_group(model: Darknet) -> None:
    # 4 input channels in 2 groups: 2 x 9 weights per filter.
    assert float(scaled_scores(model)[1].abs().max()) == pytest.approx(math.sqrt(6 / 18))


def test_scaled_scores_rank_as_the_weights_do(model: Darknet) -> None:
    for index, scores in scaled_scores(model).items():
        weight = model.conv(index).weight.detach().flatten()
        assert torch.equal(scores.flatten().argsort(), weight.argsort())


def test_a_layer_of_zeros_has_scores_of_zero(model: Darknet) -> None:
    with torch.no_grad():
        model.conv(0).weight.zero_()
    assert scaled_scores(model)[0].tolist() == torch.zeros(4, 3, 3, 3).tolist()


def test_magnitude_scores_are_a_copy_of_the_weights(model: Darknet) -> None:
    scores = magnitude_scores(model)
    before = model.conv(0).weight.detach().clone()
    assert torch.equal(scores[0], before)
    scores[0].zero_()
    assert torch.equal(model.conv(0).weight, before)


def test_random_scores_follow_seed_and_layer(model: Darknet) -> None:
    first, same, other = (random_scores(model, seed=seed) for seed in (1, 1, 2))
    for index in first:
        assert torch.equal(first[index], same[index])
        assert not torch.equal(first[index], other[index])
        assert float(first[index].min()) >= 0
        assert float(first[index].max()) < 1
    same_shape = random_scores(random_network(network(conv(3), conv(3), *HEAD)), seed=1)
    assert not torch.equal(same_shape[0], same_shape[1])


def test_bn_scale_is_the_filter_s_absolute_scale_on_all_its_weights(model: Darknet) -> None:
    with torch.no_grad():
        model.conv(0).scale.copy_(torch.tensor([0.5, -2.0, 0.0, 1.0]))
    scores = bn_scale_scores(model)[0]
    assert [values.unique().tolist() for values in scores] == [[0.5], [2.0], [0.0], [1.0]]


def test_bn_scale_of_a_head_is_one_unless_it_is_normalised(model: Darknet) -> None:
    assert bn_scale_scores(model)[2].unique().tolist() == [1.0]
    normalised = random_network(network(conv(4), conv(6, activation="linear"), HEAD[1]))
    scale = normalised.conv(1).scale.detach()
    assert torch.equal(bn_scale_scores(normalised)[1].flatten(1)[:, 0], scale.abs())


def test_bn_scale_refuses_a_convolution_without_normalisation_by_name() -> None:
    model = random_network(network(conv(4), "maxpool size=2 stride=2", conv(4, norm=False), *HEAD))
    # [net] has 4 lines, [convolutional] 6, [maxpool] 3, each with an empty line behind it: layer 2 begins on line 17.
    assert model.cfg.layers[2].line == 17
    with pytest.raises(PruningError, match=r"^cfg:17: the convolution of layer 2 has no batch normalisation.*; use "):
        bn_scale_scores(model)


@given(random_cfgs())
@settings(max_examples=50)
def test_bn_scale_needs_normalisation_everywhere_but_at_the_outputs_of_heads(graph: RandomCfg) -> None:
    cfg = graph.cfg
    heads = cfg.head_outputs
    missing = [layer.index for layer in cfg.convolutions if not layer.batch_normalize and layer.index not in heads]
    model = random_network(cfg)
    if missing:
        with pytest.raises(PruningError, match=f"layer {missing[0]} "):
            bn_scale_scores(model)
    else:
        assert list(bn_scale_scores(model)) == [layer.index for layer in cfg.convolutions]


ALL = [scaled_scores, magnitude_scores, partial(random_scores, seed=0), bn_scale_scores]


@pytest.mark.parametrize("scores_of", ALL)
def test_every_convolution_has_weight_shaped_scores_without_gradient(model: Darknet, scores_of) -> None:
    # By the one interface of all scores; neither batches nor loss are read.
    scores = scores_of(model, iter(()), lambda heads, targets: heads[0].sum())
    assert list(scores) == [0, 1, 2]
    for index, values in scores.items():
        assert values.shape == model.conv(index).weight.shape
        assert values.dtype == torch.float32
        assert not values.requires_grad
