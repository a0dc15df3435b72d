"""Two groups of runs compared: one-way ANOVA, what it assumes, Welch's test, effect sizes, an interval.

Which p-value to read is decided by fixed rules (`compare`): ANOVA's where neither Levene's test finds unequal variances
nor Shapiro's an unlikely normal distribution, else Welch's. Both are always given. With two groups ANOVA is the
squared t-test, and Welch's ANOVA the squared Welch test.

References:
    Fisher, Statistical Methods for Research Workers, 1925 (one-way ANOVA).
    Welch, The Generalization of "Student's" Problem when Several Different Population Variances are Involved, 1947.
    Brown and Forsythe, Robust Tests for the Equality of Variances, 1974 (Levene's test around the median).
    Shapiro and Wilk, An Analysis of Variance Test for Normality, 1965.
    Hedges, Distribution Theory for Glass's Estimator of Effect Size and Related Estimators, 1981.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]
ALPHA = 0.05
LEVEL = 0.95
FEWEST_TO_CHECK = 3
"""Runs per group below which Levene's and Shapiro's tests say nothing."""


@dataclass(frozen=True)
class Comparison:
    """Group a against group b. What is undefined is None, and ``remark`` says why.

    Attributes:
        n_a: Runs in a.
        n_b: Runs in b.
        difference: Mean of a minus mean of b.
        low: Lower end of Welch's 95 % interval of the difference.
        high: Upper end.
        f_statistic: F of the one-way ANOVA, with 1 and ``n_a + n_b - 2`` degrees of freedom.
        p_anova: p of the one-way ANOVA.
        p_welch: p of Welch's test.
        eta_squared: Share of the sum of squares that lies between the groups, in [0, 1].
        hedges_g: Difference in pooled standard deviations, corrected for small groups.
        p_levene: p of Levene's test around the median: small where variances differ.
        p_shapiro: The smaller of the groups' two, which is small where one is not normally distributed.
        test: Whose p-value to read.
        remark: Why that one, or why none; a clause.
    """

    n_a: int
    n_b: int
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    f_statistic: float | None = None
    p_anova: float | None = None
    p_welch: float | None = None
    eta_squared: float | None = None
    hedges_g: float | None = None
    p_levene: float | None = None
    p_shapiro: float | None = None
    test: Literal["ANOVA", "Welch"] | None = None
    remark: str = ""

    @property
    def p_value(self) -> float | None:
        """The p-value to read."""
        return {"ANOVA": self.p_anova, "Welch": self.p_welch, None: None}[self.test]


def compare(a: Floats, b: Floats, alpha: float = ALPHA) -> Comparison:
    """Compare the means of two groups.

    There is no test where a group has fewer than two runs, or where neither group varies at all: then runs repeat one
    number, and say nothing about chance. One constant group is no hindrance.

    Args:
        a: Values of the first group, ``(n_a,)``, finite.
        b: Values of the second group, ``(n_b,)``, finite.
        alpha: Below which Levene's or Shapiro's p-value speaks against ANOVA.

    Raises:
        ValueError: A value is not finite, or a group is not a vector.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.ndim != 1 or b.ndim != 1 or not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError(f"expected two vectors of finite values, got shapes {a.shape} and {b.shape}: {a}, {b}")
    n_a, n_b = len(a), len(b)
    if not n_a or not n_b:
        return Comparison(n_a, n_b, remark="no runs to compare")
    difference = float(a.mean() - b.mean())
    if min(n_a, n_b) < 2:
        return Comparison(n_a, n_b, difference, remark="one run says nothing about chance: no test")
    if not np.ptp(a) and not np.ptp(b):
        same = "all runs of both groups are equal" if a[0] == b[0] else "no run differs from its group"
        return Comparison(n_a, n_b, difference, remark=f"{same}: no variance, no test")
    f_and_p = one_way_anova(a, b)
    interval, p_welch = _welch(a, b, LEVEL)
    checks = levene(a, b), min((p for p in (shapiro(a), shapiro(b)) if p is not None), default=None)
    choice = _choose(min(n_a, n_b), *checks, alpha)
    return Comparison(
        n_a, n_b, difference, *interval, *f_and_p, p_welch, eta_squared(a, b), hedges_g(a, b), *checks, *choice
    )


