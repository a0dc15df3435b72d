"""What the report says of a search for the ratio: the target, every ratio that was tried, which one was chosen."""

from __future__ import annotations

from typing import cast

from prunedeploy.config.ratio_target import NAMES, Measure, RatioTarget
from prunedeploy.report.format import dash, look_up, mapping, number, rows_of
from prunedeploy.report.tables import noisy_flag
from prunedeploy.report.words import Results
from prunedeploy_engines.markup.html import Html, Node, join, tag
from prunedeploy_engines.markup.page import table


def search_section(results: Results) -> Html | None:
    """The section about the search; None for a build of a ratio that was given."""
    search = mapping(results.get("search"))
    measure, wanted = look_up(search, "target", "measure"), number(look_up(search, "target", "value"))
    if not isinstance(measure, str) or measure not in NAMES or wanted is None:
        return None
    target = RatioTarget(cast(Measure, measure), wanted)
    rejected = [{**row, "trained": True} for row in rows_of(search.get("rejected"))]
    tried = [row for row in (*rows_of(search.get("tried")), *rejected) if number(row.get("ratio")) is not None]
    rows: list[list[Node]] = []
    for row in sorted(tried, key=lambda row: (row["ratio"], "trained" in row)):
        chosen, ratio = row["ratio"] == search.get("chosen"), f"{row['ratio']:g}"
        value = number(row.get("value"))
        found = dash(str(row.get("reason") or "no network")) if value is None else target.show_number(value)
        what = "once trained" if "trained" in row else "chosen" if chosen else ""
        meets = "yes" if row.get("meets") else "no"
        rows.append([tag("b", ratio) if chosen else ratio, join(found, noisy_flag(row)), meets, what])
    return join(
        tag("p", f"{target.option} asked for {target.aim}. Every ratio that was tried:"),
        table(["ratio", NAMES[target.measure], "meets it", "note"], rows, numbers=(0, 1)),
        _final(target, search.get("final")),
    )


def _final(target: RatioTarget, final: object) -> Html | None:
    value = number(look_up(final, "value"))
    if value is None:
        return None
    verdict = "meets" if target.is_met_by(value) else "misses"
    noise = noisy_flag(mapping(final))
    return tag("p", f"The finished network, measured with all others, {verdict} it: {target.show(value)}", noise)
