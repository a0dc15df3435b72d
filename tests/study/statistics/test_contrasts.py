"""Holm's correction, and which comparisons a study is made of."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunedeploy.study.statistics.cells import study_from_rows
from prunedeploy.study.statistics.contrasts import all_contrasts, holm
from prunedeploy.study.statistics.paper import paper_rows
from study_rows import grid


def test_holm_worked_by_hand():
    # Ascending .005 x 4, .01 x 3, .03 x 2, .04 x 1, and no smaller than the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1, 1]
    assert holm([]) == []


def test_what_was_not_tested_does_not_count():
    assert holm([None, 0.02, None, 0.01]) == [None, pytest.approx(0.02), None, pytest.approx(0.02)]


def rejected_step_by_step(p_values, alpha):
    """Holm's procedure as he states it: compare the smallest with alpha / m, the next with alpha / (m - 1), ..."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    rejected = set()
    for step, index in enumerate(order):
        if p_values[index] > alpha / (len(order) - step):
            break
        rejected.add(index)
    return rejected


@given(st.lists(st.integers(0, 1000).map(lambda i: i / 1000), max_size=12), st.sampled_from([0.0123, 0.0501, 0.31]))
def test_corrected_p_values_reject_what_the_procedure_rejects(p_values, alpha):
    corrected = holm(p_values)
    assert {i for i, p in enumerate(corrected) if p <= alpha} == rejected_step_by_step(p_values, alpha)
    assert all(p <= c <= 1 for p, c in zip(p_values, corrected, strict=True))


def test_the_family_is_every_test_of_map_and_of_time():
    contrasts = all_contrasts(study_from_rows(paper_rows()))
    assert len(contrasts) == 90
    smallest = min(contrasts, key=lambda c: c.comparison.p_value)
    assert smallest.p_holm == pytest.approx(90 * smallest.comparison.p_value)


def test_pairs_of_which_one_side_is_absent_are_left_out():
    cells = {("structured-scaled", 0.5): (0.2, 0.3), ("structured-deeplift", 0.5): (0.4, 0.5)}
    contrasts = all_contrasts(study_from_rows(grid(cells)))
    assert [c.pair.label for c in contrasts] == ["DeepLIFT vs. HYDRA (Structured)"]
    assert contrasts[0].comparison.difference == pytest.approx(0.2)
    assert contrasts[0].p_holm == contrasts[0].comparison.p_value


def test_runs_that_start_from_the_same_network_are_also_compared_in_pairs():
    base = (0.40, 0.42, 0.45)
    cells = {("structured-scaled", 0.0): base, ("structured-deeplift", 0.0): base}
    cells |= {("structured-scaled", 0.5): (0.20, 0.30, 0.40), ("structured-deeplift", 0.5): (0.21, 0.32, 0.43)}
    zero, half = all_contrasts(study_from_rows(grid(cells)))
    assert zero.p_paired is None  # nothing differs
    assert zero.comparison.p_value == pytest.approx(1)
    # Differences .01, .02, .03: mean .02, standard error .01 / sqrt(3), t = sqrt(12). With 2 degrees of freedom
    # P(|T| > t) = 1 - t / sqrt(2 + t^2).
    assert half.p_paired == pytest.approx(1 - (12 / 14) ** 0.5)
    assert half.comparison.p_value > 0.5
    cells["structured-scaled", 0.0] = (0.40, 0.42, 0.46)
    assert [c.p_paired for c in all_contrasts(study_from_rows(grid(cells)))] == [None, None]


def test_pairs_are_of_the_runs_that_both_have():
    base = {(name, 0.0): (0.40, 0.42, 0.45) for name in ("structured-scaled", "structured-deeplift")}
    cells = {("structured-scaled", 0.5): (0.20, 0.30, 0.9), ("structured-deeplift", 0.5): (0.21, 0.33)}
    half = all_contrasts(study_from_rows(grid({**base, **cells})))[1]
    # Differences .01 and .03: mean .02, standard error .01, t = 2; with 1 degree of freedom 1 - 2 atan(t) / pi.
    assert half.p_paired == pytest.approx(1 - 2 * math.atan(2) / math.pi)
