"""Is a difference between two measurements real: the ratio of medians and its bootstrap interval.

Samples of one round are correlated (one clock, one neighbour), so whole rounds are drawn, not samples.

References: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 8 and 13; Hesterberg, What
Teachers Should Know About the Bootstrap, 2015, section 5.4, for the wider percentiles of few rounds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

RESAMPLES = 4000
CONFIDENCE = 0.95

_CHUNK = 4_000_000  # numbers in memory at a time

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """The latency of B over that of A.

    Attributes:
        ratio: Ratio of the medians.
        low: Lower end of its interval.
        high: Upper end.
    """

    ratio: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """``"faster"``, ``"slower"`` (B, than A) or ``"no measurable difference"``."""
        if self.high < 1:
            return "faster"
        return "slower" if self.low > 1 else "no measurable difference"


def compare_rounds(
    a_ms: Sequence[Sequence[float]],
    b_ms: Sequence[Sequence[float]],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Comparison:
    """Compare two rows.

    Args:
        a_ms: Samples of each round of A, at least one round.
        b_ms: Milliseconds of B; the rounds need not be as many.
        seed: Seed of the bootstrap.
        resamples: How often rounds are drawn anew.

    Returns:
        The ratio of the medians of all samples, with the interval of its percentiles, widened for few rounds.
        With a single round on a side there is no interval: it is (0, inf).
    """
    rng = np.random.default_rng(seed)
    ratio = float(np.median(np.concatenate(b_ms)) / np.median(np.concatenate(a_ms)))
    rounds = min(len(a_ms), len(b_ms))
    if rounds < 2:
        return Comparison(ratio, 0.0, math.inf)
    of_a, of_b = (resampled_medians(rounds_ms, resamples, rng) for rounds_ms in (a_ms, b_ms))
    tail = expanded_tail((1 - CONFIDENCE) / 2, rounds)
    low, high = np.quantile(of_b / of_a, [tail, 1 - tail])
    return Comparison(ratio, float(low), float(high))


def resampled_medians(rounds_ms: Sequence[Sequence[float]], resamples: int, rng: np.random.Generator) -> Float64Array:
    """Medians of the samples of as many rounds as there are, drawn with replacement, ``(resamples,)``.

    A round that is drawn k times counts k times: the median is a weighted one over the samples, sorted once.
    """
    count = len(rounds_ms)
    values = np.concatenate([np.asarray(block, np.float64) for block in rounds_ms])  # (N,)
    owner = np.repeat(np.arange(count), [len(block) for block in rounds_ms])
    order = np.argsort(values, kind="stable")
    values, owner = values[order], owner[order]
    drawn = rng.integers(0, count, (resamples, count))
    times = np.stack([(drawn == block).sum(axis=1) for block in range(count)], axis=1)  # (resamples, rounds)
    step = max(1, _CHUNK // len(values))
    return np.concatenate(
        [_weighted_medians(values, times[start : start + step, owner]) for start in range(0, resamples, step)]
    )


def _weighted_medians(values: Float64Array, weights: npt.NDArray[np.int64]) -> Float64Array:
    """Median of each row's multiset: ``values`` sorted ``(N,)``, ``weights`` how often each is in it ``(R, N)``."""
    upto = np.cumsum(weights, axis=1)
    total = upto[:, -1:]
    lower = (upto > (total - 1) // 2).argmax(axis=1)  # the first value that reaches the lower middle, from 0
    upper = (upto > total // 2).argmax(axis=1)
    return np.asarray((values[lower] + values[upper]) / 2)


def expanded_tail(tail: float, n: int) -> float:
    """The tail to cut off a bootstrap of ``n`` units so that its interval is as wide as Student's.

    A percentile interval of few units is too narrow, by sqrt((n - 1) / n) and by the normal's quantile in place of
    Student's.

    Reference: Hesterberg 2015, as above.
    """
    return NormalDist().cdf(-math.sqrt(n / (n - 1)) * student_quantile(1 - tail, n - 1))


def student_quantile(p: float, freedom: int) -> float:
    """Quantile of Student's t, ``p`` above 0.5.

    Reference: Hill, Algorithm 396: Student's t-quantiles, Communications of the ACM 13 (10), 1970.
    """
    if freedom == 1:
        return math.tan(math.pi * (p - 0.5))
    if freedom == 2:
        return (2 * p - 1) * math.sqrt(2 / (4 * p * (1 - p)))
    two_sided = 2 * (1 - p)
    a = 1 / (freedom - 0.5)
    b = 48 / a**2
    c = ((20700 * a / b - 98) * a - 16) * a + 96.36
    d = ((94.5 / (b + c) - 3) / b + 1) * math.sqrt(a * math.pi / 2) * freedom
    y = (d * two_sided) ** (2 / freedom)
    if y > 0.05 + a:
        x = NormalDist().inv_cdf(two_sided / 2)
        y = x**2
        if freedom < 5:
            c += 0.3 * (freedom - 4.5) * (x + 0.6)
        c = (((0.05 * d * x - 5) * x - 7) * x - 2) * x + b + c
        y = (((((0.4 * y + 6.3) * y + 36) * y + 94.5) / c - y - 3) / b + 1) * x
        y = a * y**2
        y = math.expm1(y)
    else:
        y = ((1 / (((freedom + 6) / (freedom * y) - 0.089 * d - 0.822) * (freedom + 2) * 3) + 0.5 / (freedom + 4)) * y
             - 1) * (freedom + 1) / (freedom + 2) + 1 / y  # fmt: skip
    return math.sqrt(freedom * y)
