"""The picture that a person decides from: latency against robust mAP, with the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prunedeploy_engines.bench.document import Row
from prunedeploy_engines.bench.pictures.labels import Box, place_labels
from prunedeploy_engines.bench.pictures.row_names import (
    OTHER_SHAPE,
    SHAPES,
    Palette,
    common_settings,
    palette_of,
    precision_in_words,
    row_labels,
    shape_of,
)
from prunedeploy_engines.markup.svg import (
    GRID,
    INK,
    PAPER,
    SOFT,
    Axis,
    Drawing,
    number_text,
    padded,
    shortened,
    text_width,
)

WIDTH = 1000.0

_KINDS = ("host", "end_to_end", "compute")  # the first that there is is drawn: figures of two kinds do not compare
_LEFT, _RIGHT, _TOP, _PLOT = 70.0, 24.0, 64.0, 430.0
_LOG_FROM = 6.0
_NAMED_AT_MOST = 14
_SIZE = 11.5


@dataclass(frozen=True)
class Point:
    """One row in the picture.

    Attributes:
        row: A row of the document.
        cost: Milliseconds per image, or of a server seconds per query in milliseconds: less is better.
        robust: Robust mAP: more is better.
    """

    row: Row
    cost: float
    robust: float


def front_points(rows: Sequence[Row]) -> tuple[list[Point], list[Row]]:
    """The rows that can be drawn, the fastest first, and those without a robust mAP or of another kind of figure."""
    kinds = {row.get("kind") for row in rows if row.get("map_pgd") is not None}
    kind = next((kind for kind in _KINDS if kind in kinds), None)
    drawn = [row for row in rows if row.get("map_pgd") is not None and row.get("kind") == kind]
    points = sorted((Point(row, _cost(row), float(row["map_pgd"])) for row in drawn), key=lambda one: one.cost)
    return points, [row for row in rows if not any(row is point.row for point in points)]


def _cost(row: Row) -> float:
    if row.get("server"):
        return 1000.0 / float(row["server"]["queries_per_s"])
    return float(row["latency_ms"]["p50"]) / int(row.get("batch") or 1)


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """The points that no other one beats in one figure without being worse in the other, from fast to robust."""
    front: list[Point] = []
    for point in sorted(points, key=lambda one: (one.cost, -one.robust)):
        if not front or point.robust > front[-1].robust:
            front.append(point)
    return front


def front_picture(rows: Sequence[Row]) -> str | None:
    """Draw latency against robust mAP.

    Args:
        rows: Measured ones.

    Returns:
        An SVG file's text; None if no row has a robust mAP.
    """
    points, left_out = front_points(rows)
    if not points:
        return None
    drawing = Drawing()
    palette = palette_of(rows)  # of all, so that a colour means the same in every picture
    costs, robust = [point.cost for point in points], [point.robust for point in points]
    log = max(costs) / min(costs) > _LOG_FROM
    low, high = padded(costs, log=log)
    x_axis = Axis(low if log else 0.0, high, _LEFT, WIDTH - _RIGHT, log)
    low, high = padded([*robust, *_whisker_ends(points)], log=False, share=0.12)
    y_axis = Axis(0.0 if low < 0.4 * high else max(low, 0.0), max(high, 0.01), _TOP + _PLOT, _TOP)
    server = bool(points[0].row.get("server"))
    _frame(drawing, points, x_axis, y_axis, "milliseconds per query at its highest rate" if server else None)
    groups = {name: [p for p in points if str(p.row.get(palette.key)) == name] for name in palette.colours}
    apart = palette.key == "device"
    fronts = [pareto_front(group) for group in groups.values() if group] if apart else [pareto_front(points)]
    for front in fronts:
        colour = palette.colour(front[0].row) if len(fronts) > 1 else SOFT
        _draw_front(drawing, front, x_axis, y_axis, colour)
    best = {id(point) for front in fronts for point in front}
    for point in points:
        _draw_point(drawing, point, x_axis, y_axis, palette, id(point) in best)
    numbered = len(points) > _NAMED_AT_MOST
    names = _names(points, palette)
    shown = [str(i + 1) for i in range(len(points))] if numbered else names
    lines = [line for front in fronts for line in _stair_boxes(front, x_axis, y_axis)]
    _draw_labels(drawing, points, shown, x_axis, y_axis, lines)
    y = _legend(drawing, points, palette, len(best) < len(points), _TOP + _PLOT + 66)
    if numbered:
        lines_of_text = [(f"{i + 1}  {name}", id(points[i]) in best) for i, name in enumerate(_full_names(points))]
        y = _list_of(drawing, lines_of_text, y)
    if left_out:
        y = _left_out(drawing, left_out, y)
    describe = f"Latency against robust mAP of {len(points)} rows; {len(best)} on the Pareto front"
    return drawing.to_svg(WIDTH, y + 8, describe)


def _whisker_ends(points: Sequence[Point]) -> list[float]:
    return [float(end) for point in points for end in point.row.get("map_pgd_interval") or []]


def _frame(drawing: Drawing, points: Sequence[Point], x_axis: Axis, y_axis: Axis, x_title: str | None) -> None:
    drawing.text(16, 26, "Latency and robust mAP", size=17, colour=INK, bold=True)
    drawing.text(16, 45, shortened(common_settings([point.row for point in points]), WIDTH - 32))
    for tick in x_axis.ticks(8):
        x = x_axis.at(tick)
        drawing.line(x, y_axis.end, x, y_axis.start, GRID)
        drawing.text(x, y_axis.start + 18, f"{tick:g}", anchor="middle")
    for tick in y_axis.ticks(6):
        y = y_axis.at(tick)
        drawing.line(x_axis.start, y, x_axis.end, y, GRID)
        drawing.text(x_axis.start - 8, y + 4, f"{tick:g}", anchor="end")
    drawing.line(x_axis.start, y_axis.start, x_axis.end, y_axis.start, SOFT)
    drawing.line(x_axis.start, y_axis.start, x_axis.start, y_axis.end, SOFT)
    title = x_title or "median milliseconds per image"
    title += " (logarithmic)" if x_axis.log else ""
    drawing.text(x_axis.end, y_axis.start + 38, f"{title}: less is better", anchor="end")
    drawing.text(22, y_axis.end, "mAP under attack (PGD): more is better", anchor="end", turn=-90)


def _draw_front(drawing: Drawing, front: Sequence[Point], x_axis: Axis, y_axis: Axis, colour: str) -> None:
    """What can be had at each latency: stairs, and what they beat in a light shade."""
    steps = [f"M{x_axis.at(front[0].cost):.1f} {y_axis.start:.1f}"]
    for point in front:
        steps.append(f"H{x_axis.at(point.cost):.1f}V{y_axis.at(point.robust):.1f}")
    stairs = f"{''.join(steps)}H{x_axis.end:.1f}"
    drawing.path(f"{stairs}V{y_axis.start:.1f}z", fill=colour, opacity=0.06)
    drawing.path(stairs, stroke=colour, width=1.4, opacity=0.8)


def _draw_point(drawing: Drawing, point: Point, x_axis: Axis, y_axis: Axis, palette: Palette, best: bool) -> None:
    x, y, colour = x_axis.at(point.cost), y_axis.at(point.robust), palette.colour(point.row)
    interval = point.row.get("map_pgd_interval")
    if interval:
        low, high = (y_axis.at(end) for end in interval)
        drawing.path(
            f"M{x - 3:.1f} {low:.1f}h6M{x - 3:.1f} {high:.1f}h6M{x:.1f} {low:.1f}V{high:.1f}",
            stroke=colour,
            opacity=0.5,
        )
    drawing.marker(x, y, shape_of(point.row), colour, filled=best)


def _names(points: Sequence[Point], palette: Palette) -> list[str]:
    """Short names: the model, and what neither colour nor shape shows; without models the rest."""
    rows = [point.row for point in points]
    several = len({row["model"] for row in rows}) > 1
    details = row_labels(rows, without=(palette.key, "precision") if several else ())
    if not several:
        return [detail or str(row["model"]) for row, detail in zip(rows, details, strict=True)]
    return [", ".join(filter(None, (str(row["model"]), detail))) for row, detail in zip(rows, details, strict=True)]


def _full_names(points: Sequence[Point]) -> list[str]:
    rows = [point.row for point in points]
    return [
        ", ".join(
            filter(None, (str(point.row["model"]), detail, f"{number_text(point.cost)} ms", f"{point.robust:.3f}"))
        )
        for point, detail in zip(points, row_labels(rows), strict=True)
    ]


def _stair_boxes(front: Sequence[Point], x_axis: Axis, y_axis: Axis) -> list[Box]:
    """The front's lines, for `place_labels`."""
    boxes, floor = [], y_axis.start
    for point, after in zip(front, [*front[1:], None], strict=True):
        x, y = x_axis.at(point.cost), y_axis.at(point.robust)
        end = x_axis.end if after is None else x_axis.at(after.cost)
        boxes += [Box(x - 1, y, x + 1, floor), Box(x, y - 1, end, y + 1)]
        floor = y
    return boxes


