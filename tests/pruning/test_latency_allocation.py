"""Widths by measured time: what goes first, by hand; and the table of times."""

from __future__ import annotations

import itertools
import json
from math import log
from pathlib import Path

import numpy as np
import pytest
import torch

from prunedeploy.models import DarknetCfg, read_cfg
from prunedeploy.pruning.convolution_times import (
    ConvolutionTimes,
    Grid,
    measuring_grid,
    monotone,
    shape_of,
    times_as_json,
    times_from_json,
)
from prunedeploy.pruning.coupling import couple
from prunedeploy.pruning.granularity import Evidence, Filters
from prunedeploy.pruning.importance import unit_importance
from prunedeploy.pruning.latency_allocation import TimeTable, latency_path
from prunedeploy_engines.errors import ConfigError
from pruning.darknets import HEAD, conv, network

CHAIN = network(conv(32, 3), conv(32, 3), conv(32, 3), *HEAD)


def even_importance(cfg: DarknetCfg) -> list[torch.Tensor]:
    return [torch.ones(group.channels) for group in couple(cfg).groups]


def states(cfg: DarknetCfg, time_ms: TimeTable, importance: list[torch.Tensor], step: int = 8) -> list[dict[int, int]]:
    """Every width on the path, by the layer that has it."""
    coupling = couple(cfg)
    levels = [
        np.arange(step, group.channels + 1, step) if group.prunable else np.array([group.channels])
        for group in coupling.groups
    ]
    wanted = latency_path(cfg, coupling, importance, time_ms)(levels)
    rows: list[dict[int, int]] = []
    for fraction in np.linspace(1.0, 0.0, 201).tolist():
        row = {
            group.layers[0]: int(count)
            for group, count in zip(coupling.groups, wanted(fraction).tolist(), strict=True)
            if group.prunable
        }
        if not rows or rows[-1] != row:
            rows.append(row)
    return rows


def test_the_order_of_steps_worked_by_hand() -> None:
    # Time is the number of filters, times 5, 3 and 1. A step of 8 saves 40, 24 and 8 ms and loses log(32 / 24) of each
    # group's importance: layer 0 goes first. From 24 it would lose log(24 / 16) and save 40: 40 / .405 = 98.7 is more
    # than 24 / .288 = 83.4, so it goes again; from 16, 40 / .693 = 57.7, so now layer 1 is next. Several steps at once
    # are never better here: 2 steps of layer 0 save 80 / log(2) = 115.4 against 40 / .288 = 139.0.
    price = {0: 5.0, 1: 3.0, 2: 1.0, 3: 0.0}
    found = states(CHAIN, lambda layer, filters, inputs: price[layer] * filters, even_importance(CHAIN))
    assert found[:4] == [
        {0: 32, 1: 32, 2: 32},
        {0: 24, 1: 32, 2: 32},
        {0: 16, 1: 32, 2: 32},
        {0: 16, 1: 24, 2: 32},
    ]
    assert found[-1] == {0: 8, 1: 8, 2: 8}
    for before, after in itertools.pairwise(found):
        assert sum(before.values()) > sum(after.values())


def test_readers_of_a_layer_count_as_well_as_itself() -> None:
    # Only inputs cost time: layer 1 reads layer 0, so layer 0 pays for layer 1's price.
    price = {0: 0.0, 1: 1.0, 2: 9.0, 3: 0.0}
    found = states(CHAIN, lambda layer, filters, inputs: price[layer] * inputs, even_importance(CHAIN))
    assert found[1] == {0: 32, 1: 24, 2: 32}


def test_time_that_falls_in_stairs_is_seen() -> None:
    # 16 filters at a time: giving up 8 of layer 0 saves nothing, giving up 16 saves 16 ms, log(2) = .69: 23 per loss. A
    # step of layer 1 saves 4 ms, log(32 / 24) = .29: 14 per loss.
    def time_ms(layer: int, filters: float, inputs: float) -> float:
        return {0: 16.0 * -(-filters // 16), 1: 0.5 * filters}.get(layer, 0.0)

    assert states(CHAIN, time_ms, even_importance(CHAIN))[1] == {0: 16, 1: 32, 2: 32}


def test_filters_of_no_importance_go_first_and_important_ones_last() -> None:
    importance = even_importance(CHAIN)
    groups = couple(CHAIN).groups
    of_layer = {group.layers[0]: number for number, group in enumerate(groups) if group.prunable}
    importance[of_layer[2]][:8] = 0.0
    price = {0: 5.0, 1: 3.0, 2: 1.0, 3: 0.0}
    found = states(CHAIN, lambda layer, filters, inputs: price[layer] * filters, importance)
    assert found[1] == {0: 32, 1: 32, 2: 24}


def test_a_flat_table_falls_back_on_work() -> None:
    # No step saves time, so multiply-accumulates decide: layer 1 stands between two others, its filters are most work.
    found = states(CHAIN, lambda layer, filters, inputs: 1.0, even_importance(CHAIN))
    work = {0: 3 + 32, 1: 32 + 32, 2: 32 + 6 / 9}
    assert found[1] == {layer: 24 if layer == max(work, key=lambda key: work[key]) else 32 for layer in work}


def network_time_ms(cfg: DarknetCfg, counts: tuple[int, ...], time_ms: TimeTable) -> float:
    """Sum over all convolutions of a network whose groups have ``counts`` living units."""
    living = {index: float(per_unit @ counts) for index, per_unit in couple(cfg).channels_per_unit.items()}
    return sum(time_ms(layer.index, living[layer.index], living[layer.inputs[0]]) for layer in cfg.convolutions)


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
def test_it_is_faster_than_uniform_at_the_same_ratio_and_loses_less_of_every_group(
    repository: Path, ratio: float
) -> None:
    cfg = read_cfg(repository / "configs" / "darknet" / "yolov3.cfg")
    layers = {layer.index: layer for layer in cfg.convolutions}

    def time_ms(index: int, filters: float, inputs: float) -> float:
        # 50 multiply-accumulates a nanosecond, 16 filters at a time, and 5 microseconds for the call
        _, height, width = layers[index].out_shape
        return 16 * -(-filters // 16) * inputs * layers[index].size ** 2 * height * width / 5e7 + 5e-3

    coupling = couple(cfg)
    generator = torch.Generator().manual_seed(0)
    importance = [torch.rand(group.channels, generator=generator) + 0.5 for group in coupling.groups]
    # One score per filter is enough for its importance to be that.
    scores = {layer.index: torch.zeros(layer.out_channels, 1, 1, 1) for layer in cfg.convolutions}
    for group, values in zip(coupling.groups, importance, strict=True):
        for member in group.members:
            scores[member.layer][member.filters[:, 0], 0, 0, 0] = values
    found = {
        allocation: Filters(ratio, allocation, 8, 8).allocate(cfg, Evidence(scores, time_ms)).widths.counts
        for allocation in ("uniform", "latency")
    }
    times = {name: network_time_ms(cfg, counts, time_ms) for name, counts in found.items()}
    assert times["latency"] < times["uniform"]

    def lost(counts: tuple[int, ...]) -> float:
        total = 0.0
        for group, values, count in zip(coupling.groups, unit_importance(scores, coupling.groups), counts, strict=True):
            if group.prunable:
                total += log(float(values.sum() / values.sort(descending=True).values[:count].sum()))
        return total

    assert lost(found["latency"]) < lost(found["uniform"])


def test_times_between_grid_points_worked_by_hand() -> None:
    cfg = network(conv(16, 3), *HEAD)
    shape, head = (shape_of(cfg, layer) for layer in cfg.convolutions)
    measured = {
        shape: (Grid((8, 16), (3,)), np.array([[2.0], [6.0]])),
        head: (Grid((6,), (8, 16)), np.array([[1.0, 5.0]])),
    }
    times = ConvolutionTimes(cfg, measured)
    assert times(0, 8, 3) == 2.0
    assert times(0, 10, 3) == pytest.approx(3.0)  # a quarter of the way from 2 to 6
    assert times(0, 4, 3) == 2.0, "below the grid: its smallest"
    assert times(0, 16, 3) == 6.0
    assert times(1, 6, 12) == pytest.approx(3.0)
    square = ConvolutionTimes(cfg, {**measured, head: (Grid((2, 6), (8, 16)), np.array([[1.0, 2.0], [3.0, 8.0]]))})
    # half the way in both: the mean of the four corners
    assert square(1, 4, 12) == pytest.approx((1 + 2 + 3 + 8) / 4)


def test_noise_does_not_make_more_channels_cheaper() -> None:
    measured = np.array([[1.0, 9.0, 3.0], [2.0, 2.5, 4.0], [1.5, 5.0, 6.0]])
    # Every entry is the least of itself and all below and right of it.
    expected = [[min(measured[row:, column:].flatten()) for column in range(3)] for row in range(3)]
    assert monotone(measured).tolist() == expected
    assert bool((np.diff(expected, axis=0) >= 0).all())
    assert bool((np.diff(expected, axis=1) >= 0).all())


@pytest.mark.parametrize("name", ["yolov3", "yolov3-slim"])
def test_the_grid_covers_every_convolution_at_every_width(repository: Path, name: str) -> None:
    cfg = read_cfg(repository / "configs" / "darknet" / f"{name}.cfg")
    grids = measuring_grid(cfg)
    assert len(grids) < len(cfg.convolutions), "convolutions that differ in widths alone share one"
    for layer in cfg.convolutions:
        grid = grids[shape_of(cfg, layer)]
        assert grid.filters[0] <= min(8, layer.out_channels) or grid.filters[0] <= layer.out_channels // 4
        assert grid.filters[-1] >= layer.out_channels
        assert grid.inputs[-1] >= layer.in_channels[0]
        assert list(grid.filters) == sorted(set(grid.filters))
    assert sum(len(grid.filters) * len(grid.inputs) for grid in grids.values()) <= 16 * len(grids)


def test_grouped_convolutions_are_refused() -> None:
    with pytest.raises(ConfigError, match="layer 1 has groups, whose time at other widths is not measured"):
        measuring_grid(network(conv(16, 3), conv(16, 3, groups=16), *HEAD))


def test_a_table_survives_its_file() -> None:
    cfg = network(conv(16, 3), *HEAD)
    generator = np.random.default_rng(0)
    measured = {
        shape: (grid, generator.random((len(grid.filters), len(grid.inputs))))
        for shape, grid in measuring_grid(cfg).items()
    }
    again = times_from_json(json.loads(json.dumps(times_as_json(measured))))
    assert again.keys() == measured.keys()
    for shape, (grid, times) in measured.items():
        assert again[shape][0] == grid
        assert np.array_equal(again[shape][1], times)
