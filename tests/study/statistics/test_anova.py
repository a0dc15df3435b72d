"""Two groups compared: worked numbers, plain formulas, published tables; what is undefined is said."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from prunedeploy.study.statistics.anova import (
    compare,
    difference_interval,
    eta_squared,
    hedges_g,
    levene,
    mean_interval,
    shapiro,
)
from prunedeploy.study.statistics.power import detectable_effect, power_of


def two_sided_t(t: float, freedom: float, steps: int = 4000) -> float:
    """P(|T| > t) by adding up Student's density, after s = sqrt(freedom) tan(angle): a smooth bounded integrand."""
    edges = np.linspace(math.atan(abs(t) / math.sqrt(freedom)), math.pi / 2, steps + 1)
    middles = (edges[1:] + edges[:-1]) / 2
    constant = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)
    return float(2 * constant * (np.cos(middles) ** (freedom - 1)).sum() * (edges[1] - edges[0]))


def test_the_integral_of_students_density_is_right():
    assert two_sided_t(1.0, 1) == pytest.approx(0.5, abs=1e-7)  # Cauchy: quartile at 1
    assert two_sided_t(2.776445, 4) == pytest.approx(0.05, abs=1e-7)  # any table of t


def test_worked_example_of_two_groups_of_three():
    # Means 2 and 4, grand mean 3: between 3 + 3 = 6 with 1 degree of freedom, within 2 + 2 = 4 with 4: F = 6.
    # With 4 degrees of freedom P(|T| > t) = 1 - sin(x)(1 + cos(x)^2 / 2), tan x = t / 2; t^2 = 6: cos^2 = .4.
    result = compare(np.array([1.0, 2, 3]), np.array([3.0, 4, 5]))
    assert result.f_statistic == pytest.approx(6)
    assert result.p_anova == pytest.approx(1 - math.sqrt(0.6) * 1.2)
    assert result.eta_squared == pytest.approx(0.6)
    # Pooled variance 1, so Cohen's d is -2; J(4) = gamma(2) / (sqrt(2) gamma(1.5)) = 1 / (sqrt(2) sqrt(pi) / 2).
    assert result.hedges_g == pytest.approx(-2 * math.sqrt(2 / math.pi))
    # Equal sizes and variances: Welch's degrees of freedom are 4 as well; t(.975, 4) = 2.776445.
    assert result.p_welch == pytest.approx(result.p_anova)
    reach = 2.776445 * math.sqrt(2 / 3)
    assert (result.low, result.high) == (pytest.approx(-2 - reach), pytest.approx(-2 + reach))
    assert result.difference == -2
    # Deviations from the medians are 1, 0, 1 in both groups: nothing between them.
    assert result.p_levene == pytest.approx(1)
    assert (result.test, result.remark) == ("ANOVA", "")
    assert result.p_value == result.p_anova


def test_welchs_test_of_unequal_groups_is_the_formula():
    a, b = np.array([1.0, 2, 3, 4]), np.array([2.0, 6])
    # Squared standard errors 5/3/4 and 8/2; degrees of freedom by Welch and Satterthwaite.
    first, second = 5 / 12, 4.0
    freedom = (first + second) ** 2 / (first**2 / 3 + second**2 / 1)
    t = -1.5 / math.sqrt(first + second)
    result = compare(a, b)
    assert result.p_welch == pytest.approx(two_sided_t(t, freedom, 400_000), rel=1e-5)
    assert result.test == "Welch"  # two runs are too few to check what ANOVA assumes
    assert "too few runs" in result.remark
    # At the ends of the 95 % interval the difference is just significant.
    for end in (result.low, result.high):
        assert two_sided_t((-1.5 - end) / math.sqrt(first + second), freedom, 400_000) == pytest.approx(0.05, rel=1e-4)


def plain_f(a, b):
    """F of a one-way ANOVA with loops."""
    everything = [*a, *b]
    grand = sum(everything) / len(everything)
    between = sum(len(g) * (sum(g) / len(g) - grand) ** 2 for g in (a, b))
    within = sum((x - sum(g) / len(g)) ** 2 for g in (a, b) for x in g)
    return between / (within / (len(everything) - 2)), between / (between + within)


values = st.lists(st.integers(-1000, 1000).map(lambda i: i / 8), min_size=2, max_size=8)


