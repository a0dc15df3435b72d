"""The picture that a person decides from: latency against robust mAP, with the Pareto front."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from prunedeploy_engines.bench.document import Row
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
from prunedeploy_engines.markup.labels import Box, place_labels
from prunedeploy_engines.markup.scales import Axis, number_text, padded
from prunedeploy_engines.markup.svg import INK, PAPER, SOFT, Drawing, Key, shortened, text_width

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


@dataclass(frozen=True)
class _Frame:
    """The picture and its scales."""

    drawing: Drawing
    x: Axis
    y: Axis

    def spot(self, point: Point) -> tuple[float, float]:
        """Where a point is, in pixels."""
        return self.x.at(point.cost), self.y.at(point.robust)


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


def pareto_front(costs: Iterable[float], gains: Iterable[float]) -> list[int]:
    """Indices of the points that no other point beats: none is at least as good in both and better in one.

    Args:
        costs: Less is better.
        gains: As many; more is better.

    Returns:
        Ascending by cost. Of equal points all are there.
    """
    front: list[int] = []
    best: tuple[float, float] | None = None
    for cost, loss, index in sorted((cost, -gain, i) for i, (cost, gain) in enumerate(zip(costs, gains, strict=True))):
        if best is None or loss < best[1] or (cost, loss) == best:
            front.append(index)
            best = cost, loss
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
    palette = palette_of(rows)  # of all, so that a colour means the same in every picture
    frame = _frame(points)
    drawing = frame.drawing
    groups = [[point for point in points if str(point.row.get(palette.key)) == name] for name in palette.colours]
    apart = [group for group in groups if group] if palette.key == "device" else [points]
    fronts = [
        [group[i] for i in pareto_front([one.cost for one in group], [one.robust for one in group])] for group in apart
    ]
    for front in fronts:
        _draw_front(frame, front, palette.colour(front[0].row) if len(fronts) > 1 else SOFT)
    best = {id(point) for front in fronts for point in front}
    for point in points:
        _draw_point(frame, point, palette, id(point) in best)
    numbered = len(points) > _NAMED_AT_MOST
    shown = [str(i + 1) for i in range(len(points))] if numbered else _names(points, palette)
    _draw_labels(frame, points, shown, [line for front in fronts for line in _stair_boxes(frame, front)])
    keys = _keys(points, palette, len(best) < len(points))
    y = drawing.legend(keys, _LEFT, _TOP + _PLOT + 66, WIDTH - 16) + 2
    if numbered:
        names = [f"{i}  {name}" for i, name in enumerate(_full_names(points), 1)]
        y = _list_of(drawing, names, [id(point) in best for point in points], y)
    if left_out:
        y = _left_out(drawing, left_out, y)
    describe = f"Latency against robust mAP of {len(points)} rows; {len(best)} on the Pareto front"
    return drawing.to_svg(WIDTH, y + 8, describe)


def _frame(points: Sequence[Point]) -> _Frame:
    """Titles and scales."""
    costs = [point.cost for point in points]
    log = max(costs) / min(costs) > _LOG_FROM
    low, high = padded(costs, log=log)
    x_axis = Axis(low if log else 0.0, high, _LEFT, WIDTH - _RIGHT, log)
    ends = [float(end) for point in points for end in point.row.get("map_pgd_interval") or []]
    low, high = padded([*(point.robust for point in points), *ends], log=False, share=0.12)
    y_axis = Axis(0.0 if low < 0.4 * high else max(low, 0.0), max(high, 0.01), _TOP + _PLOT, _TOP)
    drawing = Drawing()
    drawing.text(16, 26, "Latency and robust mAP", size=17, colour=INK, bold=True)
    drawing.text(16, 45, shortened(common_settings([point.row for point in points]), WIDTH - 32))
    drawing.x_scale(x_axis, y_axis.end, y_axis.start, wanted=8)
    drawing.y_scale(y_axis, x_axis.start, x_axis.end, wanted=6)
    drawing.line(x_axis.start, y_axis.start, x_axis.end, y_axis.start, SOFT)
    drawing.line(x_axis.start, y_axis.start, x_axis.start, y_axis.end, SOFT)
    server = bool(points[0].row.get("server"))
    title = "milliseconds per query at its highest rate" if server else "median milliseconds per image"
    title += " (logarithmic)" if log else ""
    drawing.text(x_axis.end, y_axis.start + 38, f"{title}: less is better", anchor="end")
    drawing.text(22, y_axis.end, "mAP under attack (PGD): more is better", anchor="end", turn=-90)
    return _Frame(drawing, x_axis, y_axis)


def _draw_front(frame: _Frame, front: Sequence[Point], colour: str) -> None:
    """What can be had at each latency: stairs, and what they beat in a light shade."""
    floor = frame.y.start
    steps = "".join(f"H{x:.1f}V{y:.1f}" for x, y in map(frame.spot, front))
    stairs = f"M{frame.x.at(front[0].cost):.1f} {floor:.1f}{steps}H{frame.x.end:.1f}"
    frame.drawing.path(f"{stairs}V{floor:.1f}z", fill=colour, opacity=0.06)
    frame.drawing.path(stairs, stroke=colour, width=1.4, opacity=0.8)


def _draw_point(frame: _Frame, point: Point, palette: Palette, best: bool) -> None:
    (x, y), colour = frame.spot(point), palette.colour(point.row)
    if interval := point.row.get("map_pgd_interval"):
        low, high = (frame.y.at(end) for end in interval)
        whisker = f"M{x - 3:.1f} {low:.1f}h6M{x - 3:.1f} {high:.1f}h6M{x:.1f} {low:.1f}V{high:.1f}"
        frame.drawing.path(whisker, stroke=colour, opacity=0.5)
    frame.drawing.marker(x, y, shape_of(point.row), colour, filled=best)


def _names(points: Sequence[Point], palette: Palette) -> list[str]:
    """Short names: the model, and what neither colour nor shape shows; without models the rest."""
    rows = [point.row for point in points]
    if len({row["model"] for row in rows}) > 1:
        return _row_names(rows, without=(palette.key, "precision"))
    return [detail or str(row["model"]) for row, detail in zip(rows, row_labels(rows), strict=True)]


def _row_names(rows: Sequence[Row], *, without: Sequence[str] = ()) -> list[str]:
    """The model of each row, and its settings as far as they differ."""
    details = row_labels(rows, without=without)
    return [", ".join(filter(None, (str(row["model"]), detail))) for row, detail in zip(rows, details, strict=True)]


def _full_names(points: Sequence[Point]) -> list[str]:
    names = _row_names([point.row for point in points])
    return [
        f"{name}, {number_text(point.cost)} ms, {point.robust:.3f}" for name, point in zip(names, points, strict=True)
    ]


def _stair_boxes(frame: _Frame, front: Sequence[Point]) -> list[Box]:
    """The front's lines, for `place_labels`."""
    boxes, floor = [], frame.y.start
    ends = [*(frame.x.at(point.cost) for point in front[1:]), frame.x.end]
    for (x, y), end in zip(map(frame.spot, front), ends, strict=True):
        boxes += [Box(x - 1, y, x + 1, floor), Box(x, y - 1, end, y + 1)]
        floor = y
    return boxes


