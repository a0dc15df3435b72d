"""What the report says about the cut: how weights were scored, what went, and which filters were dead after it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunedeploy.report.charts import column_chart, legend
from prunedeploy.report.figures import pruning_figure
from prunedeploy.report.format import count, fixed, look_up, mapping, number, percent, plain, rows_of, scaled
from prunedeploy.report.tables import cell, table, values_list
from prunedeploy.report.words import Results, dead_filters, quotient
from prunedeploy_engines.markup.html import Html, Node, join, tag

SCORE_NAMES = {"name": "scores", "seconds": "time", "normalise": "layers on a common scale"}
SAID_ELSEWHERE = ("summation_to_delta", "seconds", "skipped", "seed", "threads", "device", "greyscale", "batch_size")
NO_SHARE = "nothing was there to lose"


def pruning_section(results: Results) -> Html:
    """The section about the cut."""
    pruning = mapping(results.get("pruning"))
    settings = {
        key: value
        for key, value in pruning.items()
        if value is not None and not isinstance(value, (list, Mapping))
    }
    if settings and results.get("method") != "nm":
        # Where every layer loses the same share, the record says nothing of it.
        default = look_up(results, "configuration", "allocation")
        settings.setdefault("allocation", default)
        if settings["allocation"] is None:
            del settings["allocation"]
    scores = mapping(results.get("score_report"))
    return join(
        tag("div", _card("The cut", values_list(settings)), _scores_card(scores), cls="cards"),
        pruning_figure(results),
        _dead_channels(mapping(results.get("dead_channels"))),
    )


def _card(title: str, *content: Node) -> Html:
    return tag("div", tag("h3", title), *content, cls="card")


def _scores_card(scores: Mapping[str, Any]) -> Html | None:
    """The settings of the scores, what they took, and whether DeepLIFT's contributions add up."""
    if not scores:
        return None
    shown = {key: value for key, value in scores.items() if key not in SAID_ELSEWHERE and value is not None}
    if number(scores.get("seconds")) is not None:
        shown["seconds"] = f"{fixed(scores['seconds'], 2)} s"
    if skipped := scores.get("skipped"):
        shown["images not readable"] = len(skipped)
    return _card("The scores", values_list(shown, SCORE_NAMES), _summation(mapping(scores.get("summation_to_delta"))))


def _summation(summation: Mapping[str, Any]) -> Html | None:
    """Summation-to-delta, as far as it was measured."""
    if not summation:
        return None
    of_layer, of_target = number(summation.get("worst_layer")), number(summation.get("target"))
    return tag(
        "p",
        "Summation to delta: contributions ought to add up to what they explain. They miss it by ",
        _error(of_layer),
        " at the worst layer and by ",
        _error(of_target),
        " of the target's difference between image and reference.",
        cls="note",
    )


def _error(value: float | None) -> Html:
    if value is None:
        return plain(None)
    return tag("span", "0" if value == 0 else f"{value:.1e}", cls="whole")


def _dead_channels(record: Mapping[str, Any]) -> Html | None:
    """What `remove_dead_channels` removed and what that saves; nothing where it was not asked."""
    if not record:
        return None
    heading = tag("h3", "Dead channels")
    if not number(record.get("filters_removed")):
        return join(heading, tag("p", "No filter was dead: zeros have left something to do for each.", cls="note"))
    carriers = number(record.get("carriers"))
    carried: Node = None
    if carriers:
        carried = (
            f" {carriers:,.0f} that compute a constant were kept: they carry, for a padded convolution, what "
            "constants contribute inside but not at the border."
        )
    idle, multiple = number(record.get("idle")), number(record.get("multiple"))
    rest: Node = None
    if idle:
        rest = (
            f" {idle:,.0f} that do nothing were kept, so that no layer is empty and widths are multiples of "
            f"{multiple or 1:.0f}, with which runtimes are fast."
        )
    words = tag("p", dead_filters(record), carried, rest, cls="note")
    saved = []
    for name, key in (("MACs per image", "macs"), ("parameters", "params")):
        before, after = record.get(f"{key}_before"), record.get(f"{key}_after")
        kept = quotient(after, before)
        cells = [scaled(before), scaled(after), percent(None if kept is None else 1 - kept, why=NO_SHARE)]
        saved.append(tag("tr", tag("td", name), *(cell(one) for one in cells)))
    totals = table(["", "with them", "without", "saved"], saved, numbers=(1, 2, 3))
    measured = tag(
        "p",
        "Measured: the heads with and without them differ by at most ",
        _error(number(record.get("deviation"))),
        " of the largest value, over random pixels, white, and a frame around black, at the borders too.",
        cls="note",
    )
    return join(heading, words, totals, _filters_chart(record), measured, _dead_layers(record))


def _filters_chart(record: Mapping[str, Any]) -> Html | None:
    """Filters of every convolution with dead channels and without."""
    columns = []
    for row in rows_of(record.get("layers")):
        before, after = number(row.get("filters_before")), number(row.get("filters_after"))
        if before is not None and after is not None:
            hint = f"layer {row.get('layer')}: {after:,.0f} of {before:,.0f} filters"
            columns.append((str(row.get("layer")), before, after, hint))
    if not columns:
        return None
    chart = column_chart(
        columns, describe="Filters of each convolution", axis="filters", x_axis="layer of the cfg"
    )
    names = [("with dead channels", "before"), ("without", "after")]
    return join(tag("div", chart, cls="scroll columns", tabindex="0"), legend(names))


def _dead_layers(record: Mapping[str, Any]) -> Html:
    """Convolutions that lost filters."""
    rows = []
    keys = ("filters_before", "filters_after", "constant", "unread", "carriers", "idle")
    for row in rows_of(record.get("layers")):
        if row.get("filters_before") != row.get("filters_after") or row.get("carriers") or row.get("idle"):
            cells = [plain(row.get("layer")), *(count(row.get(key)) for key in keys)]
            rows.append(tag("tr", *(cell(one) for one in cells)))
    head = ["Layer", "Filters before", "after", "constant", "unread", "kept as carriers", "kept idle"]
    return tag("details", tag("summary", "Dead channels by layer"), table(head, rows, numbers=range(7)))