def _draw_labels(
    drawing: Drawing,
    points: Sequence[Point],
    names: Sequence[str],
    x_axis: Axis,
    y_axis: Axis,
    lines: Sequence[Box],
) -> None:
    spots = [(x_axis.at(point.cost), y_axis.at(point.robust)) for point in points]
    names = [shortened(name, 300, _SIZE) for name in names]
    sizes = [(text_width(name, _SIZE), _SIZE + 2) for name in names]
    area = Box(x_axis.start + 2, y_axis.end - 8, x_axis.end - 2, y_axis.start - 2)
    boxes = place_labels(spots, sizes, area, lines)
    for (x, y), box in zip(spots, boxes, strict=True):
        near_x, near_y = min(max(x, box.left), box.right), min(max(y, box.top), box.bottom)
        if abs(near_x - x) + abs(near_y - y) > 16:
            drawing.line(x, y, near_x, near_y, SOFT, 0.7)
    for name, box in zip(names, boxes, strict=True):
        drawing.rect(box.left - 1, box.top + 1, box.right - box.left + 1, box.bottom - box.top - 2, PAPER, opacity=0.8)
        drawing.text(box.left, box.bottom - 3.5, name, size=_SIZE, colour=INK)


def _legend(drawing: Drawing, points: Sequence[Point], palette: Palette, beaten: bool, y: float) -> float:
    entries: list[tuple[str, str, str, bool]] = []
    drawn = {str(point.row.get(palette.key)) for point in points}
    if len(drawn) > 1:
        entries += [(name, "circle", colour, True) for name, colour in palette.colours.items() if name in drawn]
    shapes = {shape_of(point.row): precision_in_words(point.row).partition(" ")[0] for point in points}
    for shape in (*SHAPES.values(), OTHER_SHAPE):
        if shape in shapes:
            entries.append((shapes[shape], shape, SOFT, True))
    if beaten:
        entries += [("on the Pareto front", "circle", INK, True), ("beaten by another", "circle", INK, False)]
    x = _LEFT
    for name, shape, colour, filled in entries:
        width = text_width(name) + 44
        if x > _LEFT and x + width > WIDTH - 16:
            x, y = _LEFT, y + 20
        drawing.marker(x + 6, y - 4, shape, colour, filled=filled)
        drawing.text(x + 18, y, name, colour=INK)
        x += width
    return y + 22


