"""All comparisons of a study, with a correction for how many they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from prunedeploy.study.statistics.anova import ALPHA, Comparison, compare, paired_p_value
from prunedeploy.study.statistics.cells import Study
from prunedeploy.study.statistics.design import COLOUR_PAIRS, GREY_PAIRS, TIME_MS, Metric, Pair


@dataclass(frozen=True)
class Contrast:
    """A pair of configurations at one ratio, in one metric.

    Attributes:
        metric: What is compared.
        pair: Who.
        ratio: At which pruning ratio.
        comparison: The two groups of runs.
        p_holm: The p-value to read, corrected over the whole family; None where there is none.
        p_paired: p of the paired test, for pairs whose runs share their pre-training (`share_runs`); never the one to
            read, since the paper's design has no such pairs.
    """

    metric: Metric
    pair: Pair
    ratio: float
    comparison: Comparison
    p_holm: float | None = None
    p_paired: float | None = None

    @property
    def significant(self) -> bool:
        """Whether the corrected p-value is below 0.05."""
        return self.p_holm is not None and self.p_holm < ALPHA


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Correct p-values for being many: with them the chance of even one false alarm stays below the level chosen.

    Holds for tests that depend on each other, as those of the ratios do, which share their runs' pre-training.

    Args:
        p_values: In [0, 1]; None is no test, and does not count.

    Returns:
        Corrected ones in the same order, in [0, 1].

    Reference: Holm, A Simple Sequentially Rejective Multiple Test Procedure, 1979.
    """
    known = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p_value, place) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p_value))
        corrected[place] = largest
    return corrected


def share_runs(study: Study, a: str, b: str) -> bool:
    """Whether two configurations have the same robust mAP in each of several runs at ratio 0: the same networks."""
    first, second = (study.by_run(study.map_metric, name, 0.0) for name in (a, b))
    return len(first) > 1 and first == second


def all_contrasts(study: Study) -> tuple[Contrast, ...]:
    """Compare every pair of the paper's that the study has, at every ratio, in robust mAP and in time.

    The family of Holm's correction is all of them together: whatever a reader finds in Tables I to IV.
    """
    contrasts = [
        _contrast(study, metric, pair, ratio)
        for metric in (study.map_metric, TIME_MS)
        if study.has(metric)
        for pair in (*COLOUR_PAIRS, *GREY_PAIRS)
        if {pair.a, pair.b} <= set(study.configurations)
        for ratio in study.ratios
    ]
    corrected = holm([contrast.comparison.p_value for contrast in contrasts])
    return tuple(replace(contrast, p_holm=p) for contrast, p in zip(contrasts, corrected, strict=True))


def _contrast(study: Study, metric: Metric, pair: Pair, ratio: float) -> Contrast:
    first, second = (study.by_run(metric, name, ratio) for name in (pair.a, pair.b))
    result = compare(study.values(metric, pair.a, ratio), study.values(metric, pair.b, ratio))
    both = [run for run in first if run in second]
    paired = None
    if share_runs(study, pair.a, pair.b):
        paired = paired_p_value(np.array([first[run] for run in both]), np.array([second[run] for run in both]))
    return Contrast(metric, pair, ratio, result, p_paired=paired)
