"""Scales: values on pixels, and round numbers to mark them with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


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
    step = _round_step((last - first) / max(1, wanted))
    low, high = math.ceil(first / step - 1e-9), math.floor(last / step + 1e-9)
    return [round(step * i, 12) for i in range(low, high + 1)]


def scale_end(top: float, wanted: int = 6) -> float:
    """The end of a scale from 0 that reaches ``top`` and has a tick at its end; 1 where there is nothing to show."""
    if not math.isfinite(top) or top <= 0:
        return 1.0
    step = _round_step(top / wanted)
    return step * math.ceil(top / step - 1e-9)


def _round_step(least: float) -> float:
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= least * (1 - 1e-9))


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


def number_text(value: float, thousands: str = "") -> str:
    """Three significant digits, whole from 100 on, without an exponent where people write none.

    Args:
        value: What is not finite is a dash.
        thousands: Between thousands: ``""``, ``","`` or ``"_"``.
    """
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "–"
    # Of the rounded value: 99.96 becomes 100, not 100.0.
    digits = max(0, 2 - math.floor(math.log10(abs(float(f"{value:.3g}")))))
    return f"{value:{thousands}.{digits}f}" if digits <= 6 else f"{value:.2e}"
