"""n:m patterns against plain loops, and the gradient that their masks hand on."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prunedeploy.models import DarknetCfg, FoldedDarknet
from prunedeploy.pruning import NmPattern, Pattern
from prunedeploy.pruning.ratio import ratio_tolerance
from prunedeploy.pruning.semi_structured import (
    check_nm_ratio,
    check_pattern,
    dense_convolutions,
    nm_ratio,
    patterned_convolutions,
    straight_through_nm_mask,
)
from prunedeploy_engines.errors import ConfigError, GateError, PruningError
from pruning.darknets import HEAD, RandomCfg, conv, cut_by, network, random_cfgs, random_network, scores_of, sparsity

TWO_OF_FOUR = NmPattern(2, 4)
# Weights: 3 x 8 x 9 = 216 dense, 8 x 16 = 128, depthwise 16 x 9 = 144 dense, 16 x 12 = 192, head 12 x 6.
MIXED = network(conv(8, 3), conv(16), conv(16, 3, groups=16), conv(12), *HEAD)


def granularity_of(cfg: DarknetCfg, pattern: NmPattern) -> Pattern:
    """With the ratio that the pattern gives."""
    return Pattern(nm_ratio(cfg, pattern), pattern=pattern)


@st.composite
def patterns(draw: st.DrawFn) -> NmPattern:
    m = draw(st.sampled_from([2, 3, 4, 5, 8]))
    return NmPattern(draw(st.integers(1, m - 1)), m)


@st.composite
def patterned_scores(draw: st.DrawFn) -> tuple[Tensor, NmPattern]:
    """Scores of few different values, so that ties are many."""
    pattern = draw(patterns())
    filters, blocks, height, width = (draw(st.integers(1, 3)) for _ in range(4))
    shape = (filters, blocks * pattern.m, height, width)
    values = st.lists(st.sampled_from([-2.0, -1.0, -0.0, 0.0, 0.5, 1.0, 2.0]), min_size=1, max_size=64)
    drawn = draw(values)
    count = filters * blocks * pattern.m * height * width
    return torch.tensor([drawn[i * 7 % len(drawn)] for i in range(count)]).view(shape), pattern


def kept_by_loops(scores: Tensor, pattern: NmPattern) -> Tensor:
    """TensorRT's own loops over K, R, S and blocks of C, with a stable sort in each."""
    keep = torch.zeros(scores.shape, dtype=torch.bool)
    filters, channels, height, width = scores.shape
    for k in range(filters):
        for r in range(height):
            for s in range(width):
                for start in range(0, channels, pattern.m):
                    block = scores[k, start : start + pattern.m, r, s].abs().tolist()
                    for position in sorted(range(pattern.m), key=lambda i: -block[i])[: pattern.n]:
                        keep[k, start + position, r, s] = True
    return keep


@given(patterned_scores())
def test_the_highest_scores_of_each_block_live_and_of_equal_ones_the_first(case: tuple[Tensor, NmPattern]) -> None:
    scores, pattern = case
    mask = straight_through_nm_mask(scores, pattern)
    assert torch.equal(mask, kept_by_loops(scores, pattern).float())


@given(patterned_scores())
def test_what_is_kept_passes_the_check_and_one_more_weight_does_not(case: tuple[Tensor, NmPattern]) -> None:
    scores, pattern = case
    keep = kept_by_loops(scores, pattern)
    blocks = scores.numel() // pattern.m
    weight = torch.where(keep, 1.0, 0.0)
    assert check_pattern(weight, pattern) == blocks
    dead = (~keep).nonzero()[-1]
    weight[tuple(dead)] = -1e-30
    with pytest.raises(GateError, match=rf"layer 7: 1 of {blocks} blocks of {pattern.m} .* more than {pattern.n} "):
        check_pattern(weight, pattern, "layer 7")


