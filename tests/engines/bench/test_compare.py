from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from prunedeploy_engines.bench.compare import (
    Comparison,
    compare_rounds,
    expanded_tail,
    resampled_medians,
    student_quantile,
)

rounds = st.lists(st.lists(st.floats(0.1, 1e4), min_size=1, max_size=9), min_size=2, max_size=6)


def run(rng: np.random.Generator, median: float, between: float = 0.3, within: float = 0.3) -> list[list[float]]:
    """Ten rounds of 20 samples: what a round shares is as large as what a sample has of its own."""
    return [list(median + rng.normal(0, between) + rng.normal(0, within, 20)) for _ in range(10)]


@given(blocks=rounds, seed=st.integers(0, 9))
def test_resampled_medians_are_those_of_the_drawn_rounds_joined(blocks: list[list[float]], seed: int) -> None:
    medians = resampled_medians(blocks, 25, np.random.default_rng(seed))
    drawn = np.random.default_rng(seed).integers(0, len(blocks), (25, len(blocks)))
    expected = [np.median(np.concatenate([blocks[block] for block in row])) for row in drawn]
    np.testing.assert_allclose(medians, expected)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = run(np.random.default_rng(0), 10.0)
    whole = resampled_medians(blocks, 50, np.random.default_rng(1))
    monkeypatch.setattr("prunedeploy_engines.bench.compare._CHUNK", 300)
    np.testing.assert_array_equal(whole, resampled_medians(blocks, 50, np.random.default_rng(1)))


@pytest.mark.parametrize("freedom", [1, 2, 3, 5, 9, 30])
@pytest.mark.parametrize("p", [0.9, 0.975, 0.995])
def test_student_quantile_is_that_of_scipy(p: float, freedom: int) -> None:
    assert student_quantile(p, freedom) == pytest.approx(stats.t.ppf(p, freedom), rel=1e-4)


def test_tail_is_wider_for_few_rounds() -> None:
    # Hesterberg 2015, table 4: a 95 % interval of n = 10 takes the percentiles 0.86 and 99.14.
    assert expanded_tail(0.025, 10) == pytest.approx(0.0086, abs=0.0001)
    assert expanded_tail(0.025, 10_000) == pytest.approx(0.025, abs=1e-4)


def test_clear_differences_are_told() -> None:
    rng = np.random.default_rng(3)
    slower = compare_rounds(run(rng, 10.0), run(rng, 12.0))
    assert slower.verdict == "slower"
    assert slower.low < 1.2 < slower.high
    assert slower.low <= slower.ratio <= slower.high
    assert compare_rounds(run(rng, 10.0), run(rng, 8.0)).verdict == "faster"


def test_equal_models_are_called_different_in_about_one_of_twenty_cases() -> None:
    """Drawing single samples instead of rounds would call half of these different."""
    rng = np.random.default_rng(0)
    wrong = sum(
        compare_rounds(run(rng, 10.0), run(rng, 10.0), seed=seed, resamples=400).verdict.startswith(("f", "s"))
        for seed in range(200)
    )
    assert wrong <= 20
    naive = 0
    for seed in range(50):
        singles = [[[sample] for block in run(rng, 10.0) for sample in block] for _ in range(2)]
        naive += compare_rounds(*singles, seed=seed, resamples=200).verdict != "no measurable difference"
    assert naive > 15


def test_the_same_seed_gives_the_same_interval() -> None:
    rng = np.random.default_rng(5)
    a, b = run(rng, 10.0), run(rng, 10.1)
    assert compare_rounds(a, b, seed=1) == compare_rounds(a, b, seed=1)
    assert compare_rounds(a, b, seed=1) != compare_rounds(a, b, seed=2)


def test_a_single_round_tells_no_difference() -> None:
    result = compare_rounds([[1.0, 1.1]], [[9.0], [9.1]])
    assert (result.low, result.high) == (0.0, float("inf"))
    assert result.ratio == pytest.approx(9.05 / 1.05)
    assert result.verdict == "no measurable difference"


def test_verdict_is_read_off_the_interval() -> None:
    assert Comparison(0.9, 0.8, 0.99).verdict == "faster"
    assert Comparison(1.1, 1.01, 1.2).verdict == "slower"
    assert Comparison(1.1, 0.99, 1.2).verdict == "no measurable difference"
