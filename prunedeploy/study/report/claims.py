"""The claims of the paper on the report's page: an answer to each, with the numbers that say so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from prunedeploy.study.statistics.cells import Study, study_from_rows
from prunedeploy.study.statistics.claim_rules import Part, Verdict
from prunedeploy.study.statistics.claims import Answer, answer_claims
from prunedeploy.study.statistics.design import MAP_ENSEMBLE, MAP_PGD, MAP_PGD_CONF50
from prunedeploy.study.statistics.paper import paper_rows
from prunedeploy_engines.markup.html import Html, join, tag
from prunedeploy_engines.markup.page import bullets, details, note, tiles

VERDICT_CLASSES = {Verdict.CONFIRMED: "good", Verdict.NOT_CONFIRMED: "bad", Verdict.NOT_TESTED: "muted"}
VERDICT_SIGNS = {Verdict.CONFIRMED: "✓", Verdict.NOT_CONFIRMED: "✗", Verdict.NOT_TESTED: "–"}


def claim_tiles(answers: Sequence[Answer]) -> Html:
    """How many claims have which answer."""
    counts = {verdict: sum(answer.verdict is verdict for answer in answers) for verdict in Verdict}
    return tiles((f"claims {verdict.value}", str(count), f"of {len(answers)}") for verdict, count in counts.items())


def claims_table(study: Study, answers: Sequence[Answer], compare_paper: bool) -> Html:
    """A row per claim.

    Args:
        study: The data.
        answers: The study's answers, in robust mAP as it is meant there.
        compare_paper: Whether the answers of the paper's own numbers stand beside them. Those at the other score
            threshold and under the ensemble of attacks do if the rows have them.
    """
    columns: list[tuple[str, dict[str, Answer]]] = []
    other = MAP_PGD_CONF50 if study.map_metric == MAP_PGD else MAP_PGD
    threshold = "0.5" if other == MAP_PGD_CONF50 else "0.001"
    for metric, name in ((other, f"at score threshold {threshold}"), (MAP_ENSEMBLE, "under the ensemble of attacks")):
        if study.has(metric):
            again = answer_claims(replace(study, map_metric=metric))
            columns.append((name, {answer.claim.key: answer for answer in again}))
    if compare_paper:
        paper = answer_claims(study_from_rows(paper_rows()))
        columns.append(("the paper's numbers, by the same rule", {answer.claim.key: answer for answer in paper}))
    headings = ["Claim", "Answer", *(name for name, _ in columns)]
    groups = []
    for answer in answers:
        beside = [tag("td", _beside(answer, of[answer.claim.key])) for _, of in columns]
        first = tag(
            "tr",
            tag("th", answer.claim.text, _small(f"Section {answer.claim.source}"), scope="rowgroup"),
            tag("td", _answer(answer)),
            *beside,
        )
        numbers = tag("tr", tag("td", _numbers(answer), colspan=str(len(headings)), cls="wide"))
        groups.append(tag("tbody", first, numbers, id=f"claim-{answer.claim.key}"))
    head = tag("thead", tag("tr", *(tag("th", heading, scope="col") for heading in headings)))
    table = tag("table", head, *groups, cls="claims")
    rule = note(
        "A claim is confirmed if each of its parts is; asking for all of them at p < 0.05 each needs no correction for "
        "their number. A part is not tested where rows are missing or have one run only."
    )
    return join(tag("div", table, cls="scroll"), rule)


def _numbers(answer: Answer) -> Html:
    """What confirms the claim, the parts that speak most against it, and all of them to unfold."""
    claim, shown, parts = answer.claim, _telling(answer), answer.parts
    return join(
        tag("div", f"Confirmed by: {claim.rule}."),
        tag("div", claim.remark) if claim.remark else None,
        bullets(map(_part, shown)) if shown else None,
        details(f"all {len(parts)} parts", bullets(map(_part, parts))) if len(parts) > len(shown) else None,
    )


def _telling(answer: Answer, most: int = 3) -> list[Part]:
    """The parts that fail; where none does, all if they are few, else the one nearest to failing."""
    failing = [part for part in answer.parts if part.verdict is Verdict.NOT_CONFIRMED]
    if failing or len(answer.parts) <= most:
        return failing[:most] or list(answer.parts)
    tested = [part for part in answer.parts if part.p_value is not None]
    return [max(tested, key=lambda part: part.p_value or 0)] if tested else list(answer.parts[:1])


def _part(part: Part) -> Html:
    sign = tag("span", VERDICT_SIGNS[part.verdict], cls=VERDICT_CLASSES[part.verdict], title=part.verdict.value)
    return join(sign, f" {part.where}: {part.numbers}")


def _answer(answer: Answer) -> Html:
    return join(_verdict(answer), _small(answer.tally))


def _beside(answer: Answer, other: Answer) -> Html:
    """Another answer, or that it is the very same: claims about time do not depend on a score threshold."""
    same = bool(answer.parts) and other.parts == answer.parts
    return tag("span", "the same", cls="muted", title=other.tally) if same else _answer(other)


def _verdict(answer: Answer) -> Html:
    sign = tag("span", f"{VERDICT_SIGNS[answer.verdict]} ", aria_hidden="true")
    return tag("span", sign, answer.verdict.value, cls=f"verdict {VERDICT_CLASSES[answer.verdict]}")


def _small(words: str) -> Html:
    return tag("small", words, cls="interval")
