"""What the paper claims, and the answer of any study's rows to each of it.

Reference: Liu, Efficient and Adversarially Robust Object Detection; each claim names its section.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np

from prunedeploy.study.statistics import claim_rules as rules
from prunedeploy.study.statistics.cells import Floats, Study
from prunedeploy.study.statistics.claim_rules import ABOUT_HALF, ABOUT_THREE, EQUAL_MARGIN, Part, Verdict
from prunedeploy.study.statistics.design import PAPER_CONFIGURATIONS, TIME_MS, Metric, configuration
from prunedeploy.study.statistics.paper import DEEPLIFT_SECONDS, SCALED_SECONDS

UD, US, SD, SS, GREY = PAPER_CONFIGURATIONS
UNSTRUCTURED_AND_STRUCTURED = ((UD, SD), (US, SS))
STRUCTURED_AND_UNSTRUCTURED = ((SD, UD), (SS, US))
DEEPLIFT_AND_SCALED = ((UD, US), (SD, SS))
GREY_AND_COLOUR = ((GREY, UD),)


@dataclass(frozen=True)
class Claim:
    """A statement of the paper.

    Attributes:
        key: For files and links.
        text: The statement.
        source: Section of the paper.
        rule: What confirms it.
        parts: Answers it from a study; no part: nothing in the study is about it.
        remark: What to know when reading the answer.
    """

    key: str
    text: str
    source: str
    rule: str
    parts: Callable[[Study], list[Part]]
    remark: str = ""


@dataclass(frozen=True)
class Answer:
    """A claim with what the rows say to it."""

    claim: Claim
    parts: tuple[Part, ...]

    @property
    def verdict(self) -> Verdict:
        """Not confirmed if one part is not, else not tested if one part is not or there is none, else confirmed."""
        verdicts = {part.verdict for part in self.parts}
        if Verdict.NOT_CONFIRMED in verdicts:
            return Verdict.NOT_CONFIRMED
        return Verdict.NOT_TESTED if Verdict.NOT_TESTED in verdicts or not verdicts else Verdict.CONFIRMED

    @property
    def tally(self) -> str:
        """How many parts hold, e.g. ``9 of 12 hold, 2 could not be tested``."""
        if not self.parts:
            return "nothing in these rows is about it"
        counts = {verdict: sum(part.verdict is verdict for part in self.parts) for verdict in Verdict}
        untested = counts[Verdict.NOT_TESTED]
        if untested == len(self.parts):
            return "nothing could be tested"
        more = f", {untested} could not be tested" if untested else ""
        directed = [part.leans for part in self.parts if part.leans is not None]
        if counts[Verdict.NOT_CONFIRMED] and directed:
            more += f"; in {sum(directed)} of {len(directed)} the means lie that way"
        return f"{counts[Verdict.CONFIRMED]} of {len(self.parts)} parts hold{more}"


def answer_claims(study: Study) -> tuple[Answer, ...]:
    """Answer every claim of the paper from the rows of a study."""
    return tuple(Answer(claim, tuple(claim.parts(study))) for claim in CLAIMS)


def ratios_within(study: Study, low: float, high: float) -> list[float]:
    """The study's ratios from ``low`` to ``high``, both included."""
    return [ratio for ratio in study.ratios if low <= ratio <= high]


def _at_each(
    rule: Callable[[Study, Metric, str, str, float], Part],
    pairs: Iterable[tuple[str, str]],
    low: float,
    high: float = 1.0,
    metric: Metric | None = None,
) -> Callable[[Study], list[Part]]:
    """``rule`` for every pair that a study has, at each of its ratios from ``low`` to ``high``.

    Args:
        rule: Called with the study, metric, both names and the ratio.
        pairs: Pairs of configurations.
        low: Lowest ratio.
        high: Highest ratio.
        metric: What is compared; None: the study's robust mAP.
    """

    def parts(study: Study) -> list[Part]:
        return [
            rule(study, metric or study.map_metric, a, b, ratio)
            for a, b in pairs
            if {a, b} <= set(study.configurations)
            for ratio in ratios_within(study, low, high)
        ]

    return parts


def _of_each(rule: Callable[[Study, Metric, str], Part], *names: str) -> Callable[[Study], list[Part]]:
    """``rule`` about the time of every configuration that a study has."""
    return lambda study: [rule(study, TIME_MS, name) for name in names if name in study.configurations]


def _grey_costs_less_and_less(study: Study) -> list[Part]:
    return [
        *_at_each(rules.is_lower, GREY_AND_COLOUR, 0, 0.65)(study),
        *_at_each(rules.is_equal, GREY_AND_COLOUR, 0.95)(study),
    ]


def _training_makes_robust(study: Study) -> list[Part]:
    parts = []
    for name in study.configurations:
        given = study.values(study.map_metric, configuration(name).original, 0.0)
        if len(given) and 0.0 in study.ratios:
            what = "the original network"
            parts.append(rules.is_above_number(study, study.map_metric, name, 0.0, float(given.mean()), what))
    return parts


def _deeplift_scores_cost_more(study: Study) -> list[Part]:
    seconds = {scores: score_seconds(study, scores) for scores in ("deeplift", "scaled")}
    if not any(len(values) for values in seconds.values()):
        return []
    return [rules.times_as_long(seconds["deeplift"], seconds["scaled"], "initialising scores", ABOUT_THREE)]


