"""The report's training curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from prunedeploy.report.figures import figure
from prunedeploy.report.format import number, three_digits
from prunedeploy_engines.markup.html import Html, join, tag
from prunedeploy_engines.markup.page import note
from prunedeploy_engines.markup.scales import Axis, scale_end
from prunedeploy_engines.markup.svg import Drawing, Key

NOT_TERMS = frozenset({"stage", "step", "lr", "grad_norm", "loss"})
LOSS, TERMS = "robust", ("pgd", "pruned", "other1", "other2")
"""Colours of the loss and of its terms."""
MAX_POINTS = 500
"""Points of a curve; longer ones are thinned so that the page stays small."""

Points = Sequence[tuple[float, float]]


def curves(log_rows: Sequence[Mapping[str, Any]]) -> Html:
    """One figure per training stage: the loss raw and smoothed, and its terms smoothed."""
    stages: dict[str, list[Mapping[str, Any]]] = {}
    for row in log_rows:
        if isinstance(row, Mapping):
            stages.setdefault(str(row.get("stage") or "training"), []).append(row)
    figures = [_stage(name, rows, loss) for name, rows in stages.items() if (loss := _series(rows, "loss"))]
    return tag("div", *figures, cls="grid") if figures else note("Nothing was trained in this build: its log is empty.")


def _stage(stage: str, rows: Sequence[Mapping[str, Any]], loss: Points) -> Html:
    window = max(1, len(loss) // 40)
    names = dict.fromkeys(key for row in rows for key in row if key not in NOT_TERMS)
    terms = {name: points for name in names if (points := _series(rows, name))}
    curves = [
        (name, colour, _smooth(points, window)) for (name, points), colour in zip(terms.items(), TERMS, strict=False)
    ]
    soft = _smooth(loss, window)
    ordered = sorted(value for _, value in loss)
    top = max(ordered[int(0.98 * (len(ordered) - 1))], max(value for _, value in soft[len(soft) // 10 :]))
    above = sum(value > top for value in ordered)
    chart = _chart(f"Loss of {stage} over its steps", top, loss, [*curves, ("loss", LOSS, soft)])
    caption = f"Loss {three_digits(soft[0][1])} to {three_digits(soft[-1][1])}"
    caption += f", smoothed over {window} steps" if window > 1 else ", not smoothed"
    if rates := _series(rows, "lr"):
        caption += f"; learning rate at most {max(rate for _, rate in rates):.3g}, {rates[-1][1]:.3g} at the end"
    if above:
        caption += f"; the scale ends below {above} of {len(loss)} values, the highest {three_digits(ordered[-1])}"
    return figure(join(f"{stage} ", tag("small", f"{len(loss):,} steps")), chart, f"{caption}.")


def _chart(describe: str, top: float, loss: Points, curves: Sequence[tuple[str, str, Points]]) -> Html:
    """The raw loss and curves by name and colour, the last on top; what is above the top runs along the upper edge."""
    left, right, base = 52.0, 480.0, 178.0
    steps = [step for points in (loss, *(points for *_, points in curves)) for step, _ in points]
    first, last = min(steps), max(steps)
    x_axis = Axis(first, max(last, first + 1), left, right - 6)
    y_axis = Axis(0.0, scale_end(top, 4), base, 8.0)
    drawing = Drawing(on_page=True)
    drawing.y_scale(y_axis, left, right)
    drawing.text(left, base + 16, f"{first:g}")
    drawing.text(right, base + 16, f"step {last:g}", anchor="end")

    def draw(points: Points, colour: str, width: float, opacity: float) -> None:
        pixels = (f"{x_axis.at(step):.1f} {y_axis.at(value):.1f}" for step, value in thinned(points))
        drawing.path(f"M{'L'.join(pixels)}", stroke=colour, width=width, opacity=opacity)

    draw(loss, LOSS, 1.0, 0.3)
    for _, colour, points in curves:
        draw(points, colour, 1.8, 1.0)
    keys = [Key(name, colour) for name, colour, _ in (curves[-1], *curves[:-1])]
    bottom = drawing.legend(keys, left, base + 38, right)
    return drawing.to_svg(right, bottom - 12, describe)


def _series(rows: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """(step, value), rising; a step logged twice counts once, the last time."""
    points = {}
    for position, row in enumerate(rows):
        value, step = number(row.get(key)), number(row.get("step"))
        if value is not None:
            points[float(position) if step is None else step] = value
    return sorted(points.items())


def _smooth(points: Points, window: int) -> list[tuple[float, float]]:
    soft = smoothed([value for _, value in points], window)
    return [(step, value) for (step, _), value in zip(points, soft, strict=True)]


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """Exponential moving average over about ``window`` values, without the start's bias.

    Reference: Kingma and Ba, Adam, 2015, section 3 (bias correction).
    """
    keep = 1 - 1 / max(1, window)
    average, weight, result = 0.0, 0.0, []
    for value in values:
        average = keep * average + (1 - keep) * value
        weight = keep * weight + (1 - keep)
        result.append(average / weight)
    return result


def thinned(points: Points, most: int = MAX_POINTS) -> list[tuple[float, float]]:
    """At most this many points: both ends, and of each stretch lowest and highest, so no spike is lost."""
    if len(points) <= most:
        return list(points)
    stretch = math.ceil((len(points) - 2) / (most // 2 - 1))
    kept = [points[0]]
    for start in range(1, len(points) - 1, stretch):
        part = points[start : min(start + stretch, len(points) - 1)]
        kept += sorted({min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])})
    return [*kept, points[-1]]
