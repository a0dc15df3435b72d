"""The picture of latencies: per row a bar to the median with p90 and p99, and the shape of all its samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prunedeploy_engines.bench.document import Row
from prunedeploy_engines.bench.pictures.row_names import common_settings, palette_of, row_labels
from prunedeploy_engines.markup.scales import Axis, number_text
from prunedeploy_engines.markup.svg import INK, SOFT, Bar, Drawing, Key, shortened, text_width

WIDTH = 1000.0

_ROW, _HEADING, _TOP = 24.0, 26.0, 74.0
_LABELS_AT_MOST = 270.0
_COLUMN = 56.0  # of numbers
_BEYOND = 66.0  # for what is said of samples beyond the scale
_SMOOTHING = 2.5  # pixels


def latency_picture(rows: Sequence[Row], title: str = "Latency") -> str:
    """Draw measured rows, grouped by model in the order of the table.

    On the left bars from 0 to the median, with a whisker to p90 and p99. On the right every sample of a row over
    its own median, as a smoothed density; samples beyond the scale are counted at its end.

    Args:
        rows: With ``samples_ms`` and ``latency_ms``; at least one.
        title: Above it.

    Returns:
        An SVG file's text.
    """
    drawing = Drawing()
    labels = row_labels(rows)
    models = list(dict.fromkeys(str(row["model"]) for row in rows))
    headings = any(labels)
    texts = labels if headings else [str(row["model"]) for row in rows]
    widest = max(text_width(text) for text in texts) + 40
    left = min(widest, _LABELS_AT_MOST)
    right = WIDTH - 16 - 2 * _COLUMN
    bars = Axis(0.0, _top_of_bars(rows), left + 8, left + 8 + (right - left) * 0.52)
    shapes = Axis(*_shape_range(rows), bars.end + 76, right - _BEYOND)
    palette = palette_of(rows)
    bottom = _TOP + len(rows) * _ROW + (len(models) * _HEADING if headings else 6)
    drawing.x_scale(bars, _TOP, bottom)
    drawing.x_scale(shapes, _TOP, bottom, wanted=4, unit="×")
    drawing.line(bars.start, _TOP, bars.start, bottom, SOFT)
    drawing.text(bars.start, _TOP - 10, "median, ms")
    drawing.text(shapes.start, _TOP - 10, "all samples, over the row's median")
    drawing.text(16, 26, title, size=17, colour=INK, bold=True)
    drawing.text(16, 45, shortened(common_settings(rows), WIDTH - 32), size=12)
    for number, name in enumerate(("p90", "p99")):
        drawing.text(right + (number + 1) * _COLUMN, _TOP - 10, f"{name} ms", anchor="end")
    y = _TOP
    for model in models:
        if headings:
            drawing.text(16, y + 18, shortened(model, WIDTH * 0.5, 13), size=13, colour=INK, bold=True)
            y += _HEADING
        for row, text in zip(rows, texts, strict=True):
            if str(row["model"]) == model:
                _row(drawing, row, text, y + _ROW / 2, bars, shapes, palette.colour(row), right)
                y += _ROW
    y = bottom + 46
    if len(palette.colours) > 1:
        y = drawing.legend([Key(name, colour) for name, colour in palette.colours.items()], 16.0, y, WIDTH - 16)
    words = [
        "bar: median; ticks on the line: p90 and p99, an arrow where that is beyond the scale; "
        "+n to x×: n samples are beyond the scale, x is the largest"
    ]
    if any(row["latency_ms"].get("noisy") for row in rows):
        words.append("*: noisy, the coefficient of variation is above 0.1")
    for line in words:
        drawing.text(16, y, line, size=11)
        y += 18
    return drawing.to_svg(WIDTH, y, f"{title}: median, p90 and p99 of {len(rows)} rows, and their samples")


def _top_of_bars(rows: Sequence[Row]) -> float:
    """The end of the bars' scale: every p99 fits, unless a tail would squeeze all bars into a corner."""
    medians = max(float(row["latency_ms"]["p50"]) for row in rows)
    return min(max(float(row["latency_ms"]["p99"]) for row in rows), 2.5 * medians) * 1.02


def _shape_range(rows: Sequence[Row]) -> tuple[float, float]:
    """The scale of the shapes, in medians: most samples of most rows, so that one long tail does not hide the rest."""
    ratios = [np.asarray(row["samples_ms"]) / row["latency_ms"]["p50"] for row in rows]
    low = float(np.quantile([np.quantile(ratio, 0.01) for ratio in ratios], 0.2))
    high = float(np.quantile([np.quantile(ratio, 0.97) for ratio in ratios], 0.8))
    return min(max(low - 0.04, 0.3), 0.92), min(max(high + 0.04, 1.15), 2.5)


def _row(drawing: Drawing, row: Row, label: str, y: float, bars: Axis, shapes: Axis, colour: str, right: float) -> None:
    latency = row["latency_ms"]
    name = f"{shortened(label, bars.start - 36)}{' *' if latency.get('noisy') else ''}"
    median, *late = (float(latency[key]) for key in ("p50", "p90", "p99"))
    drawing.bar(bars, y, Bar(name, median, number_text(median), colour, (median, *late)))
    _shape(drawing, row, y, shapes, colour)
    for number, value in enumerate(late):
        drawing.text(right + (number + 1) * _COLUMN, y + 4, number_text(value), anchor="end", colour=INK)


def _shape(drawing: Drawing, row: Row, y: float, axis: Axis, colour: str) -> None:
    """Samples over their median as a density, mirrored; what is beyond the scale is counted."""
    ratios = np.asarray(row["samples_ms"], np.float64) / row["latency_ms"]["p50"]
    inside = ratios[(ratios >= axis.first) & (ratios <= axis.last)]
    pixels = axis.start + (inside - axis.first) / (axis.last - axis.first) * (axis.end - axis.start)
    edges = np.arange(axis.start, axis.end + 1.0)
    counts, _ = np.histogram(pixels, edges)
    reach = np.arange(-8, 9)
    kernel = np.exp(-0.5 * (reach / _SMOOTHING) ** 2)
    density = np.convolve(counts, kernel / kernel.sum(), mode="same")
    heights = 9.5 * density / max(float(density.max()), 1e-12)
    shown = np.flatnonzero(heights > 0.05)
    if len(shown):
        run = range(shown[0], shown[-1] + 1)
        upper = [f"{edges[i] + 0.5:.1f} {y - heights[i]:.2f}" for i in run]
        lower = [f"{edges[i] + 0.5:.1f} {y + heights[i]:.2f}" for i in reversed(run)]
        drawing.path(f"M{'L'.join([*upper, *lower])}z", fill=colour, stroke=colour, width=0.8, opacity=0.75)
    median = axis.at(1.0)
    drawing.line(median, y - 10, median, y + 10, INK, 1.2)
    beyond = ratios[ratios > axis.last]
    if len(beyond):
        text = f"+{len(beyond)} to {beyond.max():.1f}×"
        drawing.text(axis.end + 4, y + 4, text, size=10.5)
