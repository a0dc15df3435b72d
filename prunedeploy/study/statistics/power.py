"""How large a difference has to be before so few runs find it."""

from __future__ import annotations

import math

from scipy import optimize, stats

from prunedeploy.study.statistics.anova import ALPHA

POWER = 0.8


def power_of(effect: float, n: int, alpha: float = ALPHA) -> float:
    """Chance that a two-sided t-test of two groups finds a difference.

    Args:
        effect: The true difference in standard deviations (Cohen's d), at least 0.
        n: Runs per group, at least 2.
        alpha: Below which a p-value counts.

    Returns:
        In [alpha, 1].

    Reference: Cohen, Statistical Power Analysis for the Behavioral Sciences, 1988, chapter 2; noncentral t.
    """
    freedom, shift = 2 * n - 2, effect * math.sqrt(n / 2)
    critical = stats.t.ppf(1 - alpha / 2, freedom)
    wrong_side = float(stats.nct.cdf(-critical, freedom, shift))
    # Where the wrong side is all but impossible scipy's series gives no number.
    return float(stats.nct.sf(critical, freedom, shift)) + (0.0 if math.isnan(wrong_side) else wrong_side)


def detectable_effect(n: int, power: float = POWER, alpha: float = ALPHA) -> float | None:
    """Difference, in standard deviations, that this many runs a group find with a chance of ``power``; None below 2."""
    if n < 2:
        return None
    return float(optimize.brentq(lambda effect: power_of(effect, n, alpha) - power, 0.01, 20))
