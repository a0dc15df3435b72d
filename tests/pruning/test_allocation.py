"""How a ratio is shared out over layers: by hand, by plain loops, and on the shipped networks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from effort import examples
from prunedeploy.models import DarknetCfg, read_cfg
from prunedeploy.pruning.allocation import (
    Pieces,
    allocate_pieces,
    erk_counts,
    erk_densities,
    global_counts,
    kernel_pieces,
    uniform_counts,
    weight_pieces,
)
from prunedeploy.pruning.coupling import couple, prunable_convolutions
from prunedeploy.pruning.granularity import Evidence, Filters, FiltersThenWeights, Granularity, Kernels, Weights
from prunedeploy.pruning.importance import unit_importance
from prunedeploy.pruning.ratio import ratio_tolerance
from prunedeploy.pruning.width_paths import erk_path, global_path
from prunedeploy_engines.errors import PruningError
from pruning.darknets import HEAD, conv, network

RATIOS = (0.0, 0.25, 0.5, 0.65, 0.75, 0.85, 0.9, 0.95, 0.99)
# Layer 0: 3 -> 8, 3 x 3, 216 weights. Layer 1: 8 -> 16, 1 x 1, 128 weights.
SMALL = network(conv(8, 3), conv(16, 1), *HEAD)


def test_erk_densities_worked_by_hand() -> None:
    # (n_in + n_out + k_w + k_h) / weights: (3 + 8 + 3 + 3) / 216 and (8 + 16 + 1 + 1) / 128. A quarter of 344 weights
    # is 86 = 2 * (17 + 26), so the common scale is 2.
    found = erk_densities(prunable_convolutions(SMALL), 0.25)
    assert found == {0: pytest.approx(2 * 17 / 216), 1: pytest.approx(2 * 26 / 128)}
    assert erk_counts(SMALL, weight_pieces(SMALL), 0.25) == {0: 34, 1: 52}
    # Kernels of layer 0 have 9 weights: 34 / 9 is nearest to 4; layer 1 then keeps 86 - 36.
    assert erk_counts(SMALL, kernel_pieces(SMALL), 0.25) == {0: 4, 1: 50}


def test_erk_caps_a_layer_at_density_one_and_gives_the_rest_to_the_others() -> None:
    # Three quarters are 258 = 6 * 43; 6 * 26 = 156 is more than layer 1 has, so it keeps its 128, layer 0 130.
    found = erk_densities(prunable_convolutions(SMALL), 0.75)
    assert found == {0: pytest.approx(130 / 216), 1: 1.0}
    assert erk_counts(SMALL, weight_pieces(SMALL), 0.75) == {0: 130, 1: 128}
    assert erk_densities(prunable_convolutions(SMALL), 1.0) == {0: pytest.approx(1.0), 1: 1.0}


@settings(max_examples=examples(30), deadline=None)
@given(density=st.floats(0.01, 1.0))
def test_erk_densities_have_the_density_asked_for_and_one_scale(density: float) -> None:
    cfg = network(conv(24, 3), conv(8, 1), conv(48, 3), conv(4, 1), conv(64, 3), *HEAD)
    found, layers = erk_densities(prunable_convolutions(cfg), density), prunable_convolutions(cfg)
    weights = {layer.index: int(np.prod(layer.weight_shape)) for layer in layers}
    kept = sum(found[index] * weights[index] for index in found)
    assert kept == pytest.approx(density * sum(weights.values()))
    scales = [found[x.index] * weights[x.index] / sum(x.weight_shape) for x in layers if found[x.index] < 1]
    assert scales == pytest.approx([scales[0]] * len(scales)) if scales else density == pytest.approx(1.0)
    for layer in layers:
        if found[layer.index] == 1.0 and scales:
            assert scales[0] * sum(layer.weight_shape) >= weights[layer.index] * (1 - 1e-9)


def test_erk_widths_worked_by_hand() -> None:
    # Factors 17 / 216 = .0787 and 26 / 128 = .2031. At a quarter of the way the densities are .25 and
    # .25 * .2031 / .0787 = .645, the widths their square roots: .5 of 8 and .803 of 16; the head keeps all 6.
    wanted = erk_path(SMALL, couple(SMALL))([])(0.25)
    groups = couple(SMALL).groups
    by_layer = {group.layers[0]: value for group, value in zip(groups, wanted.tolist(), strict=True) if group.layers}
    assert by_layer == {0: pytest.approx(4.0), 1: pytest.approx(16 * (0.25 * 26 * 216 / 128 / 17) ** 0.5), 2: 6.0}
    assert erk_path(SMALL, couple(SMALL))([])(1.0).tolist() == list(couple(SMALL).full_counts)


def best_counts(importance: dict[int, Tensor], pieces: tuple[Pieces, ...], density: float) -> dict[int, int]:
    """Every layer's best piece, then the best of all others, one at a time, while that gets nearer to the target."""
    total = sum(layer.count * layer.weights for layer in pieces)
    target = round(density * total)
    counts, others = {}, []
    for order, layer in enumerate(pieces):
        ranked = sorted(importance[layer.layer].tolist(), reverse=True)
        counts[layer.layer] = 1
        others += [(-value, order, layer) for value in ranked[1:]]
    kept = sum(layer.weights for layer in pieces)
    for _, _, layer in sorted(others, key=lambda item: item[:2]):
        if abs(kept + layer.weights - target) >= abs(kept - target):
            break
        counts[layer.layer] += 1
        kept += layer.weights
    return counts


