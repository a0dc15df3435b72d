"""The report's charts and pictures, from results, log rows and gallery."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prunedeploy.report.charts import (
    Bar,
    Line,
    bar_chart,
    column_chart,
    legend,
    line_chart,
    smoothed,
    thinned,
)
from prunedeploy.report.format import (
    count,
    interval,
    look_up,
    map_text,
    mapping,
    number,
    percent,
    plain,
    rows_of,
    three_digits,
)
from prunedeploy.report.tables import cell, table
from prunedeploy.report.words import Results, runtime_name, runtimes_of, why_not_measured
from prunedeploy_engines.markup.html import Html, Node, join, tag

ROWS = ("original", "robust", "pruned")
NOT_TERMS = frozenset({"stage", "step", "lr", "grad_norm", "loss"})
TERM_TONES = ("term1", "term2", "term3", "term4")
LARGE_PICTURE = 64_000
"""Bytes; larger PNGs are embedded as JPEG, or a report of noisy photos would weigh tens of megabytes."""


def map_chart(results: Results) -> Html | None:
    """MAP clean and under PGD of every network, with whiskers; None without any."""
    groups = []
    for model in rows_of(results.get("models")):
        bars = []
        for key, label in (("map_clean", "clean"), ("map_pgd", "PGD")):
            value = number(model.get(key))
            low, high = interval(look_up(model, "intervals", key)) or (None, None)
            shown = "not measured" if value is None else map_text(value)
            bars.append(Bar(label, "clean" if label == "clean" else "pgd", value, shown, low, high))
        groups.append((str(model.get("name") or "unnamed"), bars))
    if not any(bar.value is not None for _, bars in groups for bar in bars):
        return None
    chart = bar_chart(groups, describe="mAP on clean images and under PGD, a pair of bars for each network")
    caption = "Whiskers are bootstrap intervals over test images. Longer is better."
    return _figure("mAP, IoU .50 to .95", chart, caption)


def latency_chart(results: Results) -> Html | None:
    """Median latency of every network on every runtime; None without any."""
    groups = []
    for runtime in runtimes_of(results):
        bars = []
        for model in rows_of(results.get("models")):
            summary = mapping(look_up(model, "latency_ms", runtime))
            median, late = number(summary.get("p50")), number(summary.get("p99"))
            name = str(model.get("name") or "unnamed")
            shown = "not measured" if median is None else f"{three_digits(median)} ms"
            whisker = (median, late) if late is not None else (None, None)
            bars.append(Bar(name, name if name in ROWS else "other", median, shown, *whisker))
        if any(bar.value is not None for bar in bars):
            groups.append((runtime_name(runtime), bars))
    if not groups:
        return None
    missing = [runtime for runtime in runtimes_of(results) if runtime_name(runtime) not in dict(groups)]
    caption = ["Bars end at the median, whiskers at the 99th percentile. Shorter is better."]
    caption += [f"{runtime_name(runtime)}: {why_not_measured(results, runtime)}." for runtime in missing]
    chart = bar_chart(groups, describe="Median latency of each network, by runtime", unit=" ms")
    return _figure("Latency", chart, " ".join(caption))


def pruning_figure(results: Results) -> Html:
    """What is left of every convolution."""
    layers = [row for row in rows_of(look_up(results, "pruning", "layers")) if "layer" in row]
    if not layers:
        return tag("p", "Nothing is known about single layers.", cls="note")
    by_filters = any(row.get("filters_before") != row.get("filters_after") for row in layers)
    by_weights = not by_filters and any(row.get("weights_before") is not None for row in layers)
    columns = [_column(row, by_weights) for row in layers]
    axis = "weights kept, %" if by_weights else "filters"
    chart = column_chart(
        columns,
        describe=f"Each convolution before and after pruning: {axis}",
        axis=axis,
        x_axis="layer of the cfg",
    )
    names = [("before", "before"), ("after pruning", "after")]
    return join(tag("div", chart, cls="scroll columns", tabindex="0"), legend(names), _layers_table(layers))


def _column(row: Mapping[str, Any], by_weights: bool) -> tuple[str, float, float, str]:
    """Label, height before, height after, and what to say when pointed at."""
    name = "?" if row["layer"] is None else str(row["layer"])
    what = "weights" if by_weights else "filters"
    before, after = number(row.get(f"{what}_before")), number(row.get(f"{what}_after"))
    if before is None or after is None:
        return name, 0.0, 0.0, f"layer {name}: not known"
    hint = f"layer {name}: {after:,.0f} of {before:,.0f} {what}"
    if not by_weights:
        return name, before, after, hint
    return name, 100.0, 100 * after / before if before else 0.0, hint


def _layers_table(layers: Sequence[Mapping[str, Any]]) -> Html:
    rows = []
    for row in layers:
        counted = "" if row.get("counted") is not False else " (not prunable)"
        before, after = number(row.get("filters_before")), number(row.get("filters_after"))
        cells: list[Node] = [join(plain(row["layer"]), counted), count(before), count(after)]
        cells += [count(row.get("weights_before")), count(row.get("weights_after"))]
        whole, rest = number(row.get("weights_before")), number(row.get("weights_after"))
        cells.append(percent(rest / whole if whole and rest is not None else None))
        rows.append(tag("tr", *(cell(one) for one in cells)))
    head = ["Layer", "Filters before", "after", "Weights before", "after", "kept"]
    return tag("details", tag("summary", "All layers as a table"), table(head, rows, numbers=range(6)))


def curves(log_rows: Sequence[Mapping[str, Any]]) -> Html:
    """One figure per training stage: the loss raw and smoothed, and its terms smoothed."""
    stages: dict[str, list[Mapping[str, Any]]] = {}
    for row in log_rows:
        if isinstance(row, Mapping):
            stages.setdefault(str(row.get("stage") or "training"), []).append(row)
    figures = [figure for name, rows in stages.items() if (figure := _curve(name, rows)) is not None]
    if not figures:
        return tag("p", "Nothing was trained in this build: its log is empty.", cls="note")
    return tag("div", *figures, cls="grid")


def _curve(stage: str, rows: Sequence[Mapping[str, Any]]) -> Html | None:
    loss = _series(rows, "loss")
    if not loss:
        return None
    window = max(1, len(loss) // 40)
    keys = dict.fromkeys(key for row in rows for key in row if key not in NOT_TERMS)
    terms = [(key, found) for key in keys if (found := _series(rows, key))][: len(TERM_TONES)]
    lines = [Line("", "loss raw", thinned(loss))]
    lines += [
        Line(key, tone, thinned(_smooth(points, window)))
        for (key, points), tone in zip(terms, TERM_TONES, strict=False)
    ]
    soft = _smooth(loss, window)
    lines.append(Line("loss", "loss", thinned(soft)))
    ordered = sorted(value for _, value in loss)
    top = max(ordered[int(0.98 * (len(ordered) - 1))], max(value for _, value in soft[len(soft) // 10 :]))
    above = sum(value > top for value in ordered)
    chart = line_chart(lines, describe=f"Loss of {stage} over its steps", top=top, x_axis="step")
    caption = [f"Loss {three_digits(soft[0][1])} to {three_digits(soft[-1][1])}"]
    caption.append(f", smoothed over {window} steps" if window > 1 else ", not smoothed")
    if rates := _series(rows, "lr"):
        highest = max(rate for _, rate in rates)
        caption.append(f"; learning rate at most {highest:.3g}, {rates[-1][1]:.3g} at the end")
    if above and top < ordered[-1]:
        caption.append(
            f"; the scale ends below {above} of {len(loss)} values, the highest {three_digits(ordered[-1])}"
        )
    names = [("loss", "loss"), *((line.label, line.tone) for line in lines[1:-1])]
    title = join(f"{stage} ", tag("small", f"{len(loss):,} steps"))
    return _figure(title, join(chart, legend(names)), "".join(caption) + ".")


def _series(rows: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """(step, value), rising; a step logged twice counts once, the last time."""
    points = {}
    for position, row in enumerate(rows):
        value, step = number(row.get(key)), number(row.get("step"))
        if value is not None:
            points[float(position) if step is None else step] = value
    return sorted(points.items())


def _smooth(points: Sequence[tuple[float, float]], window: int) -> list[tuple[float, float]]:
    soft = smoothed([value for _, value in points], window)
    return [(step, value) for (step, _), value in zip(points, soft, strict=True)]


def gallery_figure(gallery: Path | None) -> Html:
    """Test images with boxes: clean and attacked, a column for each network."""
    path = None if gallery is None else gallery / "gallery.json"
    if gallery is None or path is None or not path.is_file():
        return tag("p", "No pictures were made.", cls="note")
    try:
        entries = rows_of(json.loads(path.read_text(encoding="utf-8")))
    except ValueError:
        return tag("p", "The list of pictures cannot be read.", cls="note")
    figures = []
    for entry in entries:
        cells = [tag("span", "", cls="corner"), *(tag("b", row) for row in ROWS)]
        for kind, label in (("clean", "clean"), ("pgd", "PGD")):
            cells.append(tag("span", label, cls="row"))
            for row in ROWS:
                where = f"{entry.get('file_name') or 'image'}, {row}, {label}"
                cells.append(_picture(gallery, entry.get(f"{row}_{kind}"), where))
        caption = join(
            tag("code", str(entry.get("file_name") or "unnamed")), ", image ", plain(entry.get("image_id"))
        )
        figures.append(tag("figure", tag("figcaption", caption), *cells, cls="pictures"))
    return join(*figures) if figures else tag("p", "No pictures were made.", cls="note")


def _picture(gallery: Path, name: object, describe: str) -> Html:
    path = gallery / Path(str(name)).name
    absent = tag("span", "no picture", cls="absent")
    if not name or not path.is_file():
        return absent
    from PIL import Image, UnidentifiedImageError

    data, kind = path.read_bytes(), "png"
    try:
        with Image.open(io.BytesIO(data)) as picture:
            width, height = picture.size
            if len(data) > LARGE_PICTURE:
                packed = io.BytesIO()
                # 4:4:4, or the letters of labels would bleed.
                picture.convert("RGB").save(packed, "JPEG", quality=90, subsampling=0)
                data, kind = packed.getvalue(), "jpeg"
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
        return absent
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
    return tag("img", src=source, alt=describe, width=width, height=height)


def _figure(title: Node, chart: Html, caption: str) -> Html:
    return tag("figure", tag("h3", title), chart, tag("figcaption", caption), cls="card")