def test_blocks_lie_along_input_channels_not_along_the_kernel() -> None:
    # One filter, four channels, a row of four cells; the scores of each channel are equal all along the row.
    scores = torch.tensor([4.0, 1.0, 3.0, 2.0]).view(1, 4, 1, 1).expand(1, 4, 1, 4)
    assert straight_through_nm_mask(scores, TWO_OF_FOUR)[0, :, 0].tolist() == [[1.0] * 4, [0.0] * 4] * 2


def test_a_check_sees_nan_as_a_weight() -> None:
    weight = torch.tensor([float("nan"), 1.0, 1.0, 0.0]).view(1, 4, 1, 1)
    with pytest.raises(GateError, match="1 of 1 blocks"):
        check_pattern(weight, TWO_OF_FOUR)


def test_the_gradient_reaches_living_and_dead_scores_worked_by_hand() -> None:
    scores = torch.tensor([0.9, -0.4, 0.1, -2.0]).view(1, 4, 1, 1).requires_grad_()
    mask = straight_through_nm_mask(scores, TWO_OF_FOUR)
    assert mask.flatten().tolist() == [1.0, 0.0, 0.0, 1.0]
    # The mask's own gradient is handed to |score|: with the sign of the score to the score.
    (mask * torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1, 1)).sum().backward()
    assert scores.grad is not None
    assert scores.grad.flatten().tolist() == [1.0, -2.0, 3.0, -4.0]


def test_a_score_decides_only_inside_its_own_block() -> None:
    cfg = network(conv(8, 3), conv(4), *HEAD)
    scores = {layer.index: torch.rand(layer.weight_shape) for layer in cfg.convolutions}
    scores[1] = torch.tensor([1.0, 2.0, 3.0, 4.0, 10.0, 20.0, 30.0, 40.0]).expand(4, 8)[:, :, None, None].clone()
    model, granularity = random_network(cfg), granularity_of(cfg, TWO_OF_FOUR)
    keep = cut_by(granularity, model, scores)[1].weights
    assert keep[1][2].flatten().tolist() == [False, False, True, True] * 2, "of the whole filter, 10 beats 4"
    scores[1][2, 0] = -3.5
    changed = cut_by(granularity, model, scores)[1].weights[1]
    assert changed[2].flatten().tolist() == [True, False, False, True, False, False, True, True]
    assert torch.equal(changed[[0, 1, 3]], keep[1][[0, 1, 3]])


def test_convolutions_without_whole_blocks_stay_dense_and_say_why() -> None:
    assert [layer.index for layer in patterned_convolutions(MIXED, TWO_OF_FOUR)] == [1, 3]
    assert dense_convolutions(MIXED, TWO_OF_FOUR) == {
        0: "reads 3 input channels, not a multiple of 4",
        2: "reads 1 input channels, not a multiple of 4",
        4: "output of a detection head",
    }
    # (128 + 192) / 2 of 216 + 128 + 144 + 192 = 680
    assert nm_ratio(MIXED, TWO_OF_FOUR) == pytest.approx(160 / 680)
    # Of 8 channels 1:8 leaves one, of 16 channels two: 7/8 of 128 + 192.
    assert nm_ratio(MIXED, NmPattern(1, 8)) == pytest.approx(280 / 680)


@settings(deadline=None)
@given(random_cfgs(), patterns(), st.integers(0, 9))
def test_the_ratio_is_what_is_counted_in_the_cut_network(graph: RandomCfg, pattern: NmPattern, seed: int) -> None:
    cfg = graph.cfg
    if not patterned_convolutions(cfg, pattern):
        with pytest.raises(PruningError, match=f"no prunable convolution reads a multiple of {pattern.m}"):
            Pattern(0.5, pattern=pattern).allocate(cfg)
        return
    model, granularity = random_network(cfg, seed), granularity_of(cfg, pattern)
    made, masks, allocation = cut_by(granularity, model, scores_of(cfg, seed))
    cut, keep = made.network, masks.weights
    assert sparsity(cut) == pytest.approx(nm_ratio(cfg, pattern), abs=1e-12)
    record = granularity.record(cfg, masks, allocation)
    assert record["ratio_achieved"] == pytest.approx(sparsity(cut), abs=1e-12)
    assert (record["method"], record["pattern"]) == ("nm", f"{pattern.n}:{pattern.m}")
    dense = {row["layer"] for row in record["dense_layers"]}
    assert dense.isdisjoint(keep)
    assert dense | set(keep) == {layer.index for layer in cfg.convolutions}
    for row in record["layers"]:
        assert row["weights_after"] == int((cut.conv(row["layer"]).weight != 0).sum())
        if row["layer"] in dense:
            assert torch.equal(cut.conv(row["layer"]).weight, model.conv(row["layer"]).weight)
        else:
            assert row["weights_after"] == row["weights_before"] * pattern.n // pattern.m