@given(values, values)
def test_anova_eta_and_effect_are_the_plain_formulas(a, b):
    assume(len(set(a)) > 1 or len(set(b)) > 1)
    result = compare(np.array(a), np.array(b))
    f, eta = plain_f(a, b)
    assert result.f_statistic == pytest.approx(f, rel=1e-6, abs=1e-9)
    assert result.eta_squared == pytest.approx(eta, abs=1e-9)
    assert result.p_anova == pytest.approx(two_sided_t(math.sqrt(f), len(a) + len(b) - 2), rel=1e-4, abs=1e-8)
    # g is d corrected, and d relates to F: F = d^2 n_a n_b / (n_a + n_b).
    d = math.sqrt(f * (len(a) + len(b)) / (len(a) * len(b)))
    assert abs(result.hedges_g) <= d * (1 + 1e-6) + 1e-9


@given(values, values, st.floats(0.01, 100), st.floats(-50, 50))
def test_units_change_no_p_value_and_scale_the_difference(a, b, scale, shift):
    assume(len(set(a)) > 1 or len(set(b)) > 1)
    a, b = np.array(a), np.array(b)
    before, after = compare(a, b), compare(scale * a + shift, scale * b + shift)
    assert after.p_anova == pytest.approx(before.p_anova, rel=1e-5, abs=1e-9)
    assert after.p_welch == pytest.approx(before.p_welch, rel=1e-5, abs=1e-9)
    assert after.hedges_g == pytest.approx(before.hedges_g, rel=1e-5, abs=1e-9)
    assert after.high - after.low == pytest.approx(scale * (before.high - before.low), rel=1e-5)


@given(values, values)
def test_swapping_the_groups_turns_the_signs_only(a, b):
    assume(len(set(a)) > 1 or len(set(b)) > 1)
    there, back = compare(np.array(a), np.array(b)), compare(np.array(b), np.array(a))
    assert back.difference == pytest.approx(-there.difference)
    assert (back.low, back.high) == (pytest.approx(-there.high), pytest.approx(-there.low))
    assert back.p_anova == pytest.approx(there.p_anova)
    assert back.hedges_g == pytest.approx(-there.hedges_g)
    assert (back.test, back.remark) == (there.test, there.remark)


def test_levene_is_an_anova_of_deviations_from_the_medians():
    a, b = np.array([1.0, 2, 4, 9]), np.array([10.0, 30, 35, 90, 100])
    f, _ = plain_f([abs(x - 3) for x in a], [abs(x - 35) for x in b])
    assert levene(a, b) == pytest.approx(two_sided_t(math.sqrt(f), 7), rel=1e-4)
    assert levene(a[:2], b) is None


def test_levene_of_groups_whose_deviations_are_all_alike_has_no_answer():
    # Deviations from the median are 1, 1, 1, 1 and 2, 2, 2, 2: no variance among them to test against, but they differ.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert levene(np.array([1.0, 1, 3, 3]), np.array([1.0, 1, 5, 5])) in (None, 0.0)
        assert levene(np.array([1.0, 1, 3, 3]), np.array([4.0, 4, 6, 6])) is None


def test_shapiro_on_the_weights_of_eleven_men():
    # Shapiro and Wilk 1965, example 1: W = .79, significant at 1 %.
    weights = np.array([148.0, 154, 158, 160, 161, 162, 166, 170, 182, 195, 236])
    assert 0.005 < shapiro(weights) < 0.01
    assert shapiro(weights[:2]) is None
    assert shapiro(np.full(5, 0.1)) is None


def test_welch_is_read_where_variances_differ():
    calm = np.array([0.0, 0.1, -0.1, 0.05, -0.05, 0.0, 0.02, -0.02])
    result = compare(calm, 40 * calm + 1)
    assert (result.test, result.remark) == ("Welch", "variances differ")
    assert result.p_value == result.p_welch != result.p_anova


def test_welch_is_read_where_a_group_is_not_normally_distributed():
    lopsided = np.array([0.0, 0.01, 0.02, 0.01, 0.0, 0.02, 0.01, 3.0])
    result = compare(lopsided, np.linspace(-1, 2, 8))
    assert result.test == "Welch"
    assert "not normally distributed" in result.remark


@pytest.mark.parametrize("constant", [0.1, 0.3, 118.7])  # whose mean in floats is not always themselves
def test_groups_without_variance_are_not_tested(constant):
    same = compare(np.full(3, constant), np.full(3, constant))
    assert (same.difference, same.p_value, same.test) == (0, None, None)
    assert same.remark == "all runs of both groups are equal: no variance, no test"
    apart = compare(np.full(3, constant), np.full(10, 2 * constant))
    assert apart.difference == pytest.approx(-constant)
    assert (apart.p_value, apart.low, apart.hedges_g) == (None, None, None)
    assert "no variance, no test" in apart.remark


