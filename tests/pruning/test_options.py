"""Options of sections under pruning: coupling, shrinking, dead channels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from effort import examples
from prunedeploy.models import load_darknet
from prunedeploy.pruning import Filters, shrink
from prunedeploy.pruning.coupling import coupling_groups
from prunedeploy.pruning.dead_channels import remove_dead_channels
from prunedeploy.pruning.masks import apply_structured
from prunedeploy_engines.errors import PruningError
from pruning.darknets import HEAD, any_choice_of_units, conv, cut_by, largest_difference, network
from pruning.option_networks import (
    OPTION_NETWORKS,
    OptionCfg,
    fit_normalisation,
    half_of_every_group,
    random_option_cfgs,
    random_options_network,
)


@pytest.mark.parametrize("name", OPTION_NETWORKS)
def test_half_of_the_filters_leave_and_the_rest_computes_the_same(name: str) -> None:
    model = random_options_network(network(*OPTION_NETWORKS[name])).double()
    keep = half_of_every_group(model)
    small = shrink(model, keep)
    assert 0.3 * model.parameter_count() < model.parameter_count() - small.parameter_count()
    images = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    assert largest_difference(apply_structured(model, keep), small, images) < 1e-10


@pytest.mark.parametrize("name", OPTION_NETWORKS)
def test_files_of_the_pruned_network_are_read_as_they_were_written(name: str, tmp_path: Path) -> None:
    model = random_options_network(network(*OPTION_NETWORKS[name]))
    small = shrink(model, half_of_every_group(model))
    small.save(tmp_path / "x.cfg", tmp_path / "x.weights")
    again = load_darknet(tmp_path / "x.cfg", tmp_path / "x.weights")
    assert largest_difference(small, again, torch.rand(1, 3, 16, 16)) == 0
    again.save(tmp_path / "y.cfg", tmp_path / "y.weights")
    for end in ("cfg", "weights"):
        assert (tmp_path / f"x.{end}").read_bytes() == (tmp_path / f"y.{end}").read_bytes()


@pytest.mark.parametrize("name", OPTION_NETWORKS)
def test_half_of_the_weights_leave_a_fitted_network(name: str) -> None:
    images = torch.rand(2, 3, 16, 16)
    model = fit_normalisation(random_options_network(network(*OPTION_NETWORKS[name])), images)
    scores = {layer.index: model.conv(layer.index).weight.detach() for layer in model.cfg.convolutions}
    granularity = Filters(0.5, multiple=1)
    try:
        cut, _, _ = cut_by(granularity, model, scores)
    except PruningError:
        # A depthwise convolution leaves few ratios to networks of two layers.
        granularity = Filters(0.4, multiple=1)
        cut, _, _ = cut_by(granularity, model, scores)
    assert cut.network.parameter_count() < 0.75 * model.parameter_count()
    assert largest_difference(cut.masked, cut.network, images) <= 1e-5


@settings(max_examples=examples(80), suppress_health_check=[HealthCheck.too_slow])
@given(graph=random_option_cfgs(), data=st.data())
def test_any_units_of_random_networks_can_leave(graph: OptionCfg, data: st.DataObject) -> None:
    model = random_options_network(graph.cfg).double()
    assert [layer.out_shape for layer in graph.cfg.layers] == graph.shapes
    keep = any_choice_of_units(data, graph.cfg)
    images = torch.rand(1, 3, graph.size, graph.size, dtype=torch.float64)
    assert largest_difference(apply_structured(model, keep), shrink(model, keep), images) <= 1e-9


@settings(max_examples=examples(60), suppress_health_check=[HealthCheck.too_slow])
@given(graph=random_option_cfgs(), seed=st.integers(0, 99))
def test_filters_that_zeros_made_useless_leave_random_networks_exactly(graph: OptionCfg, seed: int) -> None:
    model = random_options_network(graph.cfg, seed).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in graph.cfg.convolutions:
            weight = model.conv(layer.index).weight
            weight[torch.rand(weight.shape[:1], generator=generator) < 0.4] = 0.0
            weight[:, torch.rand(weight.shape[1:2], generator=generator) < 0.3] = 0.0
    small, record = remove_dead_channels(model)
    assert record.deviation < 1e-9
    images = torch.rand(1, 3, graph.size, graph.size, dtype=torch.float64)
    with torch.no_grad():
        for one, other in zip(model(images), small(images), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        # The first eight of both in pairs; what the wider one has beyond goes by itself.
        ("a narrower layer is added", [{0: 8, 1: 8}, {1: 4}, {3: 8}]),
        ("a wider layer is added", [{0: 8, 1: 8}, {0: 4}, {3: 8}]),
        # One kernel reads layer 0 twice, and its filters are added to themselves.
        ("shared weights", [{0: 8}, {1: 12}, {5: 8}]),
        # Channels 0, 4 and 8 of twelve compete for one place.
        ("largest of channels", [{0: 12}, {2: 8}]),
        ("largest of channels, not all as often", [{0: 6}, {0: 4}, {2: 8}]),
    ],
)
def test_what_leaves_together(name: str, groups: list[dict[int, int]]) -> None:
    found = [group for group in coupling_groups(network(*OPTION_NETWORKS[name])) if group.prunable]
    assert [{member.layer: member.filters.numel() for member in group.members} for group in found] == groups


def test_the_channels_that_two_layers_with_the_same_weights_read_leave_together() -> None:
    cfg = network(conv(8, 3), conv(8, 3), conv(6, 3), "route layers=0", conv(6, 3) + " share_index=2", *HEAD)
    groups = [group for group in coupling_groups(cfg) if group.prunable]
    assert [group.layers for group in groups] == [(0, 1), (2,)]


def test_shared_weights_count_once_and_work_twice() -> None:
    cfg = network(conv(8, 3), conv(12, 3), "route layers=0", conv(12, 3) + " share_index=1", *HEAD)
    once = network(conv(8, 3), conv(12, 3), "route layers=1", *HEAD)
    assert load_darknet(cfg).parameter_count() == load_darknet(once).parameter_count()
    assert cfg.macs - once.macs == 12 * 8 * 9 * 16 * 16