def test_folding_batch_normalisation_keeps_the_pattern() -> None:
    model = random_network(MIXED)
    cut = cut_by(granularity_of(MIXED, TWO_OF_FOUR), model, scores_of(MIXED))[0].network
    for index in (1, 3):
        folded = FoldedDarknet(cut).folded[index][0]
        assert check_pattern(folded, TWO_OF_FOUR) == folded.numel() // 4
        assert not torch.equal(folded, cut.conv(index).weight), "folding must have done something"
    with pytest.raises(GateError):
        check_pattern(FoldedDarknet(model).folded[1][0], TWO_OF_FOUR)


def test_only_the_ratio_of_the_pattern_is_accepted() -> None:
    fitting = network(conv(8, 3), conv(64), conv(64, 3), *HEAD)
    reached = nm_ratio(fitting, TWO_OF_FOUR)
    assert 0.495 < reached < 0.5, "the first convolution stays dense"
    for ratio in (0.5, 0.4999, reached - ratio_tolerance(0.5) + 1e-6):
        check_nm_ratio(fitting, TWO_OF_FOUR, ratio)
    line = rf"ratio: 2:4 removes {reached:.4f} of this network's prunable weights, not 0.75; give --ratio 0.5$"
    with pytest.raises(ConfigError, match=line):
        check_nm_ratio(fitting, TWO_OF_FOUR, 0.75)
    # Where much stays dense, half is not what it removes, and the line says so.
    with pytest.raises(ConfigError, match=r"2:4 removes 0.2353 .* not 0.5; give --ratio 0.2353, or .* leave 2 conv"):
        check_nm_ratio(MIXED, TWO_OF_FOUR, 0.5)
    check_nm_ratio(MIXED, TWO_OF_FOUR, 0.2353)


@pytest.mark.parametrize(("n", "m"), [(0, 4), (4, 4), (5, 4), (-1, 2), (1, 1)])
def test_patterns_that_remove_nothing_or_everything_are_refused(n: int, m: int) -> None:
    with pytest.raises(ValueError, match=f"{n}:{m} is no pattern"):
        NmPattern(n, m)


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"2:4 needs .* got \(2, 6, 1, 1\)"):
        straight_through_nm_mask(torch.rand(2, 6, 1, 1), TWO_OF_FOUR)
    with pytest.raises(ValueError, match="NaN"):
        straight_through_nm_mask(torch.full((1, 4, 1, 1), float("nan")), TWO_OF_FOUR)
    with pytest.raises(ValueError, match=r"needs .* got \(8,\)"):
        check_pattern(torch.rand(8), TWO_OF_FOUR)
    scores, granularity = scores_of(MIXED), granularity_of(MIXED, TWO_OF_FOUR)
    select = granularity.selection(MIXED, granularity.allocate(MIXED))
    with pytest.raises(ValueError, match=r"layer 1: expected scores of shape \(16, 8, 1, 1\), got None"):
        select({3: scores[3]})
    with pytest.raises(ValueError, match=r"layer 1: .* got \(16, 8\)"):
        select({**scores, 1: scores[1].flatten(1)})
    with pytest.raises(ValueError, match="hold a NaN"):
        select({**scores, 3: scores[3] * float("nan")})