def test_one_constant_group_is_no_hindrance():
    a, b = np.full(3, 2.0), np.array([3.0, 4, 5])
    result = compare(a, b)
    # Within 2 with 4 degrees of freedom, between 2 * 3 * 1^2 = 6: F = 6 / .5.
    assert result.f_statistic == pytest.approx(12)
    # Welch: only b has a standard error, 1/3, and 2 degrees of freedom.
    assert result.p_welch == pytest.approx(two_sided_t(2 / math.sqrt(1 / 3), 2), rel=1e-5)


def test_one_run_per_cell_has_a_difference_and_no_test():
    result = compare(np.array([0.4]), np.array([0.3, 0.2, 0.1]))
    assert result.difference == pytest.approx(0.2)
    assert (result.p_value, result.f_statistic, result.low) == (None, None, None)
    assert result.remark == "one run says nothing about chance: no test"


def test_a_cell_without_runs_is_not_compared():
    result = compare(np.array([]), np.array([0.3, 0.2]))
    assert (result.n_a, result.n_b, result.difference, result.remark) == (0, 2, None, "no runs to compare")


@pytest.mark.parametrize("bad", [np.array([0.1, math.nan]), np.array([math.inf]), np.ones((2, 2))])
def test_values_that_are_no_vector_of_numbers_are_refused(bad):
    with pytest.raises(ValueError, match="finite values"):
        compare(bad, np.array([1.0, 2.0]))


def test_equal_means_have_no_difference_though_rounding_leaves_one():
    # Both means are -1/24; the sum of squares between them comes out just below 0 in floats.
    result = compare(np.array([0, 0, -0.125]), np.array([0.125, 0, -0.25]))
    assert (result.f_statistic, result.p_anova) == (0, 1)
    assert result.p_welch == pytest.approx(1)


def test_comparing_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compare(np.full(3, 1.0), np.array([1.0, 1, 1 + 1e-12]))
        compare(np.array([1.0, 2]), np.array([3.0, 4]))


def test_interval_of_a_mean_is_students():
    # Mean 2, standard error 1 / sqrt(3), t(.975, 2) = 4.302653.
    assert mean_interval(np.array([1.0, 2, 3])) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5))
    assert mean_interval(np.array([1.0])) is None


def test_interval_of_a_difference_at_90_percent():
    # Equal variances 1 and sizes 3: t(.95, 4) = 2.131847.
    reach = 2.131847 * math.sqrt(2 / 3)
    found = difference_interval(np.array([1.0, 2, 3]), np.array([3.0, 4, 5]), 0.9)
    assert found == pytest.approx((-2 - reach, -2 + reach))
    assert difference_interval(np.array([1.0]), np.array([3.0, 4]), 0.9) is None
    assert difference_interval(np.full(2, 1.0), np.full(2, 3.0), 0.9) is None


def test_effect_sizes_of_few_runs_are_corrected_more():
    d = {n: hedges_g(np.tile([1.0, 3.0], n), np.tile([2.0, 4.0], n)) for n in (1, 2, 20)}
    assert abs(d[1]) < abs(d[2]) < abs(d[20]) < 1
    assert eta_squared(np.array([1.0, 1]), np.array([2.0, 2])) == 1


@pytest.mark.parametrize(("effect", "n"), [(0.5, 64), (0.8, 26)])
def test_power_agrees_with_cohens_table(effect, n):
    # Cohen 1988, table 2.4.1: the fewest per group for power .80 at a two-sided 5 %.
    assert power_of(effect, n) >= 0.8 - 0.005
    assert power_of(effect, n - 1) < 0.8
    assert detectable_effect(n) == pytest.approx(effect, abs=0.01)


@pytest.mark.parametrize("n", [2, 3, 10])
def test_power_agrees_with_drawn_experiments(n):
    effect = detectable_effect(n)
    draws = np.random.default_rng(0).standard_normal((2, 40_000, n))
    a, b = draws[0], draws[1] + effect
    pooled = np.sqrt((a.var(1, ddof=1) + b.var(1, ddof=1)) / 2)
    t = np.abs(b.mean(1) - a.mean(1)) / (pooled * math.sqrt(2 / n))
    critical = {2: 4.302653, 3: 2.776445, 10: 2.100922}[n]  # t(.975, 2n - 2), any table
    assert (t > critical).mean() == pytest.approx(0.8, abs=0.01)  # standard error .002


def test_one_run_detects_nothing():
    assert detectable_effect(1) is None
    assert power_of(0, 10) == pytest.approx(0.05)