def score_seconds(study: Study, scores: str) -> Floats:
    """What initialising scores of a kind took in each run, seconds ``(n,)``: on colour images and one machine.

    Of several machines it is the one with the most rows. Ratios and methods share one scoring, so a run counts once.
    """
    timed = [(row, row.score_seconds) for row in study.rows if row.score_seconds is not None]
    machines = Counter(row.score_machine for row, _ in timed)
    by_run: dict[int, list[float]] = {}
    for row, seconds in timed:
        who = configuration(row.configuration)
        on_one_machine = row.score_machine == machines.most_common(1)[0][0]
        if on_one_machine and who.scores == scores and not who.greyscale:
            by_run.setdefault(row.run, []).append(seconds)
    return np.array([np.mean(by_run[run]) for run in sorted(by_run)], np.float64)


_TESTED = "at every such ratio of the study, difference of means in that direction and p < 0.05"
CLAIMS = (
    Claim(
        "unstructured-map",
        "Unstructured pruning keeps more robust mAP than structured pruning at 25 to 90 %.",
        "IV-C",
        f"{_TESTED}, for both scores",
        _at_each(rules.is_higher, UNSTRUCTURED_AND_STRUCTURED, 0.25, 0.9),
    ),
    Claim(
        "deeplift-map",
        "DeepLIFT scores keep more robust mAP than scaled ones at 50 to 85 %.",
        "IV-B",
        f"{_TESTED}, for both methods",
        _at_each(rules.is_higher, DEEPLIFT_AND_SCALED, 0.5, 0.85),
    ),
    Claim(
        "structured-half",
        "From 65 % on, structured models take about half the time of unstructured ones.",
        "IV-C",
        f"quotient of mean times {ABOUT_HALF[0]:g} to {ABOUT_HALF[1]:g} and p < 0.05, at every such ratio of the study",
        _at_each(partial(rules.is_share, bounds=ABOUT_HALF), STRUCTURED_AND_UNSTRUCTURED, 0.65, metric=TIME_MS),
        "The paper's own means give .60 and .61 at 65 %, and .48 to .55 beyond.",
    ),
    Claim(
        "unstructured-time",
        "Unstructured pruning alone also cuts inference time (119 to 43 ms in the paper).",
        "IV-A, Fig. 3b",
        f"mean time at the highest ratio at least {100 * rules.FALLS_BY:g} % below that at ratio 0, and p < 0.05",
        _of_each(rules.falls, UD, US, GREY),
        "Dense kernels multiply zeros like any other number, so with them a network with zeros in it should take as "
        "long as before. A drop needs something else: sparse kernels, filters that are zero altogether and left out, "
        "or fewer detections to sort and suppress where that is part of the time. The paper does not say which.",
    ),
    Claim(
        "s-shape",
        "Inference time over the pruning ratio is S-shaped.",
        "IV-A",
        f"the time falls, most steeply neither at first nor at last, and the first and the last slope are at most "
        f"{rules.S_ENDS:g} of the steepest",
        _of_each(rules.is_s_shaped, UD, US, SD, SS, GREY),
    ),
    Claim(
        "greyscale-map",
        "Greyscale images give lower robust mAP at 0 to 65 %, and the same at 95 and 99 %.",
        "IV-D",
        f"lower: {_TESTED}; the same: 90 % interval of the difference within ±{100 * EQUAL_MARGIN:g} % of colour's "
        "mAP at ratio 0",
        _grey_costs_less_and_less,
        "A p-value above 0.05, which is what the paper reads, does not show that two means are equal.",
    ),
    Claim(
        "adversarial-training",
        "Adversarial pre-training lifts robust mAP (0.176 to 0.41 in the paper).",
        "IV-A",
        "95 % interval of the mean at ratio 0 above the original network's, in every configuration",
        _training_makes_robust,
    ),
    Claim(
        "deeplift-cost",
        "DeepLIFT scores take three times as long to compute as scaled ones.",
        "IV-B",
        f"quotient of mean seconds {ABOUT_THREE[0]:g} to {ABOUT_THREE[1]:g}, on one machine",
        _deeplift_scores_cost_more,
        f"The paper says {DEEPLIFT_SECONDS} s against {SCALED_SECONDS} s and gives no runs. Scaled scores are one "
        "formula per layer; what they need afterwards, optimising them, DeepLIFT leaves out.",
    ),
    Claim(
        "scores-time",
        "Which scores are used makes no clear difference in inference time.",
        "IV-B",
        f"90 % interval of the difference within ±{100 * EQUAL_MARGIN:g} % of the time at ratio 0, at all other ratios",
        _at_each(rules.is_equal, DEEPLIFT_AND_SCALED, 0.25, metric=TIME_MS),
    ),
    Claim(
        "greyscale-time",
        "Greyscale images are slightly faster below 65 %.",
        "IV-D",
        _TESTED,
        _at_each(rules.is_lower, GREY_AND_COLOUR, 0, math.nextafter(0.65, 0), TIME_MS),
        "They are replicated over three channels, so every layer computes as much as in colour.",
    ),
)
