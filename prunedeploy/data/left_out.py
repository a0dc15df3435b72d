"""What was wrong with the records of a data set and what became of them, counted by kind."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from prunedeploy.data.records import CocoDataset, Problem

LEFT_OUT, CLIPPED = "left out", "clipped"
MOST_NAMED = 100
"""So many records of a kind are named; `data check` names all."""
MOST_SAID = 4
"""So many kinds are named in one line."""


@dataclass(frozen=True)
class ProblemRow:
    """Problems of one kind in one split.

    Attributes:
        split: ``train``, ``test``, or what stands for both; empty: of the folder.
        kind: What is wrong.
        becomes: What a build makes of it.
        count: With how many records.
        named: The first of them, file and place.
    """

    split: str
    kind: str
    becomes: str
    count: int
    named: tuple[str, ...]


def problem_rows(
    split: str, problems: Iterable[Problem], becomes: Callable[[Problem], str] | None = None
) -> list[ProblemRow]:
    """Count the problems of a split by their kind.

    Args:
        split: Its name.
        problems: Its problems.
        becomes: What a build makes of one; default: of those that it has not refused.
    """
    kinds: dict[tuple[str, str], list[Problem]] = {}
    for problem in problems:
        fate = becomes(problem) if becomes else CLIPPED if problem.spoils == "edge" else LEFT_OUT
        kinds.setdefault((problem.group, fate), []).append(problem)
    return [
        ProblemRow(
            split,
            kind,
            fate,
            sum(problem.count for problem in same),
            tuple(f"{problem.file}: {problem.what}" for problem in same[:MOST_NAMED]),
        )
        for (kind, fate), same in kinds.items()
    ]


def left_out(training: CocoDataset, test: CocoDataset) -> list[ProblemRow]:
    """What of a build's data was left out or clipped; ``all`` if it was divided here."""
    both = "all" if training.json_path == test.json_path else "train"
    return problem_rows(both, training.problems) + problem_rows("test", test.problems)


def said_in_one_line(rows: Iterable[ProblemRow]) -> str:
    """For example ``2 x box of zero area left out (train)``, the most frequent first; empty if there is nothing."""
    ordered = sorted(rows, key=lambda row: -row.count)
    said = [f"{row.count} x {row.kind} {row.becomes} ({row.split})" for row in ordered[:MOST_SAID]]
    if more := ordered[MOST_SAID:]:
        said.append(f"and {sum(row.count for row in more)} of {len(more)} more kinds")
    return ", ".join(said)