@settings(max_examples=examples(80), deadline=None)
@given(density=st.floats(0.02, 1.0), seed=st.integers(0, 999), equal=st.booleans())
def test_global_keeps_the_best_of_the_whole_network(density: float, seed: int, equal: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    pieces = tuple(
        Pieces(index, int(torch.randint(1, 30, (), generator=generator)), 1 if equal else weights)
        for index, weights in ((0, 9), (2, 1), (3, 25), (7, 4))
    )
    # Layers of very different scales, so that some are left with their best piece alone.
    importance = {
        piece.layer: torch.rand(piece.count, generator=generator) * 10.0 ** (piece.layer % 3 - 1) for piece in pieces
    }
    assert global_counts(importance, pieces, density) == best_counts(importance, pieces, density)


def test_global_ties_go_to_earlier_layers_and_nothing_is_written_into_the_importance() -> None:
    pieces = (Pieces(0, 4, 1), Pieces(1, 4, 1))
    importance = {0: torch.ones(4), 1: torch.ones(4)}
    assert global_counts(importance, pieces, 0.625) == {0: 4, 1: 1}
    assert torch.equal(importance[0], torch.ones(4))


@pytest.mark.parametrize("density", [1.0, 0.75, 0.5, 0.1, 0.01])
def test_uniform_rounds_the_running_total(density: float) -> None:
    cfg = network(conv(24, 3), conv(8, 1), conv(48, 3), *HEAD)
    total = kept = 0
    expected = {}
    for layer in prunable_convolutions(cfg):
        total += int(np.prod(layer.weight_shape))
        expected[layer.index] = max(1, round(density * total) - kept)
        kept += expected[layer.index]
    assert uniform_counts(weight_pieces(cfg), density) == expected


def test_unknown_allocations_and_missing_scores_are_refused() -> None:
    pieces = weight_pieces(SMALL)
    with pytest.raises(ValueError, match="cannot allocate pieces by 'latency'"):
        allocate_pieces(SMALL, pieces, "latency", 0.5)
    for kind in (Weights, Kernels, Filters):
        with pytest.raises(ValueError, match=r"without importances|global needs scores"):
            kind(0.5, "global").allocate(SMALL)
    scores = {layer.index: torch.rand(layer.weight_shape) for layer in SMALL.convolutions}
    with pytest.raises(ValueError, match="cannot allocate filters by 'latency' without times"):
        Filters(0.5, "latency").allocate(SMALL, Evidence(scores))
    with pytest.raises(PruningError, match=r"the highest is 0\.9709, one kernel per layer"):
        Kernels(0.99).allocate(SMALL)  # 1 - (9 + 1) / 344


@settings(max_examples=examples(40), deadline=None)
@given(seed=st.integers(0, 999), fraction=st.floats(0.0, 1.0))
def test_global_widths_are_the_units_above_one_threshold(seed: int, fraction: float) -> None:
    cfg = network(conv(12, 3), conv(20, 3), "shortcut from=-1", conv(16, 1), *HEAD)
    coupling = couple(cfg)
    generator = torch.Generator().manual_seed(seed)
    importance = [torch.rand(group.channels, generator=generator) for group in coupling.groups]
    prunable = [own for group, own in zip(coupling.groups, importance, strict=True) if group.prunable]
    everything = sorted((value for own in prunable for value in own.tolist()), reverse=True)
    kept = [value for place, value in enumerate(everything) if place < fraction * len(everything)]
    wanted = global_path(importance, coupling)([])(fraction)
    for group, own, count in zip(coupling.groups, importance, wanted.tolist(), strict=True):
        expected = sum(value in kept for value in own.tolist()) if group.prunable else group.channels
        assert count == expected


@pytest.fixture(scope="module", params=["yolov3-slim", "yolov3-tiny"])
def shipped(request: pytest.FixtureRequest, repository: Path) -> tuple[DarknetCfg, dict[int, Tensor]]:
    """A network and scores whose scale differs between layers as HYDRA's do."""
    cfg = read_cfg(repository / "configs" / "darknet" / f"{request.param}.cfg")
    generator = torch.Generator().manual_seed(0)
    scores = {}
    for layer in cfg.convolutions:
        fan_in = int(np.prod(layer.weight_shape[1:]))
        scores[layer.index] = torch.randn(layer.weight_shape, generator=generator) * (6 / fan_in) ** 0.5
    return cfg, scores


def removed(cfg: DarknetCfg, granularity: Granularity, evidence: Evidence) -> float:
    """The ratio that an allocation gives, counted from widths and pieces one layer at a time."""
    allocation, coupling = granularity.allocate(cfg, evidence), couple(cfg)
    total = kept = 0
    for layer in prunable_convolutions(cfg):
        filters, inputs, height, width = layer.weight_shape
        total += filters * inputs * height * width
        if allocation.pieces is not None:
            kept += allocation.pieces[layer.index] * (height * width if isinstance(granularity, Kernels) else 1)
        else:
            counts = np.array(allocation.widths.counts)
            living = [int(coupling.channels_per_unit[index] @ counts) for index in (layer.index, layer.inputs[0])]
            kept += living[0] * living[1] * height * width
    return 1 - kept / total


def macs(cfg: DarknetCfg) -> Evidence:
    layers = {layer.index: layer for layer in cfg.convolutions}

    def time_ms(index: int, filters: float, inputs: float) -> float:
        _, height, width = layers[index].out_shape
        return filters * inputs * layers[index].size ** 2 * height * width * 1e-7

    return Evidence(None, time_ms)


@pytest.mark.parametrize("allocation", ["uniform", "global", "erk", "latency"])
@pytest.mark.parametrize("kind", [Weights, Kernels, Filters, FiltersThenWeights])
def test_every_ratio_is_reached_by_every_method_and_allocation(
    shipped: tuple[DarknetCfg, dict[int, Tensor]], kind: type[Granularity], allocation: str
) -> None:
    if allocation not in kind.allocations:
        return
    cfg, scores = shipped
    evidence = Evidence(scores, macs(cfg).times)
    # The larger network takes a second per ratio where weights are ranked globally.
    for ratio in RATIOS if len(cfg.convolutions) > 20 else RATIOS[::2]:
        achieved = removed(cfg, kind(ratio, allocation), evidence)
        assert abs(achieved - ratio) <= ratio_tolerance(ratio), ratio


@pytest.mark.parametrize("allocation", ["global", "erk", "latency"])
def test_minimum_and_multiple_of_channels_hold_in_every_allocation(
    shipped: tuple[DarknetCfg, dict[int, Tensor]], allocation: str
) -> None:
    cfg, scores = shipped
    widths = Filters(0.75, allocation, 16, 8).allocate(cfg, Evidence(scores, macs(cfg).times)).widths
    assert widths.multiple == 8
    for group, count in zip(couple(cfg).groups, widths.counts, strict=True):
        assert count == group.channels or (count % 8 == 0 and count >= min(16, group.channels))
    assert widths.counts != Filters(0.75, "uniform", 16, 8).allocate(cfg).widths.counts


def test_global_widths_follow_the_scores(shipped: tuple[DarknetCfg, dict[int, Tensor]]) -> None:
    cfg, scores = shipped
    coupling = couple(cfg)
    widths = Filters(0.5, "global", 8, 8).allocate(cfg, Evidence(scores)).widths
    importance = unit_importance(scores, coupling.groups)
    below = [
        (float(own.max()), group.channels - count)
        for group, own, count in zip(coupling.groups, importance, widths.counts, strict=True)
        if group.prunable
    ]
    # The wide layers with many inputs have the lowest scores here: they lose filters before the narrow ones do.
    assert max(gone for highest, gone in below if highest == min(b[0] for b in below)) > 0
    assert all(gone == 0 for highest, gone in below if highest == max(b[0] for b in below))
