"""What it takes to confirm a statement about a study: rules in code, the same for every study.

Every rule answers one part of a claim: one pair or configuration at one ratio. A claim is confirmed if all its parts
are. Each part is tested at 5 %, and asking for all of them keeps the whole at 5 % without a correction (an
intersection-union test: Berger, Multiparameter Hypothesis Testing and Acceptance Sampling, 1982).

"No significant difference" does not show that two things are equal. Equality is shown by an interval that lies inside
a margin (two one-sided tests: Schuirmann, A Comparison of the Two One-Sided Tests Procedure and the Power Approach,
1987).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np

from prunedeploy.report.format import three_digits
from prunedeploy.study.statistics.anova import ALPHA, Comparison, compare, difference_interval, mean_interval
from prunedeploy.study.statistics.cells import Floats, Study
from prunedeploy.study.statistics.design import Metric, configuration
from prunedeploy.study.statistics.tables import percent

EQUAL_MARGIN = 0.05
"""Two means are as good as equal if they differ by less than this share of the second one's value at ratio 0."""
FALLS_BY = 0.1
"""A time falls if it becomes shorter by at least this share: less than that no reader would call faster."""
ABOUT_HALF = (0.4, 0.6)
ABOUT_THREE = (2.0, 4.0)
S_ENDS = 0.5
"""A curve is S-shaped if its first and its last slope are at most this share of its steepest, which lies between."""


class Verdict(Enum):
    """The answer to a claim or to a part of it."""

    CONFIRMED = "confirmed"
    NOT_CONFIRMED = "not confirmed"
    NOT_TESTED = "not tested"


@dataclass(frozen=True)
class Part:
    """One part of a claim, answered.

    Attributes:
        where: Which pair or configuration, at which ratio.
        verdict: The answer.
        numbers: What says so.
        p_value: p of the test, where the rule rests on one.
        leans: Whether the means at least lie the way that is claimed; None where that is no question of direction.
    """

    where: str
    verdict: Verdict
    numbers: str
    p_value: float | None = None
    leans: bool | None = None


def is_higher(study: Study, metric: Metric, a: str, b: str, ratio: float) -> Part:
    """``a``'s mean is above ``b``'s, and the p-value to read is below 0.05."""
    return _is_beyond(study, metric, a, b, ratio, 1)


def is_lower(study: Study, metric: Metric, a: str, b: str, ratio: float) -> Part:
    """``a``'s mean is below ``b``'s, and the p-value to read is below 0.05."""
    return _is_beyond(study, metric, a, b, ratio, -1)


def _is_beyond(study: Study, metric: Metric, a: str, b: str, ratio: float, sign: int) -> Part:
    result = _compared(study, metric, a, b, ratio)
    where = f"{_names(a, b)} at {percent(ratio)}"
    if result.p_value is None or result.difference is None:
        return Part(where, Verdict.NOT_TESTED, result.remark)
    leans = sign * result.difference > 0
    numbers = _means(study, metric, a, b, ratio, result)
    return _part(where, leans and result.p_value < ALPHA, numbers, result.p_value, leans)


def is_equal(study: Study, metric: Metric, a: str, b: str, ratio: float) -> Part:
    """The 90 % interval of the difference lies within `EQUAL_MARGIN` of ``b``'s mean at ratio 0."""
    result = _compared(study, metric, a, b, ratio)
    where = f"{_names(a, b)} at {percent(ratio)}, equal"
    interval = difference_interval(study.values(metric, a, ratio), study.values(metric, b, ratio), 1 - 2 * ALPHA)
    base = study.values(metric, b, 0.0)
    if interval is None or not len(base):
        return Part(where, Verdict.NOT_TESTED, result.remark)
    margin = EQUAL_MARGIN * float(base.mean())
    decimals = metric.digits([base.mean()]) + 1
    numbers = (
        f"{_means(study, metric, a, b, ratio, result)}; the difference lies in {interval[0]:+.{decimals}f} to "
        f"{interval[1]:+.{decimals}f} (90 %), the margin is ±{margin:.{decimals}f}"
    )
    return _part(where, -margin <= interval[0] and interval[1] <= margin, numbers)


def is_share(study: Study, metric: Metric, a: str, b: str, ratio: float, bounds: tuple[float, float]) -> Part:
    """``a``'s mean divided by ``b``'s lies within bounds, and ``a``'s is significantly lower."""
    lower = is_lower(study, metric, a, b, ratio)
    if lower.verdict is Verdict.NOT_TESTED:
        return lower
    share = float(study.values(metric, a, ratio).mean() / study.values(metric, b, ratio).mean())
    inside = lower.verdict is Verdict.CONFIRMED and bounds[0] <= share <= bounds[1]
    return _part(lower.where, inside, f"{share:.2f} of it; {lower.numbers}", lower.p_value)


