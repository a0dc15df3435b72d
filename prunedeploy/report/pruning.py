"""What the report says about the cut: how weights were scored, what went, and which filters were dead after it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from prunedeploy.report.format import (
    count,
    fixed,
    look_up,
    mapping,
    number,
    percent,
    plain,
    rows_of,
    scaled,
    small,
)
from prunedeploy.report.tables import values_list
from prunedeploy.report.words import Results, dead_filters, quotient
from prunedeploy_engines.markup.html import Html, Node, join, tag
from prunedeploy_engines.markup.page import details, note, table
from prunedeploy_engines.markup.scales import Axis, scale_end
from prunedeploy_engines.markup.svg import Drawing, Key

SCORE_NAMES = {"name": "scores", "seconds": "time", "normalise": "layers on a common scale"}
SAID_ELSEWHERE = ("summation_to_delta", "seconds", "skipped", "seed", "threads", "device", "greyscale", "batch_size")
NO_SHARE = "nothing was there to lose"

Layers = Sequence[Mapping[str, Any]]
Kind = Literal["filters", "weights"]


def pruning_section(results: Results) -> Html:
    """The section about the cut."""
    pruning = mapping(results.get("pruning"))
    settings = {
        key: value for key, value in pruning.items() if value is not None and not isinstance(value, (list, Mapping))
    }
    allocation = look_up(results, "configuration", "allocation")
    if settings and results.get("method") != "nm" and allocation is not None:
        # Where every layer loses the same share, the record says nothing of it.
        settings.setdefault("allocation", allocation)
    scores = mapping(results.get("score_report"))
    return join(
        tag("div", _card("The cut", values_list(settings)), _scores_card(scores), cls="cards"),
        _layers(results),
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
    return note(
        "Summation to delta: contributions ought to add up to what they explain. They miss it by ",
        small(summation.get("worst_layer")),
        " at the worst layer and by ",
        small(summation.get("target")),
        " of the target's difference between image and reference.",
    )


def _layers(results: Results) -> Html:
    """What is left of every convolution: filters, weights, or after a hybrid cut both."""
    layers = [row for row in rows_of(look_up(results, "pruning", "layers")) if "layer" in row]
    if not layers:
        return note("Nothing is known about single layers.")
    narrower = any(row.get("filters_before") != row.get("filters_after") for row in layers)
    weighed = any(row.get("weights_before") is not None for row in layers)
    kinds: list[Kind] = ["filters"] if narrower or not weighed else []
    if weighed and (not narrower or results.get("method") == "hybrid"):
        kinds.append("weights")
    return join(*(_layers_chart(layers, kind) for kind in kinds), _layers_table(layers))


def _layers_chart(layers: Layers, what: Kind, names: tuple[str, str] = ("before", "after pruning")) -> Html:
    """A column for each convolution: its filters, or the share of its weights, before and after."""
    columns = [_column(row, what) for row in layers]
    left, right, base = 52.0, 960.0, 214.0
    heights = Axis(0.0, scale_end(max(max(before, after) for _, before, after, _ in columns), 4), base, 24.0)
    title = "filters" if what == "filters" else "weights kept, %"
    drawing = Drawing(on_page=True)
    drawing.text(0, 12, title)
    drawing.y_scale(heights, left, right)
    step = (right - left) / len(columns)
    gap = min(3.0, step * 0.2)
    labelled = math.ceil(30 / step)  # every so many
    for i, (label, before, after, hint) in enumerate(columns):
        x = left + step * i + gap / 2
        for value, colour in ((before, "before"), (after, "pruned")):
            drawing.rect(x, heights.at(value), step - gap, base - heights.at(value), colour, hint=hint)
        if i % labelled == 0:
            drawing.text(x + (step - gap) / 2, base + 15, label, anchor="middle")
    drawing.text(right, base + 33, "layer of the cfg", anchor="end")
    keys = [Key(name, colour) for name, colour in zip(names, ("before", "pruned"), strict=True)]
    drawing.legend(keys, left, base + 33, right - 120)
    chart = drawing.to_svg(right, base + 40, f"Each convolution, {names[0]} and {names[1]}: {title}")
    return tag("div", chart, cls="scroll columns", tabindex="0")


def _column(row: Mapping[str, Any], what: Kind) -> tuple[str, float, float, str]:
    """Label, height before, height after, and what to say when pointed at."""
    name = "?" if row.get("layer") is None else str(row["layer"])
    before, after = number(row.get(f"{what}_before")), number(row.get(f"{what}_after"))
    if before is None or after is None:
        return name, 0.0, 0.0, f"layer {name}: not known"
    hint = f"layer {name}: {after:,.0f} of {before:,.0f} {what}"
    if what == "filters":
        return name, before, after, hint
    return name, 100.0, 100 * after / before if before else 0.0, hint


def _layers_table(layers: Layers) -> Html:
    rows = []
    for row in layers:
        counted = "" if row.get("counted") is not False else " (not prunable)"
        keys = ("filters_before", "filters_after", "weights_before", "weights_after")
        share = percent(quotient(row.get("weights_after"), row.get("weights_before")))
        rows.append([join(plain(row["layer"]), counted), *(count(row.get(key)) for key in keys), share])
    head = ["Layer", "Filters before", "after", "Weights before", "after", "kept"]
    return details("All layers as a table", table(head, rows, numbers=range(6)))


def _dead_channels(record: Mapping[str, Any]) -> Html | None:
    """What `remove_dead_channels` removed and what that saves; nothing where it was not asked."""
    if not record:
        return None
    heading = tag("h3", "Dead channels")
    if not number(record.get("filters_removed")):
        return join(heading, note("No filter was dead: zeros have left each with something to do."))
    words = [dead_filters(record)]
    if carriers := number(record.get("carriers")):
        words.append(
            f"{carriers:,.0f} that compute a constant were kept: they carry, for a padded convolution, what constants "
            "contribute inside but not at the border."
        )
    if idle := number(record.get("idle")):
        words.append(
            f"{idle:,.0f} that do nothing were kept, so that no layer is empty and widths are multiples of "
            f"{number(record.get('multiple')) or 1:.0f}, with which runtimes are fast."
        )
    saved = []
    for name, key in (("MACs per image", "macs"), ("parameters", "params")):
        before, after = record.get(f"{key}_before"), record.get(f"{key}_after")
        kept = quotient(after, before)
        saved.append([name, scaled(before), scaled(after), percent(None if kept is None else 1 - kept, why=NO_SHARE)])
    layers = rows_of(record.get("layers"))
    return join(
        heading,
        note(" ".join(words)),
        table(["", "with them", "without", "saved"], saved, numbers=(1, 2, 3)),
        _layers_chart(layers, "filters", ("with dead channels", "without")) if layers else None,
        note(
            "Measured: the heads with and without them differ by at most ",
            small(record.get("deviation")),
            " of the largest value, over random pixels, white, and a frame around black, at the borders too.",
        ),
        _dead_layers(layers),
    )


def _dead_layers(layers: Layers) -> Html:
    """Convolutions that lost filters."""
    keys = ("filters_before", "filters_after", "constant", "unread", "carriers", "idle")
    rows = [
        [plain(row.get("layer")), *(count(row.get(key)) for key in keys)]
        for row in layers
        if row.get("filters_before") != row.get("filters_after") or row.get("carriers") or row.get("idle")
    ]
    head = ["Layer", "Filters before", "after", "constant", "unread", "kept as carriers", "kept idle"]
    return details("Dead channels by layer", table(head, rows, numbers=range(7)))
