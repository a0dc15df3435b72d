"""Drawing SVG, as a file of its own or for a page: shapes, text of about known width, scales, bars, legends.

A colour is ``#rrggbb`` or one of the names in `STYLE`, where a page says what it is on a light and on a dark screen
and on paper; a file, which is always light, knows `INK`, `SOFT`, `GRID` and `PAPER`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prunedeploy_engines.markup.html import Html, tag
from prunedeploy_engines.markup.scales import Axis

FONT = "Helvetica, Arial, 'Liberation Sans', sans-serif"
INK, SOFT, GRID, PAPER = "ink", "soft", "grid", "paper"
# Told apart by people with any colour vision, on white. Reference: Okabe and Ito, Color Universal Design, 2008.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#56b4e9", "#5a6472", "#7b3294")

_IN_FILES = {INK: "#1b1f24", SOFT: "#5a6472", GRID: "#e3e7ec", PAPER: "#ffffff"}
_NARROW, _WIDE = "iljftI.,:;|!'()[]/ ", "mwMW%@"


@dataclass(frozen=True)
class Key:
    """What a legend says of a colour or a marker.

    Attributes:
        label: What it stands for.
        colour: Its colour.
        shape: As for `Drawing.marker`.
        filled: Or an outline.
    """

    label: str
    colour: str
    shape: str = "square"
    filled: bool = True


@dataclass(frozen=True)
class Bar:
    """A value to draw as a bar.

    Attributes:
        label: Its name.
        value: Its length; None draws no bar.
        shown: The value as text; without a value, why there is none.
        colour: Its colour.
        whisker: Values of ticks on a line, ascending; an arrow stands for what is beyond the scale.
    """

    label: str
    value: float | None
    shown: str
    colour: str
    whisker: Sequence[float] = ()


class Drawing:
    """Collects shapes; coordinates are pixels from the upper left.

    Args:
        on_page: It stands in a page, whose style chooses the colours.
    """

    def __init__(self, *, on_page: bool = False) -> None:
        self._on_page = on_page
        self._parts: list[Html] = []

    def rect(
        self, x: float, y: float, width: float, height: float, fill: str, *, opacity: float = 1.0, hint: str = ""
    ) -> None:
        """A filled rectangle; the hint appears when pointed at."""
        self._parts.append(
            tag(
                "rect",
                tag("title", hint) if hint else None,
                x=x,
                y=y,
                width=max(width, 0.0),
                height=height,
                fill=self._paint(fill),
                opacity=_opacity(opacity),
            )
        )

    def line(self, x1: float, y1: float, x2: float, y2: float, colour: str, width: float = 1.0) -> None:
        """A straight line."""
        self._parts.append(tag("line", x1=x1, y1=y1, x2=x2, y2=y2, stroke=self._paint(colour), stroke_width=width))

    def path(
        self, d: str, *, fill: str = "none", stroke: str = "none", width: float = 1.0, opacity: float = 1.0
    ) -> None:
        """A path in SVG's own words."""
        colours = {"fill": self._paint(fill), "stroke": self._paint(stroke)}
        self._parts.append(tag("path", d=d, **colours, stroke_width=width, opacity=_opacity(opacity)))

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float = 12.0,
        colour: str = SOFT,
        anchor: str = "start",
        bold: bool = False,
        turn: float = 0.0,
    ) -> None:
        """Text on a baseline; ``anchor`` is start, middle or end; ``turn`` in degrees."""
        self._parts.append(
            tag(
                "text",
                text,
                x=x,
                y=y,
                font_size=size,
                fill=self._paint(colour),
                text_anchor=None if anchor == "start" else anchor,
                font_weight="600" if bold else None,
                transform=f"rotate({turn:g} {x:.1f} {y:.1f})" if turn else None,
            )
        )

    def marker(self, x: float, y: float, shape: str, colour: str, *, filled: bool = True) -> None:
        """A circle, square, triangle or diamond around a point."""
        size = 5.0
        d = {
            "circle": f"M{x - size:.2f} {y:.2f}a{size} {size} 0 1 0 {2 * size} 0a{size} {size} 0 1 0 {-2 * size} 0z",
            "square": f"M{x - size * 0.9:.2f} {y - size * 0.9:.2f}h{1.8 * size:g}v{1.8 * size:g}h{-1.8 * size:g}z",
            "triangle": f"M{x:.2f} {y - 1.2 * size:.2f}l{1.15 * size:g} {2.05 * size:g}h{-2.3 * size:g}z",
            "diamond": f"M{x:.2f} {y - 1.3 * size:.2f}l{1.3 * size:g} {1.3 * size:g}l{-1.3 * size:g} {1.3 * size:g}"
            f"l{-1.3 * size:g} {-1.3 * size:g}z",
        }[shape]
        self.path(d, fill=colour if filled else PAPER, stroke=colour, width=1.8)

    def x_scale(self, axis: Axis, top: float, bottom: float, *, wanted: int = 5, unit: str = "") -> None:
        """Upright lines at round values, which stand below."""
        for tick in axis.ticks(wanted):
            x = axis.at(tick)
            self.line(x, top, x, bottom, GRID)
            self.text(x, bottom + 16, f"{tick:g}{unit}", anchor="middle")

    def y_scale(self, axis: Axis, left: float, right: float, *, wanted: int = 4) -> None:
        """Level lines at round values, which stand to their left."""
        for tick in axis.ticks(wanted):
            y = axis.at(tick)
            self.line(left, y, right, y, GRID)
            self.text(left - 8, y + 4, f"{tick:g}", anchor="end")

    def bar(self, axis: Axis, y: float, bar: Bar) -> None:
        """A level bar around ``y``, its name to the left of the scale's start, and the value in figures behind it."""
        self.text(axis.start - 8, y + 4, bar.label, colour=INK, anchor="end")
        if bar.value is None:
            self.text(axis.start + 7, y + 4, bar.shown)
            return
        end = max(axis.at(bar.value), axis.start + 1)
        self.rect(axis.start, y - 7, end - axis.start, 14, bar.colour, opacity=0.85)
        if bar.whisker:
            first, last = axis.at(bar.whisker[0]), axis.at(bar.whisker[-1])
            ticks = "".join(
                f"M{axis.at(one):.1f} {y - 4:.1f}v8" if one <= axis.last else f"M{last - 5:.1f} {y - 4:.1f}l5 4l-5 4"
                for one in bar.whisker
            )
            self.path(f"M{first:.1f} {y:.1f}H{last:.1f}{ticks}", stroke=INK, width=1.2)
            end = max(end, last)
        self.text(end + 7, y + 4, bar.shown, colour=INK, bold=True)

    def legend(self, keys: Sequence[Key], left: float, y: float, right: float) -> float:
        """Name colours and markers, in as many lines as they need.

        Returns:
            Where the next line would be.
        """
        x = left
        for key in keys:
            width = text_width(key.label) + 40
            if x > left and x + width > right:
                x, y = left, y + 20
            self.marker(x + 6, y - 4, key.shape, key.colour, filled=key.filled)
            self.text(x + 18, y, shortened(key.label, right - left - 40), colour=INK)
            x += width
        return y + 20

    def to_svg(self, width: float, height: float, describe: str) -> Html:
        """The element, or the text of the file.

        Args:
            width: In pixels.
            height: In pixels.
            describe: What is to be seen, for those who cannot see it.
        """
        shapes = Html("\n".join(["", *self._parts, ""]))
        box = f"0 0 {width:g} {height:g}"
        if self._on_page:
            return tag("svg", shapes, viewBox=box, role="img", aria_label=describe)
        paper = tag("rect", width=width, height=height, fill=self._paint(PAPER))
        size: dict[str, str | float] = {"width": width, "height": height, "viewBox": box}
        name = "http://www.w3.org/2000/svg"
        return tag("svg", tag("title", describe), paper, shapes, xmlns=name, **size, font_family=FONT, role="img")

    def _paint(self, colour: str) -> str:
        if colour == "none" or colour.startswith("#"):
            return colour
        return f"var(--{colour})" if self._on_page else _IN_FILES[colour]


def text_width(text: str, size: float = 12.0) -> float:
    """About how wide a text is, in pixels; rather too much than too little."""
    return size * sum(0.32 if c in _NARROW else 0.9 if c in _WIDE else 0.68 if c.isupper() else 0.57 for c in text)


def shortened(text: str, width: float, size: float = 12.0) -> str:
    """The text, or its beginning and end around an ellipsis where it is too wide: names differ at both."""
    kept, found = len(text), text
    while kept > 2 and text_width(found, size) > width:
        kept -= 1
        found = f"{text[: kept // 2]}…{text[len(text) - kept + kept // 2 :]}"
    return found


def _opacity(value: float) -> float | None:
    return None if value == 1.0 else value
