"""Every granularity: what is cut is what the scores say, and what shrinks computes what the masked network computes."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Mapping

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from effort import examples
from prunedeploy.models import Darknet, DarknetCfg, parse_cfg
from prunedeploy.pruning.coupling import coupling_groups
from prunedeploy.pruning.cut import make_cut
from prunedeploy.pruning.dead_channels import remove_dead_channels
from prunedeploy.pruning.granularity import (
    Allocation,
    Evidence,
    Filters,
    FiltersThenWeights,
    Granularity,
    Kernels,
    Pattern,
    Weights,
)
from prunedeploy.pruning.masks import live_channels
from prunedeploy.pruning.ratio import Widths, ratio_tolerance
from prunedeploy_engines.errors import ConfigError, PruningError
from pruning.darknets import (
    HEAD,
    RandomCfg,
    conv,
    cut_by,
    largest_difference,
    network,
    random_cfgs,
    random_network,
    scores_of,
    weights_but_head_outputs,
)

CFG = network(
    conv(16, 3), conv(32, 3), conv(32, 3, norm=False), "shortcut from=-2", conv(24), "route layers=-1,1", conv(40, 3),
    *HEAD,
)  # fmt: skip
HEAD_OUTPUT = 7


def zeros_and_size(model: Darknet, heads: set[int]) -> tuple[int, int]:
    """Zeros among the weights that a ratio counts, and how many there are."""
    weights = [model.conv(layer.index).weight for layer in model.cfg.convolutions if layer.index not in heads]
    return sum(int((weight == 0).sum()) for weight in weights), sum(weight.numel() for weight in weights)


GRANULARITIES = st.sampled_from(
    [
        *((Weights, how) for how in ("uniform", "global", "erk")),
        *((Kernels, how) for how in ("uniform", "global", "erk")),
        *((kind, how) for kind in (Filters, FiltersThenWeights) for how in ("uniform", "global", "erk", "latency")),
    ]
)


@settings(
    max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)
@given(
    graph=random_cfgs(),
    kind=GRANULARITIES,
    ratio=st.floats(0.05, 0.95),
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_random_networks_cut_any_way_compute_what_they_compute_masked(
    graph: RandomCfg, kind: tuple[type[Granularity], str], ratio: float, share: float, seed: int
) -> None:
    # float64, so that a wrong wire cannot hide behind rounding
    model = random_network(graph.cfg, seed).double()
    granularity = kind[0](ratio, kind[1])
    if isinstance(granularity, FiltersThenWeights):
        granularity = FiltersThenWeights(ratio, kind[1], 1, 4, share)
    elif isinstance(granularity, Filters):
        granularity = Filters(ratio, kind[1], 1, 4)
    try:
        cut, _, allocation = cut_by(granularity, model, scores_of(graph.cfg, seed))
    except PruningError:
        cut = None  # few filters reach few ratios
    assume(cut is not None)
    images = torch.rand(2, 3, graph.size, graph.size, dtype=torch.float64)
    assert largest_difference(cut.masked, cut.network, images) <= 1e-9
    assert parse_cfg(cut.network.cfg.text).layers == cut.network.cfg.layers
    record = json.loads(json.dumps(granularity.record(graph.cfg, cut, allocation)))
    before = weights_but_head_outputs(model, graph.head_outputs)
    zeros, left = zeros_and_size(cut.network, graph.head_outputs)
    assert record["ratio_achieved"] == pytest.approx(1 - (left - zeros) / before, abs=1e-12)
    assert abs(record["ratio_achieved"] - ratio) <= ratio_tolerance(ratio)
    for row in record["layers"]:
        weight = cut.network.conv(row["layer"]).weight
        assert (row["filters_after"], row["weights_after"]) == (weight.shape[0], int((weight != 0).sum()))
    for index, keep in cut.weights.items():
        assert torch.equal(cut.network.conv(index).weight != 0, keep), "masks are in the shapes of the cut network"


@pytest.fixture
def followed(monkeypatch: pytest.MonkeyPatch) -> list[DarknetCfg]:
    """The networks through which living filters were followed, one for each time."""
    kept: list[DarknetCfg] = []

    def follow(cfg: DarknetCfg, keep: Mapping[int, Tensor]) -> dict[int, Tensor]:
        kept.append(cfg)
        return live_channels(cfg, keep)

    for name, module in list(sys.modules.items()):
        if name.startswith("prunedeploy.pruning.") and hasattr(module, "live_channels"):
            monkeypatch.setattr(module, "live_channels", follow)
    return kept


@pytest.mark.parametrize("granularity", [Weights(0.9), Kernels(0.9), Filters(0.7, "uniform", 1, 4)])
def test_living_filters_are_followed_once_a_cut(granularity: Granularity, followed: list[DarknetCfg]) -> None:
    model, scores = random_network(CFG), scores_of(CFG)
    allocation = granularity.allocate(model.cfg, Evidence(scores))
    masks = granularity.selection(model.cfg, allocation)(scores).as_bool()
    assert followed == []
    cut = make_cut(model, masks)
    granularity.record(model.cfg, cut, allocation)
    if isinstance(granularity, Filters):
        assert followed == [model.cfg]
        return
    assert followed == [], "no filter leaves"
    # Readers of the first six filters get zeros for them, so that these are dead.
    with torch.no_grad():
        cut.network.conv(1).weight[:, :6] = 0.0
    small, record = remove_dead_channels(cut.network)
    assert record.filters_removed >= 6
    assert followed == [cut.network.cfg], "one pass, one look"
    assert small.cfg.convolutions[0].out_channels <= 10


def test_a_hybrid_cut_follows_living_filters_once_a_step(followed: list[DarknetCfg]) -> None:
    granularity = FiltersThenWeights(0.8, "global", 1, 4)
    model, scores = random_network(CFG), scores_of(CFG)
    allocation = granularity.allocate(model.cfg, Evidence(scores))
    assert len(followed) == 1, "to share out weights"
    masks = granularity.selection(model.cfg, allocation)(scores).as_bool()
    assert len(followed) == 2, "to choose weights"
    granularity.record(model.cfg, make_cut(model, masks), allocation)
    assert len(followed) == 3, "to cut, and to say what was cut"


def test_hybrid_without_filters_is_unstructured_and_with_filters_alone_structured() -> None:
    model, scores = random_network(CFG), scores_of(CFG)
    for how in ("uniform", "global", "erk"):
        weights, _, allocation = cut_by(FiltersThenWeights(0.7, how, 4, 4, 0.0), model, scores)
        expected = cut_by(Weights(0.7, how), model, scores)[1].weights
        assert allocation.widths.counts == tuple(group.channels for group in coupling_groups(CFG))
        for layer in CFG.convolutions:
            kept = weights.network.conv(layer.index).weight != 0
            assert torch.equal(kept, expected.get(layer.index, torch.ones_like(kept))), (how, layer.index)
    filters, _, allocation = cut_by(FiltersThenWeights(0.7, "uniform", 4, 4, 1.0), model, scores)
    structured, _, alone = cut_by(Filters(0.7, "uniform", 4, 4), model, scores)
    assert allocation == alone
    assert filters.weights == {}
    for index, keep in structured.filters.items():
        assert torch.equal(filters.filters[index], keep)
    ours, theirs = filters.network.state_dict(), structured.network.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
@pytest.mark.parametrize("ratio", [0.5, 0.75, 0.9])
def test_hybrid_takes_its_share_by_filters_and_the_ratio_in_all(ratio: float, share: float) -> None:
    granularity = FiltersThenWeights(ratio, "uniform", 1, 2, share)
    cut, _, allocation = cut_by(granularity, random_network(CFG), scores_of(CFG))
    record = granularity.record(CFG, cut, allocation)
    total = weights_but_head_outputs(random_network(CFG), {HEAD_OUTPUT})
    zeros, left = zeros_and_size(cut.network, {HEAD_OUTPUT})
    assert record["ratio_by_filters"] == pytest.approx(1 - left / total)
    assert record["ratio_by_weights"] == pytest.approx(zeros / total)
    assert record["ratio_by_filters"] == pytest.approx(ratio * share, abs=0.01)
    assert record["ratio_achieved"] == pytest.approx(ratio, abs=1 / total)
    assert (record["method"], record["filter_share"], record["ratio_requested"]) == ("hybrid", share, ratio)


def test_hybrid_ranks_only_weights_that_are_still_connected() -> None:
    scores = scores_of(CFG)
    cut, masks, allocation = cut_by(FiltersThenWeights(0.8, "uniform", 4, 4, 0.5), random_network(CFG), scores)
    living = cut.filters
    # Layer 1 reads layer 0. A plain loop over what is left of it:
    places = itertools.product(*map(range, scores[1].shape))
    connected = [place for place in places if bool(living[1][place[0]] and living[0][place[1]])]
    best = sorted(connected, key=lambda place: -float(scores[1][place].abs()))[: allocation.pieces[1]]
    assert {place for place in connected if bool(masks.weights[1][place])} == set(best)
    assert len(best) < len(connected) < scores[1].numel()


def test_kernels_live_or_die_whole_and_the_best_of_each_layer_live() -> None:
    scores = scores_of(CFG)
    keep, counts = cut_by(Kernels(0.6), random_network(CFG), scores)[1].weights, Kernels(0.6).allocate(CFG).pieces
    for index, mask in keep.items():
        filters, channels = mask.shape[:2]
        importance = {
            (o, i): float(torch.tensor([abs(v) for v in scores[index][o, i].flatten().tolist()]).mean())
            for o, i in itertools.product(range(filters), range(channels))
        }
        best = set(sorted(importance, key=lambda kernel: -importance[kernel])[: counts[index]])
        for o, i in importance:
            assert bool(mask[o, i].all()) == bool(mask[o, i].any()) == ((o, i) in best)
    # Of a 1 x 1 convolution a kernel is one weight.
    assert scores[4].shape[2:] == (1, 1)
    assert counts[4] == pytest.approx(0.4 * scores[4].numel(), abs=5)


def test_kernels_of_1_x_1_networks_are_weights() -> None:
    cfg = network(conv(16), conv(24), *HEAD)
    model, scores = random_network(cfg), scores_of(cfg)
    for how in ("uniform", "global", "erk"):
        ours, weights = (cut_by(kind(0.7, how), model, scores)[1].weights for kind in (Kernels, Weights))
        assert ours.keys() == weights.keys()
        assert all(torch.equal(ours[index], weights[index]) for index in weights)


@pytest.mark.parametrize("kind", [Weights, Kernels])
def test_selections_need_fitting_scores(kind: type[Granularity]) -> None:
    scores = scores_of(CFG)
    select = kind(0.5).selection(CFG, kind(0.5).allocate(CFG))
    with pytest.raises(ValueError, match=r"layer 0: expected scores of shape \(16, 3, 3, 3\), got None"):
        select({})
    with pytest.raises(ValueError, match=r"layer 1: expected scores of shape \(32, 16, 3, 3\), got \(32, 144\)"):
        select({**scores, 1: scores[1].flatten(1)})
    scores[1][0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="hold a NaN"):
        select(scores)
    with pytest.raises(ValueError, match="the scores of layer 1 hold a NaN"):
        kind(0.5, "global").allocate(CFG, Evidence(scores))
    with pytest.raises(PruningError, match="give a number from 0 to below 1"):
        kind(1.0).allocate(CFG)


@pytest.mark.parametrize("granularity", [Filters(0.5), FiltersThenWeights(0.5)], ids=repr)
def test_selections_of_filters_need_finite_scores(granularity: Granularity) -> None:
    scores = scores_of(CFG)
    select = granularity.selection(CFG, granularity.allocate(CFG))
    with pytest.raises(ValueError, match="no scores for layer"):
        select({})
    with pytest.raises(ValueError, match="not finite"):
        select({**scores, 0: scores[0] * float("nan")})


@pytest.mark.parametrize(
    "granularity", [Weights(0.6), Kernels(0.6), Filters(0.6), FiltersThenWeights(0.6), Pattern(0.5)], ids=repr
)
def test_an_allocation_survives_its_file(granularity: Granularity) -> None:
    # 32 * 27 weights of the first layer have no blocks of four: few enough for 2:4 to remove half.
    allocation = granularity.allocate(network(conv(32, 3), conv(64, 3), conv(64, 3), *HEAD))
    again = Allocation.from_json(json.loads(json.dumps(allocation.as_json())))
    assert again == allocation
    assert again.widths is None or isinstance(again.widths, Widths)


def test_a_pattern_that_does_not_give_the_ratio_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"2:4 removes 0\.\d+ of this network's prunable weights, not 0.9"):
        Pattern(0.9).allocate(CFG)


def test_nothing_is_removed_at_ratio_zero_whatever_the_allocation() -> None:
    model, scores = random_network(CFG), scores_of(CFG)
    for kind in (Weights, Kernels, Filters, FiltersThenWeights):
        for how in kind.allocations:
            cut, _, _ = cut_by(kind(0.0, how), model, scores)
            for name, value in model.state_dict().items():
                assert torch.equal(cut.network.state_dict()[name], value), (kind, how)


def test_a_cut_leaves_the_network_it_was_made_from_alone() -> None:
    model, scores = random_network(CFG), scores_of(CFG)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for granularity in (Weights(0.5), Kernels(0.5), Filters(0.5), FiltersThenWeights(0.5)):
        cut_by(granularity, model, scores)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
