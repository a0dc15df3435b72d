"""Charts as inline SVG: bars with whiskers, columns before and after, curves.

Colours are classes, so that the page's style chooses them for light, dark and paper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from prunedeploy_engines.markup.html import Html, join, tag

MAX_POINTS = 500
"""Of a curve; longer ones are thinned so that the page stays small."""


@dataclass(frozen=True)
class Bar:
    """One bar.

    Attributes:
        label: To its left.
        tone: Class of its colour.
        value: Its length; None draws no bar.
        shown: The value as text; without a value, why there is none.
        low: Where the whisker starts; None: no whisker.
        high: Where the whisker ends.
    """

    label: str
    tone: str
    value: float | None
    shown: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Line:
    """One curve.

    Attributes:
        label: In the legend; empty: not in it.
        tone: Class of its colour.
        points: (x, y), x rising.
    """

    label: str
    tone: str
    points: Sequence[tuple[float, float]]


def ticks(top: float, wanted: int = 5) -> list[float]:
    """Round numbers from 0 to ``top`` or just above, about as many as wanted."""
    if not math.isfinite(top) or top <= 0:
        return [0.0, 1.0]
    raw = top / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * (1 - 1e-9))
    return [step * i for i in range(math.ceil(top / step - 1e-9) + 1)]


def bar_chart(groups: Sequence[tuple[str, Sequence[Bar]]], *, describe: str, unit: str = "") -> Html:
    """Draw horizontal bars in groups, all on one scale from 0.

    Args:
        groups: Heading and bars of each.
        describe: What is to be seen, for those who cannot see it.
        unit: Behind the numbers of the scale.
    """
    left, right, width, bar, heading = 84.0, 74.0, 480.0, 22.0, 24.0
    every = [one for _, bars in groups for one in bars]
    scale = ticks(max((max(one.value or 0, one.high or 0) for one in every), default=0))
    span = (width - left - right) / scale[-1]
    drawn, y = [], 4.0
    for name, bars in groups:
        drawn.append(tag("text", name, x=0.0, y=y + 15, cls="heading"))
        y += heading
        for one in bars:
            drawn.append(_bar(one, left, y, bar, span))
            y += bar
        y += 8
    grid = [
        join(
            tag("line", x1=left + span * t, x2=left + span * t, y1=4.0, y2=y, cls="grid"),
            tag(
                "text",
                f"{t:g}{unit if t == scale[-1] else ''}",
                x=left + span * t,
                y=y + 15,
                cls="tick middle",
            ),
        )
        for t in scale
    ]
    return _svg(width, y + 22, describe, join(*grid, *drawn))


def _bar(bar: Bar, left: float, y: float, height: float, span: float) -> Html:
    middle = y + height / 2
    label = tag("text", bar.label, x=left - 8, y=middle + 4.5, cls="label end")
    if bar.value is None:
        return join(label, tag("text", bar.shown, x=left + 6, y=middle + 4.5, cls="tick"))
    end = left + span * max(bar.value, 0)
    parts = [
        label,
        tag("rect", x=left, y=y + 3, width=max(end - left, 1.0), height=height - 6, rx=2.0, cls=bar.tone),
    ]
    if bar.low is not None and bar.high is not None:
        low, high = left + span * bar.low, left + span * bar.high
        path = (
            f"M{low:.1f} {middle - 4:.1f}v8M{high:.1f} {middle - 4:.1f}v8M{low:.1f} {middle:.1f}H{high:.1f}"
        )
        parts.append(tag("path", d=path, cls="whisker"))
        end = max(end, high)
    parts.append(tag("text", bar.shown, x=end + 7, y=middle + 4.5, cls="value"))
    return join(*parts)


def column_chart(
    columns: Sequence[tuple[str, float, float, str]], *, describe: str, axis: str, x_axis: str
) -> Html:
    """Draw one column per entry: what was before as an outline, what is left filled.

    Args:
        columns: Label, before, after, and what to say when pointed at.
        describe: What is to be seen, for those who cannot see it.
        axis: What the heights are.
        x_axis: What the labels are.
    """
    left, top, width, height = 52.0, 24.0, 960.0, 190.0
    scale = ticks(max((max(before, after) for _, before, after, _ in columns), default=0), 4)
    step = (width - left) / max(1, len(columns))
    gap = min(3.0, step * 0.2)
    base = top + height
    parts = [tag("text", axis, x=0.0, y=12.0, cls="tick")]
    for t in scale:
        y = base - height * t / scale[-1]
        parts.append(tag("line", x1=left, x2=width, y1=y, y2=y, cls="grid"))
        parts.append(tag("text", f"{t:g}", x=left - 8, y=y + 4, cls="tick end"))
    every = max(1, math.ceil(len(columns) * 30 / (width - left)))
    for i, (label, before, after, hint) in enumerate(columns):
        x, wide = left + step * i + gap / 2, step - gap
        tall, rest = height * before / scale[-1], height * after / scale[-1]
        column = join(
            tag("title", hint),
            tag("rect", x=x, y=base - tall, width=wide, height=tall, cls="before"),
            tag("rect", x=x, y=base - rest, width=wide, height=rest, cls="after"),
        )
        parts.append(tag("g", column))
        if i % every == 0:
            parts.append(tag("text", label, x=x + wide / 2, y=base + 15, cls="tick middle"))
    parts.append(tag("text", x_axis, x=width, y=base + 31, cls="tick end"))
    return _svg(width, base + 36, describe, join(*parts))


def line_chart(lines: Sequence[Line], *, describe: str, top: float, x_axis: str) -> Html:
    """Draw curves over a common x, y from 0; what is above the top runs along the upper edge.

    Args:
        lines: The first is drawn first, so the last is on top.
        describe: What is to be seen, for those who cannot see it.
        top: Largest y that has to be seen.
        x_axis: What x is.
    """
    left, upper, width, height = 52.0, 8.0, 480.0, 170.0
    scale = ticks(top, 4)
    xs = [x for line in lines for x, _ in line.points]
    first, last = min(xs, default=0.0), max(xs, default=1.0)
    last = last if last > first else first + 1
    base = upper + height

    def at(x: float, y: float) -> str:
        across = left + (width - left - 6) * (x - first) / (last - first)
        return f"{across:.1f} {base - height * min(max(y / scale[-1], 0), 1):.1f}"

    parts = []
    for t in scale:
        y = base - height * t / scale[-1]
        parts.append(tag("line", x1=left, x2=width, y1=y, y2=y, cls="grid"))
        parts.append(tag("text", f"{t:g}", x=left - 8, y=y + 4, cls="tick end"))
    parts += [
        tag("text", f"{first:g}", x=left, y=base + 16, cls="tick"),
        tag("text", f"{x_axis} {last:g}", x=width, y=base + 16, cls="tick end"),
    ]
    for line in lines:
        if line.points:
            path = "M" + "L".join(at(x, y) for x, y in line.points)
            parts.append(tag("path", d=path, cls=f"curve {line.tone}"))
    return _svg(width, base + 22, describe, join(*parts))


def legend(entries: Sequence[tuple[str, str]]) -> Html:
    """Name the colours: (label, tone) of each."""
    return tag(
        "p",
        *(join(tag("span", tag("i", cls=f"key {tone}"), label), " ") for label, tone in entries),
        cls="legend",
    )


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


def thinned(points: Sequence[tuple[float, float]], most: int = MAX_POINTS) -> list[tuple[float, float]]:
    """At most so many points: both ends, and of each stretch lowest and highest, so no spike is lost."""
    if len(points) <= most:
        return list(points)
    stretch = math.ceil((len(points) - 2) / (most // 2 - 1))
    kept = [points[0]]
    for start in range(1, len(points) - 1, stretch):
        part = points[start : min(start + stretch, len(points) - 1)]
        kept += sorted({min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])})
    return [*kept, points[-1]]


def _svg(width: float, height: float, describe: str, content: Html) -> Html:
    return tag("svg", content, viewBox=f"0 0 {width:g} {height:g}", role="img", aria_label=describe)