def _list_of(drawing: Drawing, lines: Sequence[tuple[str, bool]], y: float) -> float:
    """Lines in two columns, some of them bold."""
    half = (len(lines) + 1) // 2
    column = (WIDTH - _LEFT - _RIGHT) / 2
    for number, (line, bold) in enumerate(lines):
        x, text = _LEFT + column * (number // half), shortened(line, column - 16, 11)
        drawing.text(x, y + 12 + 17 * (number % half), text, size=11, colour=INK, bold=bold)
    return y + 17 * half + 20


def _left_out(drawing: Drawing, rows: Sequence[Row], y: float) -> float:
    without = [row for row in rows if row.get("map_pgd") is None]
    drawn = [
        ", ".join(filter(None, (str(row["model"]), label))) for row, label in zip(rows, row_labels(rows), strict=True)
    ]
    names = dict.fromkeys(name for name, row in zip(drawn, rows, strict=True) if row in without)
    if without:
        drawing.text(_LEFT, y + 12, "not drawn, since no robust mAP is known:", size=11)
        y = _list_of(drawing, [(name, False) for name in names], y + 16)
    if len(without) < len(rows):
        drawing.text(_LEFT, y + 12, f"{len(rows) - len(without)} rows of another kind of figure are not drawn", size=11)
        y += 20
    return y
