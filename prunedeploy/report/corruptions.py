"""The report's section on weather, noise, blur and compression: mPC and rPC, and mAP at each severity."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prunedeploy.report.figures import ROWS, figure
from prunedeploy.report.format import interval, look_up, map_cell, mapping, number, percent
from prunedeploy.report.words import Results
from prunedeploy_engines.markup.html import Html, Node, join, tag
from prunedeploy_engines.markup.page import note, table
from prunedeploy_engines.markup.scales import Axis, scale_end
from prunedeploy_engines.markup.svg import INK, Drawing, Key

COLUMNS = 5
_OF_FILES = ("other1", "other2", "pgd", "soft")


@dataclass(frozen=True)
class _Series:
    """A network, or one of its files: its name, its colour and what was measured."""

    name: str
    colour: str
    found: Mapping[str, Any]

    @property
    def severities(self) -> list[float]:
        """The severities that were measured."""
        return _numbers(self.found.get("severities"))

    def values(self, corruption: str) -> list[float | None]:
        """What mAP was at each of them."""
        cells = look_up(self.found, "map", corruption)
        return [number(one) for one in cells] if isinstance(cells, list) else []

    def points(self, corruption: str) -> list[tuple[float, float]]:
        """(severity, mAP), clean images as severity 0."""
        measured = zip(
            (0, *self.severities), (number(self.found.get("map_clean")), *self.values(corruption)), strict=False
        )
        return [(severity, value) for severity, value in measured if value is not None]


def _numbers(values: object) -> list[float]:
    return [found for one in values if (found := number(one)) is not None] if isinstance(values, list) else []


def corruptions_section(results: Results) -> Html | None:
    """What corruptions leave of each network's and file's mAP; None for a build that measured none."""
    series = list(_series(results))
    if not series:
        return None
    names = list(dict.fromkeys(name for one in series for name in mapping(one.found.get("map"))))
    severities = ", ".join(f"{s:g}" for s in dict.fromkeys(s for one in series for s in one.severities))
    images = {number(one.get("images")) for one in map(mapping, mapping(results.get("corruptions")).values())}
    measured = " or ".join(f"{n:,.0f}" for n in images if n is not None)
    said = note(
        f"mAP (IoU .50 to .95) on {measured} test images, corrupted at the network's input size, as a mean over "
        f"severities {severities}. mPC is the mean over corruptions, rPC its share of the clean mAP. Published figures "
        "are of all fifteen corruptions at severities 1 to 5. The texture of frost is prunedeploy's own, so that its "
        "figures cannot be compared with published ones."
    )
    return join(_multiples(series, names), _table(series, names), said)


def _series(results: Results) -> Iterator[_Series]:
    colours = iter(_OF_FILES)
    for row, document in mapping(results.get("corruptions")).items():
        for runner, found in mapping(mapping(document).get("runners")).items():
            if not mapping(mapping(found).get("map")):
                continue
            file = runner.partition("|")[2] or "model.onnx"
            if runner == "torch":
                yield _Series(str(row), str(row) if row in ROWS else "soft", found)
            else:
                yield _Series(f"{row}, {file}", next(colours, "soft"), found)


def _table(series: Sequence[_Series], names: Sequence[str]) -> Html:
    def cells(key: str) -> list[Node]:
        return [map_cell(one.found.get(key), look_up(one.found, "intervals", key)) for one in series]

    rows: list[list[Node]] = [["none (clean)", *cells("map_clean")]]
    for name in names:
        rows.append([name, *(map_cell(_mean(one.values(name))) for one in series)])
    rows.append([tag("b", "mPC"), *cells("mpc")])
    rows.append([tag("b", "rPC"), *(_share(one.found) for one in series)])
    return table(["Corruption", *(one.name for one in series)], rows, numbers=range(1, 1 + len(series)))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _share(found: Mapping[str, Any]) -> Html:
    ends = interval(look_up(found, "intervals", "rpc"))
    if ends is None:
        return percent(found.get("rpc"))
    return join(
        percent(found.get("rpc")), tag("small", f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f} %", cls="interval")
    )


def _multiples(series: Sequence[_Series], names: Sequence[str]) -> Html | None:
    """A small chart for each corruption, all on one scale."""
    points = [point for one in series for name in names for point in one.points(name)]
    if not points:
        return None
    last, top = max(x for x, _ in points), scale_end(max(y for _, y in points), 2)
    width, wide, high, head = 960.0, 180.0, 84.0, 24.0
    drawing = Drawing(on_page=True)
    for i, name in enumerate(names):
        left = 36 + i % COLUMNS * (wide + 6)
        upper = head + i // COLUMNS * (high + head + 26)
        x_axis, y_axis = Axis(0, max(last, 1), left, left + wide - 18), Axis(0, top, upper + high, upper)
        drawing.text(left, upper - 7, name.replace("_", " "), colour=INK)
        for tick in y_axis.ticks(2):
            drawing.line(left, y_axis.at(tick), x_axis.end, y_axis.at(tick), "grid")
            if i % COLUMNS == 0:
                drawing.text(left - 6, y_axis.at(tick) + 4, f"{tick:g}", size=11, anchor="end")
        for tick in range(int(max(last, 1)) + 1):
            drawing.text(x_axis.at(tick), upper + high + 14, f"{tick}", size=10, anchor="middle")
        for one in series:
            pixels = [(x_axis.at(x), y_axis.at(y)) for x, y in one.points(name)]
            if pixels:
                drawing.path("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in pixels), stroke=one.colour, width=1.8)
    rows = -(-len(names) // COLUMNS)
    bottom = drawing.legend(
        [Key(one.name, one.colour) for one in series], 36, head + rows * (high + head + 26) + 6, width
    )
    kept = ", ".join(
        f"{one.name} {100 * share:.0f} %" for one in series if (share := number(one.found.get("rpc"))) is not None
    )
    return figure(
        "mAP by corruption, over severity (0: clean images)",
        tag(
            "div",
            drawing.to_svg(width, bottom - 12, "mAP of each network under each corruption, over severity"),
            cls="columns",
        ),
        f"Of the clean mAP, under corruption on average: {kept}." if kept else "",
    )