def falls(study: Study, metric: Metric, name: str) -> Part:
    """The mean at the highest ratio is significantly lower than at ratio 0, and by at least `FALLS_BY`."""
    label = configuration(name).phrase
    ratios = [ratio for ratio in study.ratios if len(study.values(metric, name, ratio)) > 1]
    if len(ratios) < 2 or ratios[0] != 0.0:
        return Part(label, Verdict.NOT_TESTED, "needs two runs at ratio 0 and at another one")
    first, last = (study.values(metric, name, ratio) for ratio in (ratios[0], ratios[-1]))
    result = compare(last, first)
    if result.p_value is None:
        return Part(label, Verdict.NOT_TESTED, result.remark)
    share = float(last.mean() / first.mean())
    numbers = (
        f"{_value(metric, first)} at 0%, {_value(metric, last)} at {percent(ratios[-1])}: {share:.2f} of it "
        f"({result.test} p = {result.p_value:.2g})"
    )
    return _part(label, share <= 1 - FALLS_BY and result.p_value < ALPHA, numbers, result.p_value)


def is_s_shaped(study: Study, metric: Metric, name: str) -> Part:
    """The curve of means falls (`falls`), gently at first, steeply in the middle, gently at last (`S_ENDS`)."""
    label = configuration(name).phrase
    fall = falls(study, metric, name)
    known = [(ratio, float(v.mean())) for ratio in study.ratios if len(v := study.values(metric, name, ratio))]
    if fall.verdict is Verdict.NOT_TESTED or len(known) < 4:
        return Part(label, Verdict.NOT_TESTED, "needs four ratios, 0 among them, with two runs at the ends")
    x, y = np.array(known).T
    slopes = -np.diff(y) / np.diff(x) / 100  # falling per percentage point
    steepest = int(slopes.argmax())
    gentle = max(slopes[0], slopes[-1]) <= S_ENDS * slopes[steepest]
    at = f"{percent(x[steepest])} to {percent(x[steepest + 1])}"
    numbers = (
        f"{metric.unit} less per percentage point: {slopes[0]:.3g} at first, {slopes[steepest]:.3g} at the steepest "
        f"({at}), {slopes[-1]:.3g} at last"
    )
    if fall.verdict is Verdict.NOT_CONFIRMED:
        numbers = f"does not fall: {fall.numbers}"
    inside = 0 < steepest < len(slopes) - 1
    return _part(label, fall.verdict is Verdict.CONFIRMED and inside and gentle, numbers)


def is_above_number(study: Study, metric: Metric, name: str, ratio: float, number: float, what: str) -> Part:
    """The 95 % interval of a mean lies above a number that has no runs."""
    label = f"{configuration(name).phrase} at {percent(ratio)}"
    values = study.values(metric, name, ratio)
    interval = mean_interval(values)
    if interval is None:
        return Part(label, Verdict.NOT_TESTED, "fewer than two runs")
    d = metric.decimals
    numbers = f"{values.mean():.{d}f} ({interval[0]:.{d}f} to {interval[1]:.{d}f}) against {number:.{d}f} of {what}"
    return _part(label, interval[0] > number, numbers)


def times_as_long(a: Floats, b: Floats, where: str, bounds: tuple[float, float]) -> Part:
    """Mean seconds of ``a`` divided by those of ``b`` lie within bounds."""
    if not len(a) or not len(b) or not b.mean():
        return Part(where, Verdict.NOT_TESTED, "no row has seconds of both, measured on one machine")
    factor = float(a.mean() / b.mean())
    seconds = f"{three_digits(float(a.mean()))} s against {three_digits(float(b.mean()))} s"
    numbers = f"{seconds}: {three_digits(factor)} times as long, wanted {bounds[0]:g} to {bounds[1]:g}"
    return _part(where, bounds[0] <= factor <= bounds[1], numbers)


def _compared(study: Study, metric: Metric, a: str, b: str, ratio: float) -> Comparison:
    return compare(study.values(metric, a, ratio), study.values(metric, b, ratio))


def _part(where: str, holds: bool, numbers: str, p_value: float | None = None, leans: bool | None = None) -> Part:
    return Part(where, Verdict.CONFIRMED if holds else Verdict.NOT_CONFIRMED, numbers, p_value, leans)


def _means(study: Study, metric: Metric, a: str, b: str, ratio: float, result: Comparison) -> str:
    first, second = (_value(metric, study.values(metric, name, ratio)) for name in (a, b))
    p = f", {result.test} p = {result.p_value:.2g}" if result.p_value is not None else ""
    return f"{first} against {second}{p}"


def _value(metric: Metric, values: Floats) -> str:
    mean = float(values.mean())
    return f"{mean:.{metric.digits([mean])}f}{' ' + metric.unit if metric.unit else ''}"


def _names(a: str, b: str) -> str:
    return f"{configuration(a).phrase} against {configuration(b).phrase}"