def _draw_labels(frame: _Frame, points: Sequence[Point], names: Sequence[str], lines: Sequence[Box]) -> None:
    spots = [frame.spot(point) for point in points]
    names = [shortened(name, 300, _SIZE) for name in names]
    sizes = [(text_width(name, _SIZE), _SIZE + 2) for name in names]
    area = Box(frame.x.start + 2, frame.y.end - 8, frame.x.end - 2, frame.y.start - 2)
    boxes = place_labels(spots, sizes, area, lines)
    drawing = frame.drawing
    for (x, y), box in zip(spots, boxes, strict=True):
        near_x, near_y = min(max(x, box.left), box.right), min(max(y, box.top), box.bottom)
        if abs(near_x - x) + abs(near_y - y) > 16:
            drawing.line(x, y, near_x, near_y, SOFT, 0.7)
    for name, box in zip(names, boxes, strict=True):
        drawing.rect(box.left - 1, box.top + 1, box.right - box.left + 1, box.bottom - box.top - 2, PAPER, opacity=0.8)
        drawing.text(box.left, box.bottom - 3.5, name, size=_SIZE, colour=INK)


def _keys(points: Sequence[Point], palette: Palette, beaten: bool) -> list[Key]:
    keys = []
    drawn = {str(point.row.get(palette.key)) for point in points}
    if len(drawn) > 1:
        keys += [Key(name, colour, "circle") for name, colour in palette.colours.items() if name in drawn]
    shapes = {shape_of(point.row): precision_in_words(point.row).partition(" ")[0] for point in points}
    keys += [Key(shapes[shape], SOFT, shape) for shape in (*SHAPES.values(), OTHER_SHAPE) if shape in shapes]
    if beaten:
        keys += [Key("on the Pareto front", INK, "circle"), Key("beaten by another", INK, "circle", filled=False)]
    return keys


def _list_of(drawing: Drawing, lines: Sequence[str], bold: Sequence[bool], y: float) -> float:
    """Lines in two columns, some of them bold."""
    half = (len(lines) + 1) // 2
    column = (WIDTH - _LEFT - _RIGHT) / 2
    for number, (line, is_bold) in enumerate(zip(lines, bold, strict=True)):
        x, text = _LEFT + column * (number // half), shortened(line, column - 16, 11)
        drawing.text(x, y + 12 + 17 * (number % half), text, size=11, colour=INK, bold=is_bold)
    return y + 17 * half + 20


def _left_out(drawing: Drawing, rows: Sequence[Row], y: float) -> float:
    unknown = [row.get("map_pgd") is None for row in rows]
    names = list(dict.fromkeys(name for name, no_map in zip(_row_names(rows), unknown, strict=True) if no_map))
    if names:
        drawing.text(_LEFT, y + 12, "not drawn, since no robust mAP is known:", size=11)
        y = _list_of(drawing, names, [False] * len(names), y + 16)
    if not all(unknown):
        words = f"{len(rows) - sum(unknown)} rows of another kind of figure are not drawn"
        drawing.text(_LEFT, y + 12, words, size=11)
        y += 20
    return y
