"""The report's bars: mAP and latency of every network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prunedeploy.report.format import interval, look_up, map_text, mapping, number, rows_of, three_digits
from prunedeploy.report.words import Results, runtime_name, runtimes_of, why_not_measured
from prunedeploy_engines.markup.html import Html, Node, tag
from prunedeploy_engines.markup.scales import Axis, scale_end
from prunedeploy_engines.markup.svg import INK, Bar, Drawing

ROWS = ("original", "robust", "pruned")
"""Names of networks that have a colour of their own."""


def map_chart(results: Results) -> Html | None:
    """MAP clean and under PGD of every network, with whiskers; None without any."""
    groups = []
    for model in rows_of(results.get("models")):
        bars = []
        for key, label, colour in (("map_clean", "clean", "clean"), ("map_pgd", "PGD", "pgd")):
            value = number(model.get(key))
            shown = "not measured" if value is None else map_text(value)
            bars.append(Bar(label, value, shown, colour, interval(look_up(model, "intervals", key)) or ()))
        groups.append((_name(model), bars))
    chart = _bars(groups, "mAP on clean images and under PGD, a pair of bars for each network")
    caption = "Whiskers are bootstrap intervals over test images. Longer is better."
    return None if chart is None else figure("mAP, IoU .50 to .95", chart, caption)


def latency_chart(results: Results) -> Html | None:
    """Median latency of every network on every runtime; None without any."""
    groups = []
    caption = ["Bars end at the median, whiskers at the 99th percentile. Shorter is better."]
    for runtime in runtimes_of(results):
        bars = []
        for model in rows_of(results.get("models")):
            summary, name = mapping(look_up(model, "latency_ms", runtime)), _name(model)
            median, late = number(summary.get("p50")), number(summary.get("p99"))
            shown = "not measured" if median is None else f"{three_digits(median)} ms"
            whisker = () if median is None or late is None else (median, late)
            bars.append(Bar(name, median, shown, name if name in ROWS else "other1", whisker))
        if any(bar.value is not None for bar in bars):
            groups.append((runtime_name(runtime), bars))
        else:
            caption.append(f"{runtime_name(runtime)}: {why_not_measured(results, runtime)}.")
    chart = _bars(groups, "Median latency of each network, by runtime", " ms")
    return None if chart is None else figure("Latency", chart, " ".join(caption))


def figure(title: Node, chart: Node, caption: str) -> Html:
    """A chart on a card, with what it shows."""
    return tag("figure", tag("h3", title), chart, tag("figcaption", caption), cls="card")


def _name(model: Mapping[str, Any]) -> str:
    return str(model.get("name") or "unnamed")


def _bars(groups: Sequence[tuple[str, Sequence[Bar]]], describe: str, unit: str = "") -> Html | None:
    """Bars below the heading of their group, all on one scale from 0; None if there is none."""
    width, bar, heading, gap = 480.0, 22.0, 24.0, 8.0
    every = [one for _, bars in groups for one in bars]
    if all(one.value is None for one in every):
        return None
    top = max(end for one in every for end in (one.value or 0, *one.whisker))
    axis = Axis(0.0, scale_end(top, 5), 84.0, width - 74)
    drawing = Drawing(on_page=True)
    bottom = 4 + len(every) * bar + len(groups) * (heading + gap)
    drawing.x_scale(axis, 4.0, bottom, unit=unit)
    y = 4.0
    for name, bars in groups:
        drawing.text(0, y + 15, name, size=13, colour=INK, bold=True)
        y += heading
        for one in bars:
            drawing.bar(axis, y + bar / 2, one)
            y += bar
        y += gap
    return drawing.to_svg(width, bottom + 22, describe)
