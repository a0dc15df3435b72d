"""All comparisons of a study, with a correction for how many they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from prunedeploy.study.anova import ALPHA, Comparison, compare
from prunedeploy.study.cells import Study
from prunedeploy.study.design import COLOUR_PAIRS, GREY_PAIRS, TIME_MS, Metric, Pair


@dataclass(frozen=True)
class Contrast:
    """A pair of configurations at one ratio, in one metric.

    Attributes:
        metric: What is compared.
        pair: Who.
        ratio: At which pruning ratio.
        comparison: The two groups of runs.
        p_holm: The p-value to read, corrected over the whole family; None where there is none.
    """

    metric: Metric
    pair: Pair
    ratio: float
    comparison: Comparison
    p_holm: float | None = None

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


def present_pairs(study: Study) -> tuple[Pair, ...]:
    """The paper's pairs of which the study has both configurations."""
    return tuple(
        pair for pair in (*COLOUR_PAIRS, *GREY_PAIRS) if {pair.a, pair.b} <= set(study.configurations)
    )


def all_contrasts(study: Study) -> tuple[Contrast, ...]:
    """Compare every pair at every ratio in robust mAP and in time.

    The family of Holm's correction is all of them together: whatever a reader finds in Tables I to IV.
    """
    contrasts = [
        Contrast(
            metric, pair, ratio, compare(study.values(metric, pair.a, ratio), study.values(metric, pair.b, ratio))
        )
        for metric in (study.map_metric, TIME_MS)
        if study.has(metric)
        for pair in present_pairs(study)
        for ratio in study.ratios
    ]
    corrected = holm([contrast.comparison.p_value for contrast in contrasts])
    return tuple(replace(contrast, p_holm=p) for contrast, p in zip(contrasts, corrected, strict=True))
