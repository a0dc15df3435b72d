"""Claims are answered by fixed rules: on the paper's numbers, and on made-up ones whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from prunedeploy.study.statistics.cells import study_from_rows
from prunedeploy.study.statistics.claim_rules import (
    Verdict,
    falls,
    is_above_number,
    is_equal,
    is_higher,
    is_lower,
    is_s_shaped,
    is_share,
    times_as_long,
)
from prunedeploy.study.statistics.claims import CLAIMS, Answer, answer_claims, ratios_within, score_seconds
from prunedeploy.study.statistics.design import MAP_PGD, TIME_MS
from prunedeploy.study.statistics.paper import paper_rows
from study_rows import grid, row

SPREAD = np.array([-0.01, 0.0, 0.01])
A, B = "structured-deeplift", "structured-scaled"
YES, NO, UNKNOWN = Verdict.CONFIRMED, Verdict.NOT_CONFIRMED, Verdict.NOT_TESTED


def study_of(cells, field="map_pgd"):
    """Three runs per cell around the mean given; ``{(configuration, ratio): mean}``."""
    more = {"machine": "m1"} if field == "time_ms" else {}
    return study_from_rows(grid({key: tuple(mean + SPREAD) for key, mean in cells.items()}, field, **more))


@pytest.fixture(scope="module")
def of_the_paper():
    return {answer.claim.key: answer for answer in answer_claims(study_from_rows(paper_rows()))}


def test_answers_on_the_papers_own_numbers(of_the_paper):
    # Two are refused by its own numbers. At 65 % structured models take .60 and .61 of the time (Tables X to XIII: 52.9
    # of 87.7 and 54.0 of 88.3 ms), which is not about half. At 95 % greyscale is higher by .0153 with p = .093: that is
    # no sign of a difference, but does not show that there is none of .0205, a twentieth of .410. The seconds of
    # scoring are not among its raw numbers.
    assert {key: (answer.verdict, answer.tally) for key, answer in of_the_paper.items()} == {
        "unstructured-map": (YES, "12 of 12 parts hold"),
        "deeplift-map": (YES, "8 of 8 parts hold"),
        "structured-half": (NO, "10 of 12 parts hold"),
        "unstructured-time": (YES, "3 of 3 parts hold"),
        "s-shape": (YES, "5 of 5 parts hold"),
        "greyscale-map": (NO, "5 of 6 parts hold; in 4 of 4 the means lie that way"),
        "adversarial-training": (YES, "4 of 4 parts hold"),
        "deeplift-cost": (UNKNOWN, "nothing in these rows is about it"),
        "scores-time": (YES, "16 of 16 parts hold"),
        "greyscale-time": (YES, "3 of 3 parts hold"),
    }
    failing = [part for part in of_the_paper["structured-half"].parts if part.verdict is NO]
    assert [part.where for part in failing] == [
        "structured DeepLIFT against unstructured DeepLIFT at 65%",
        "structured scaled against unstructured scaled at 65%",
    ]
    assert failing[0].numbers.startswith("0.60 of it; 52.9 ms against 87.7 ms")


def test_every_claim_says_where_it_stands_and_what_confirms_it():
    assert len({claim.key for claim in CLAIMS}) == len(CLAIMS)
    for claim in CLAIMS:
        assert claim.text.endswith(".")
        assert claim.source.startswith("IV-")
        assert claim.rule


def test_higher_needs_the_direction_and_a_small_p_value():
    for mean, verdict in ((0.35, YES), (0.305, NO), (0.25, NO)):
        study = study_of({(A, 0.5): mean, (B, 0.5): 0.3})
        assert is_higher(study, MAP_PGD, A, B, 0.5).verdict is verdict
    assert is_lower(study, MAP_PGD, A, B, 0.5).verdict is YES


def test_a_refused_claim_says_whether_the_means_lie_that_way():
    means = {0.5: 0.35, 0.65: 0.305, 0.75: 0.25}  # significant; that way by a hair; the other way
    study = study_of({**{(A, r): mean for r, mean in means.items()}, **{(B, r): 0.3 for r in means}})
    answer = next(answer for answer in answer_claims(study) if answer.claim.key == "deeplift-map")
    assert answer.tally == "1 of 3 parts hold; in 2 of 3 the means lie that way"


def test_what_was_not_measured_is_not_tested():
    study = study_of({(A, 0.5): 0.3})
    part = is_higher(study, MAP_PGD, A, B, 0.5)
    assert (part.verdict, part.numbers) == (UNKNOWN, "no runs to compare")
    single = study_from_rows(grid({(A, 0.0): (0.4,), (A, 0.5): (0.3,), (B, 0.5): (0.2,), (B, 0.0): (0.2,)}))
    assert is_higher(single, MAP_PGD, A, B, 0.5).numbers == "one run says nothing about chance: no test"
    assert is_equal(single, MAP_PGD, A, B, 0.5).verdict is UNKNOWN
    assert is_share(single, MAP_PGD, A, B, 0.5, (0, 1)).verdict is UNKNOWN
    assert falls(single, MAP_PGD, A).verdict is UNKNOWN
    assert is_s_shaped(single, MAP_PGD, A).verdict is UNKNOWN
    assert is_above_number(single, MAP_PGD, A, 0.5, 0.1, "x").verdict is UNKNOWN


def test_equal_means_shown_to_be_within_the_margin_not_merely_not_different():
    # Groups of three with standard deviation .01: standard error .01 sqrt(2/3), t(.95, 4) = 2.132, reach .0174.
    inside = {(A, 0.5): 0.301, (B, 0.5): 0.3, (B, 0.0): 0.40}  # margin .02 > .001 + .0174
    outside = {(A, 0.5): 0.304, (B, 0.5): 0.3, (B, 0.0): 0.40}  # margin .02 < .004 + .0174
    assert is_equal(study_of(inside), MAP_PGD, A, B, 0.5).verdict is YES
    assert is_equal(study_of(outside), MAP_PGD, A, B, 0.5).verdict is NO
    assert is_higher(study_of(outside), MAP_PGD, A, B, 0.5).verdict is NO  # nor is it different


def test_about_half_is_neither_much_more_nor_much_less():
    for share, verdict in ((0.5, YES), (0.41, YES), (0.59, YES), (0.65, NO), (0.3, NO), (1.0, NO)):
        study = study_of({(A, 0.5): 50 * share, (B, 0.5): 50}, "time_ms")
        part = is_share(study, TIME_MS, A, B, 0.5, (0.4, 0.6))
        assert part.verdict is verdict
        assert part.numbers.startswith(f"{share:.2f} of it")


def test_a_time_that_is_shorter_by_a_hair_does_not_fall():
    for last, verdict in ((9.5, NO), (8.9, YES), (11.0, NO)):
        study = study_of({(A, 0.0): 10, (A, 0.5): 3, (A, 0.9): last}, "time_ms")
        part = falls(study, TIME_MS, A)
        assert part.verdict is verdict, "the highest ratio counts, not the lowest time"


@pytest.mark.parametrize(
    ("times", "verdict"),
    [
        ((100, 95, 50, 45), YES),  # slopes .2, 1.8, .2 per point
        ((100, 75, 50, 25), NO),  # a straight line
        ((100, 50, 45, 40), NO),  # steepest at first
        ((100, 95, 90, 45), NO),  # steepest at last
        ((100, 60, 10, 5), NO),  # 1.6 at first is more than half of 2
        ((100, 99, 98.5, 98), NO),  # does not fall
    ],
)
def test_s_shape_is_gentle_steep_gentle(times, verdict):
    study = study_of({(A, ratio): time for ratio, time in zip((0.0, 0.25, 0.5, 0.75), times, strict=True)}, "time_ms")
    assert is_s_shaped(study, TIME_MS, A).verdict is verdict


def test_three_ratios_have_no_shape():
    study = study_of({(A, 0.0): 100, (A, 0.5): 50, (A, 0.9): 45}, "time_ms")
    assert is_s_shaped(study, TIME_MS, A).verdict is UNKNOWN


def test_above_a_number_means_the_whole_interval():
    # Mean .4, standard error .01 / sqrt(3), t(.975, 2) = 4.303: from .3752.
    study = study_of({(A, 0.0): 0.4})
    assert is_above_number(study, MAP_PGD, A, 0.0, 0.375, "x").verdict is YES
    assert is_above_number(study, MAP_PGD, A, 0.0, 0.376, "x").verdict is NO


def test_a_claim_is_as_good_as_its_worst_part():
    def answer(*verdicts):
        parts = tuple(times_as_long(np.array([v]), np.array([1.0]), "x", (2, 4)) for v in verdicts)
        return Answer(CLAIMS[0], parts)

    assert answer(3.0, 3.0).verdict is YES
    assert answer(3.0, 9.0).verdict is NO
    assert answer(3.0, 9.0).tally == "1 of 2 parts hold"
    untested = times_as_long(np.array([]), np.array([1.0]), "x", (2, 4))
    assert Answer(CLAIMS[0], (*answer(3.0).parts, untested)).verdict is UNKNOWN
    assert Answer(CLAIMS[0], (*answer(3.0).parts, untested)).tally == "1 of 2 parts hold, 1 could not be tested"
    assert Answer(CLAIMS[0], (*answer(9.0).parts, untested)).verdict is NO
    assert Answer(CLAIMS[0], ()).verdict is UNKNOWN


def test_seconds_of_scoring_count_once_per_run_and_on_one_machine():
    def scored(name, ratio, run, seconds, machine="m1"):
        return row(name, ratio, run, score_seconds=seconds, score_machine=machine)

    rows = [
        *(scored("structured-deeplift", ratio, 0, 30.0) for ratio in (0.5, 0.75, 0.9)),
        scored("unstructured-deeplift", 0.5, 1, 60.0),
        scored("unstructured-deeplift-grey", 0.5, 1, 900.0),
        scored("structured-deeplift", 0.5, 2, 900.0, "m2"),
        *(scored("structured-scaled", 0.5, run, 10.0) for run in (0, 1)),
    ]
    study = study_from_rows(rows)
    assert score_seconds(study, "deeplift").tolist() == [30, 60]
    assert score_seconds(study, "scaled").tolist() == [10, 10]
    answer = next(answer for answer in answer_claims(study) if answer.claim.key == "deeplift-cost")
    assert (answer.verdict, answer.parts[0].numbers) == (NO, "45.0 s against 10.0 s: 4.50 times as long, wanted 2 to 4")


def test_a_study_with_its_own_ratios_is_asked_at_those():
    study = study_of({(name, ratio): 0.3 for name in (A, B) for ratio in (0.0, 0.3, 0.6, 0.95)})
    assert ratios_within(study, 0.5, 0.85) == [0.6]
    answer = next(answer for answer in answer_claims(study) if answer.claim.key == "deeplift-map")
    assert [part.where for part in answer.parts] == ["structured DeepLIFT against structured scaled at 60%"]


def test_greyscale_is_compared_with_its_own_original():
    cells = {("unstructured-deeplift", 0.0): 0.4, ("unstructured-deeplift-grey", 0.0): 0.3}
    rows = grid({key: tuple(mean + SPREAD) for key, mean in cells.items()})
    rows += [row("original", 0.0, map_pgd=0.1), row("original-grey", 0.0, map_pgd=0.35)]
    answer = next(a for a in answer_claims(study_from_rows(rows)) if a.claim.key == "adversarial-training")
    assert [part.verdict for part in answer.parts] == [YES, NO]
    assert "0.300 (0.275 to 0.325) against 0.350 of the original network" in answer.parts[1].numbers
