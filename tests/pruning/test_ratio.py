"""The ratio that is achieved is the ratio that was asked for."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from prunedeploy.models import DarknetCfg, read_cfg
from prunedeploy.pruning import Filters, Weights
from prunedeploy.pruning.coupling import couple, prunable_convolutions
from prunedeploy.pruning.masks import connected_kernels, live_channels
from prunedeploy.pruning.ratio import ratio_tolerance, solve_widths
from prunedeploy.pruning.subnet import count_parameters
from prunedeploy_engines.errors import PruningError
from pruning.darknets import HEAD, conv, cut_by, network, random_network, scores_of, sparsity

PAPER_RATIOS = (0.0, 0.25, 0.5, 0.65, 0.75, 0.85, 0.9, 0.95, 0.99)
CHAIN = network(conv(32, 3), conv(64, 3), conv(32), *HEAD)


@pytest.mark.parametrize("ratio", PAPER_RATIOS)
@pytest.mark.parametrize("name", ["yolov3", "yolov3-tiny", "yolov3-spp", "yolov3-slim"])
def test_every_ratio_of_the_paper_is_reached_with_multiples_of_eight(repository: Path, name: str, ratio: float) -> None:
    cfg = read_cfg(repository / "configs" / "darknet" / f"{name}.cfg")
    widths = solve_widths(cfg, ratio)
    assert widths.multiple == 8
    assert abs(widths.ratio_achieved - ratio) <= min(3e-4, ratio_tolerance(ratio))


def test_allocation_is_uniform_up_to_one_step(repository: Path) -> None:
    cfg = read_cfg(repository / "configs" / "darknet" / "yolov3.cfg")
    coupling = couple(cfg)
    widths = solve_widths(cfg, 0.75)
    # Three quarters of the weights go when about half of all filters go; 8 filters is one step, and
    # rounding and adjusting move a group by at most one and a half.
    for group, count in zip(coupling.groups, widths.counts, strict=True):
        if group.prunable and group.channels >= 64:
            assert abs(count - 0.5 * group.channels) <= 12 + 0.03 * group.channels
        if not group.prunable:
            assert count == group.channels


def reachable(cfg: DarknetCfg, multiple: int) -> list[float]:
    """Every ratio of a chain 3 -> a -> b -> c -> head that multiples reach, by trying all."""
    a0, b0, c0 = (layer.out_channels for layer in cfg.convolutions[:3])
    total = 3 * a0 * 9 + a0 * b0 * 9 + b0 * c0
    steps = [range(multiple, width + 1, multiple) for width in (a0, b0, c0)]
    return [1 - (3 * a * 9 + a * b * 9 + b * c) / total for a, b, c in itertools.product(*steps)]


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5, 0.7, 0.8, 0.9])
@pytest.mark.parametrize("multiple", [4, 8])
def test_solver_finds_a_solution_where_trying_everything_finds_one(ratio: float, multiple: int) -> None:
    exists = min(abs(value - ratio) for value in reachable(CHAIN, multiple)) <= 0.01
    widths = solve_widths(CHAIN, ratio, multiple=multiple)
    assert abs(widths.ratio_achieved - ratio) <= 0.01
    assert any(abs(value - widths.ratio_achieved) < 1e-12 for value in reachable(CHAIN, widths.multiple))
    assert (widths.multiple == multiple) == exists


def test_unreachable_ratio_says_what_can_be_reached() -> None:
    highest = max(reachable(CHAIN, 8))
    with pytest.raises(PruningError, match=f"the highest reachable is {highest:.4f}"):
        solve_widths(CHAIN, 0.99, minimum=8)


def test_smaller_multiples_are_tried_and_recorded() -> None:
    assert max(reachable(CHAIN, 8)) < 0.97 - 0.003 < max(reachable(CHAIN, 4))
    widths = solve_widths(CHAIN, 0.97)
    assert widths.multiple == 4
    assert abs(widths.ratio_achieved - 0.97) <= 0.003


def test_minimum_holds_for_every_multiple() -> None:
    cfg = network(conv(32, 3), conv(64, 3), conv(12, norm=False), *HEAD)
    cut, _, _ = cut_by(Filters(0.6, minimum=16), random_network(cfg), scores_of(cfg))
    after = {layer.index: layer.out_channels for layer in cut.network.cfg.convolutions}
    assert after[0] >= 16
    assert after[1] >= 16
    assert after[2] == 12


def test_highest_reachable_on_the_slim_network(repository: Path) -> None:
    cfg = read_cfg(repository / "configs" / "darknet" / "yolov3-slim.cfg")
    with pytest.raises(PruningError, match=r"highest reachable is 0\.9939"):
        solve_widths(cfg, 0.998, minimum=8)
    assert solve_widths(cfg, 0.998).multiple < 8


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 1.5, float("nan"), float("inf")])
def test_ratio_outside_its_range_is_refused(ratio: float) -> None:
    with pytest.raises(PruningError, match="give a number from 0 to below 1"):
        solve_widths(CHAIN, ratio)
    with pytest.raises(PruningError, match="give a number from 0 to below 1"):
        Weights(ratio).allocate(CHAIN)


def test_network_of_heads_alone_can_only_stay_whole() -> None:
    cfg = network(*HEAD)
    assert solve_widths(cfg, 0.0).ratio_achieved == 0.0
    with pytest.raises(PruningError, match=r"highest reachable is 0\.0000"):
        solve_widths(cfg, 0.5)
    assert cut_by(Weights(0.5), random_network(cfg), {})[1] == ({}, {})


def test_ratio_zero_keeps_everything() -> None:
    cut, _, allocation = cut_by(Filters(0.0), random_network(CHAIN), scores_of(CHAIN))
    assert allocation.widths.ratio_achieved == 0.0
    assert all(bool(mask.all()) for mask in cut.filters.values())


def test_the_most_important_filters_live() -> None:
    scores = scores_of(CHAIN, 1)
    cut, _, allocation = cut_by(Filters(0.5), random_network(CHAIN), scores)
    smaller = 0
    for group, count in zip(couple(CHAIN).groups, allocation.widths.counts, strict=True):
        if group.prunable:
            layer = group.members[0].layer  # of a chain every group is one convolution
            values, living = scores[layer].abs().flatten(1).mean(1), cut.filters[layer]
            assert int(living.sum()) == count
            if count < group.channels:
                smaller += 1
                assert values[living].min() > values[~living].max()
    assert smaller >= 2


def test_a_convolution_spread_over_groups_keeps_a_multiple_in_all() -> None:
    # layer 4 has 10 + 22 = 32 filters in two groups; 10 and 22 are not multiples of 8, their sum is.
    cfg = network(conv(10), "route layers=-1", conv(22), "route layers=0,2", conv(32), "shortcut from=-2", *HEAD)
    cut, _, allocation = cut_by(Filters(0.4, multiple=2), random_network(cfg), scores_of(cfg))
    assert allocation.widths.multiple == 2
    after = {layer.index: layer.out_channels for layer in cut.network.cfg.convolutions}
    assert after[4] < 32
    assert after[4] % 2 == 0
    assert after[4] == after[0] + after[2]


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5, 0.9, 0.99])
def test_unstructured_keeps_the_largest_scores_of_each_layer(ratio: float) -> None:
    scores = scores_of(CHAIN)
    masks = cut_by(Weights(ratio), random_network(CHAIN), scores)[1].weights
    assert sorted(masks) == [0, 1, 2]
    removed = total = 0
    for index, mask in masks.items():
        size = scores[index].numel()
        kept = int(mask.sum())
        assert abs(kept - (1 - ratio) * size) <= 1
        if 0 < kept < size:
            assert scores[index][mask].abs().min() > scores[index][~mask].abs().max()
        removed, total = removed + size - kept, total + size
    assert abs(removed / total - ratio) <= 1 / total


def test_sparsity_of_the_masked_network_is_the_ratio() -> None:
    model = random_network(CHAIN)
    cut, _, allocation = cut_by(Filters(0.7), model, scores_of(CHAIN))
    achieved = pytest.approx(allocation.widths.ratio_achieved, abs=1e-12)
    assert sparsity(model) == 0.0
    assert sparsity(cut.masked) == achieved
    kernels = connected_kernels(CHAIN, live_channels(CHAIN, cut.filters))
    kept = sum(int(kernels[layer.index].sum()) * layer.size**2 for layer in prunable_convolutions(CHAIN))
    assert 1 - kept / (21536 - 192) == achieved
    assert sparsity(cut_by(Weights(0.7), model, scores_of(CHAIN))[0].network) == pytest.approx(0.7, abs=1e-3)
    assert sparsity(model) == 0.0


def test_parameters_are_counted_without_running_statistics() -> None:
    # weights 3*32*9 + 32*64*9 + 64*32 + 32*6 = 21536, scale and shift 2 * (32 + 64 + 32) = 256, head bias 6
    assert count_parameters(random_network(CHAIN)) == 21536 + 256 + 6
    assert sum(layer.weight_count for layer in prunable_convolutions(CHAIN)) == 21536 - 192


def test_record_says_what_the_files_say() -> None:
    granularity = Filters(0.5)
    cut, masks, allocation = cut_by(granularity, random_network(CHAIN), scores_of(CHAIN))
    record = json.loads(json.dumps(granularity.record(CHAIN, masks, allocation)))
    assert [row["filters_after"] for row in record["layers"]] == [c.out_channels for c in cut.network.cfg.convolutions]
    assert [row["counted"] for row in record["layers"]] == [True, True, True, False]
    counted = [row for row in record["layers"] if row["counted"]]
    removed = 1 - sum(row["weights_after"] for row in counted) / sum(row["weights_before"] for row in counted)
    assert record["ratio_achieved"] == pytest.approx(removed, abs=1e-12)
    assert (record["method"], record["ratio_requested"], record["channel_multiple"]) == ("structured", 0.5, 8)


def test_unstructured_record_counts_the_zeros() -> None:
    granularity = Weights(0.9)
    _, masks, allocation = cut_by(granularity, random_network(CHAIN), scores_of(CHAIN))
    record = granularity.record(CHAIN, masks, allocation)
    assert record["ratio_achieved"] == pytest.approx(0.9, abs=1e-4)
    assert [row["filters_after"] for row in record["layers"]] == [32, 64, 32, 6]
    assert record["layers"][3]["weights_after"] == 192
    json.dumps(record)
