"""Drawing an SVG file: shapes, text whose width is known well enough to place it, and axes."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

FONT = "Helvetica, Arial, 'Liberation Sans', sans-serif"
INK, SOFT, GRID, PAPER = "#1b1f24", "#5a6472", "#e3e7ec", "#ffffff"
# Told apart by people with any colour vision, on white. Reference: Okabe and Ito, Color Universal Design, 2008.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#56b4e9", "#5a6472", "#7b3294")

_NARROW, _WIDE = "iljftI.,:;|!'()[]/ ", "mwMW%@"


class Drawing:
    """Collects shapes; coordinates are pixels from the upper left."""

    def __init__(self) -> None:
        self._parts: list[str] = []

    def rect(self, x: float, y: float, width: float, height: float, fill: str, *, opacity: float = 1.0) -> None:
        """A filled rectangle."""
        self._add("rect", x=x, y=y, width=max(width, 0.0), height=height, fill=fill, opacity=opacity)

    def line(
        self, x1: float, y1: float, x2: float, y2: float, colour: str, width: float = 1.0, *, dash: str | None = None
    ) -> None:
        """A straight line."""
        self._add("line", x1=x1, y1=y1, x2=x2, y2=y2, stroke=colour, stroke_width=width, stroke_dasharray=dash)

    def path(
        self, d: str, *, fill: str = "none", stroke: str = "none", width: float = 1.0, opacity: float = 1.0
    ) -> None:
        """A path in SVG's own words."""
        self._add("path", d=d, fill=fill, stroke=stroke, stroke_width=width, opacity=opacity)

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
            _tag(
                "text",
                escaped(text),
                x=x,
                y=y,
                font_size=size,
                fill=colour,
                text_anchor=None if anchor == "start" else anchor,
                font_weight="600" if bold else None,
                transform=f"rotate({turn:g} {x:.1f} {y:.1f})" if turn else None,
            )
        )

    def marker(self, x: float, y: float, shape: str, colour: str, *, size: float = 5.0, filled: bool = True) -> None:
        """A circle, square, triangle or diamond around a point."""
        d = {
            "circle": f"M{x - size:.2f} {y:.2f}a{size} {size} 0 1 0 {2 * size} 0a{size} {size} 0 1 0 {-2 * size} 0z",
            "square": f"M{x - size * 0.9:.2f} {y - size * 0.9:.2f}h{1.8 * size:g}v{1.8 * size:g}h{-1.8 * size:g}z",
            "triangle": f"M{x:.2f} {y - 1.2 * size:.2f}l{1.15 * size:g} {2.05 * size:g}h{-2.3 * size:g}z",
            "diamond": f"M{x:.2f} {y - 1.3 * size:.2f}l{1.3 * size:g} {1.3 * size:g}l{-1.3 * size:g} {1.3 * size:g}"
            f"l{-1.3 * size:g} {-1.3 * size:g}z",
        }[shape]
        self.path(d, fill=colour if filled else PAPER, stroke=colour, width=1.8)

    def to_svg(self, width: float, height: float, describe: str) -> str:
        """The file's text.

        Args:
            width: In pixels.
            height: In pixels.
            describe: What is to be seen, for those who cannot see it.
        """
        background = _tag("rect", "", width=width, height=height, fill=PAPER)
        content = "\n".join([_tag("title", escaped(describe)), background, *self._parts])
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
            f'viewBox="0 0 {width:g} {height:g}" font-family="{FONT}" role="img">\n{content}\n</svg>\n'
        )

    def _add(self, name: str, **attributes: str | float | None) -> None:
        if attributes.get("opacity") == 1.0:
            del attributes["opacity"]
        self._parts.append(_tag(name, "", **attributes))


def escaped(text: str) -> str:
    """Text as XML; characters that it may not hold become the replacement character."""
    return html.escape("".join("\ufffd" if c < " " or c == "\x7f" or "\ud800" <= c <= "\udfff" else c for c in text))


def text_width(text: str, size: float = 12.0) -> float:
    """About how wide a text is, in pixels; rather too much than too little."""
    return size * sum(0.32 if c in _NARROW else 0.9 if c in _WIDE else 0.68 if c.isupper() else 0.57 for c in text)


def shortened(text: str, width: float, size: float = 12.0) -> str:
    """The text, or its beginning and end around an ellipsis where it is too wide: names differ at both."""
    if text_width(text, size) <= width:
        return text
    kept = len(text)
    while kept > 2 and text_width(f"{text[: kept // 2]}…{text[len(text) - kept + kept // 2 :]}", size) > width:
        kept -= 1
    return f"{text[: kept // 2]}…{text[len(text) - kept + kept // 2 :]}"


@dataclass(frozen=True)
class Axis:
    """Values on pixels.

    Attributes:
        first: Value at ``start``.
        last: Value at ``end``.
        start: Pixel.
        end: Pixel.
        log: Logarithmic.
    """

    first: float
    last: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """The pixel of a value; what is outside is put on the edge."""
        value = min(max(value, self.first), self.last)
        if self.log:
            share = math.log(value / self.first) / math.log(self.last / self.first)
        else:
            share = (value - self.first) / (self.last - self.first)
        return self.start + share * (self.end - self.start)

    def ticks(self, wanted: int = 6) -> list[float]:
        """Round values on the axis, about as many as wanted."""
        return log_ticks(self.first, self.last, wanted) if self.log else linear_ticks(self.first, self.last, wanted)


def linear_ticks(first: float, last: float, wanted: int = 6) -> list[float]:
    """Round numbers in ``[first, last]``, in equal steps of 1, 2, 2.5 or 5 times a power of ten."""
    raw = (last - first) / max(1, wanted)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * (1 - 1e-9))
    low, high = math.ceil(first / step - 1e-9), math.floor(last / step + 1e-9)
    return [round(step * i, 12) for i in range(low, high + 1)]


def log_ticks(first: float, last: float, wanted: int = 6) -> list[float]:
    """Round numbers in ``[first, last]``: powers of ten and, as long as there is room, their multiples."""
    powers = range(math.floor(math.log10(first)), math.ceil(math.log10(last)) + 1)
    found: list[float] = []
    for factors in ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 5, 7), (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)):
        values = [round(factor * 10.0**power, 12) for power in powers for factor in factors]
        denser = [value for value in values if first * (1 - 1e-9) <= value <= last * (1 + 1e-9)]
        if found and len(denser) > 1.6 * wanted:
            break
        found = denser
        if len(found) >= wanted:
            break
    return found


def padded(values: Sequence[float], *, log: bool, share: float = 0.08) -> tuple[float, float]:
    """Smallest and largest value with some room around them."""
    low, high = min(values), max(values)
    if log:
        room = max((high / low) ** share, 1.15)
        return low / room, high * room
    room = max((high - low) * share, abs(high) * 0.02, 1e-9)
    return low - room, high + room


def number_text(value: float) -> str:
    """Three significant digits, without an exponent where people write none."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{digits}f}" if digits <= 5 else f"{value:.3g}"


def _tag(name: str, content: str, /, **attributes: str | float | None) -> str:
    given = {key.replace("_", "-"): value for key, value in attributes.items() if value is not None}
    written = "".join(f' {key}="{_attribute(value)}"' for key, value in given.items())
    return f"<{name}{written}>{content}</{name}>" if content else f"<{name}{written}/>"


def _attribute(value: str | float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else escaped(str(value))