def one_way_anova(a: Floats, b: Floats) -> tuple[float, float]:
    """Return F with its 1 and ``n_a + n_b - 2`` degrees of freedom, and p; not both groups are constant."""
    with _quiet():
        f_statistic, p_value = (float(value) for value in stats.f_oneway(a, b))
    # Between equal means rounding can leave a sum of squares just below 0, for which scipy has no p-value.
    return (f_statistic, p_value) if f_statistic > 0 else (0.0, 1.0)


def paired_p_value(a: Floats, b: Floats) -> float | None:
    """Return p of Student's paired test; None for fewer than two pairs or where all differ by the same.

    Args:
        a: Values of the first group, ``(n,)``.
        b: Those of the second, ``(n,)``, the same runs in the same order.
    """
    if len(a) < 2 or not np.ptp(a - b):
        return None
    return _p_value(lambda: stats.ttest_rel(a, b))


def eta_squared(a: Floats, b: Floats) -> float:
    """Return between-group over total sum of squares, in [0, 1]; the values are not all equal."""
    both = np.concatenate([a, b])
    between = len(a) * (a.mean() - both.mean()) ** 2 + len(b) * (b.mean() - both.mean()) ** 2
    within = np.square(a - a.mean()).sum() + np.square(b - b.mean()).sum()
    return float(between / (between + within))


def hedges_g(a: Floats, b: Floats) -> float:
    """Return the difference of means in pooled standard deviations, unbiased; not both groups are constant.

    Reference: Hedges 1981, eq. 6e with the exact gamma functions.
    """
    freedom = len(a) + len(b) - 2
    pooled = math.sqrt((np.square(a - a.mean()).sum() + np.square(b - b.mean()).sum()) / freedom)
    correction = math.exp(math.lgamma(freedom / 2) - math.lgamma((freedom - 1) / 2)) / math.sqrt(freedom / 2)
    return float((a.mean() - b.mean()) / pooled * correction)


def levene(a: Floats, b: Floats) -> float | None:
    """Return p of Levene's test around the median; None for fewer than three runs in a group."""
    if min(len(a), len(b)) < FEWEST_TO_CHECK:
        return None
    return _p_value(lambda: stats.levene(a, b, center="median"))


def shapiro(values: Floats) -> float | None:
    """Return p of Shapiro's test of normality; None for fewer than three runs or a constant group."""
    if len(values) < FEWEST_TO_CHECK or not np.ptp(values):
        return None
    return _p_value(lambda: stats.shapiro(values))


def mean_interval(values: Floats, level: float = LEVEL) -> tuple[float, float] | None:
    """Student's interval of a mean; None for fewer than two values."""
    if len(values) < 2:
        return None
    reach = float(stats.t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
    return float(values.mean()) - reach, float(values.mean()) + reach


def difference_interval(a: Floats, b: Floats, level: float) -> tuple[float, float] | None:
    """Welch's interval of the difference of means; None where a group has fewer than two values or none varies."""
    if min(len(a), len(b)) < 2 or not (np.ptp(a) or np.ptp(b)):
        return None
    return _welch(a, b, level)[0]


def _welch(a: Floats, b: Floats, level: float) -> tuple[tuple[float, float], float]:
    """The interval of the difference of means, and p."""
    with _quiet():
        result = stats.ttest_ind(a, b, equal_var=False)
        low, high = result.confidence_interval(level)
    return (float(low), float(high)), float(result.pvalue)


def _choose(
    fewest: int, p_levene: float | None, p_shapiro: float | None, alpha: float
) -> tuple[Literal["ANOVA", "Welch"], str]:
    if fewest < FEWEST_TO_CHECK:
        return "Welch", "too few runs to check what ANOVA assumes"
    doubts = []
    if p_levene is not None and p_levene < alpha:
        doubts.append("variances differ")
    if p_shapiro is not None and p_shapiro < alpha:
        doubts.append("not normally distributed")
    return ("Welch", " and ".join(doubts)) if doubts else ("ANOVA", "")


def _p_value(test: Callable[[], Any]) -> float | None:
    with _quiet():
        p_value = float(test().pvalue)
    return p_value if math.isfinite(p_value) else None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep scipy from warning of constant groups and divisions by zero, which are dealt with here."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield
