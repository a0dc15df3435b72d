"""Numbers as people read them. What is not known is a dash that says why, never "None" or "nan"."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from prunedeploy_engines.markup.html import Html, join, tag, text
from prunedeploy_engines.markup.scales import number_text

NOT_MEASURED = "not measured"


def number(value: object) -> float | None:
    """The value as a finite float; None if it is not one."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def look_up(document: object, *keys: str) -> Any:
    """Follow keys into nested mappings; None where one is missing."""
    for key in keys:
        if not isinstance(document, Mapping):
            return None
        document = document.get(key)
    return document


def mapping(value: object) -> Mapping[str, Any]:
    """The value if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def rows_of(value: object) -> list[Mapping[str, Any]]:
    """The mappings in a list; empty if it is no list."""
    return [row for row in value if isinstance(row, Mapping)] if isinstance(value, list) else []


def dash(why: str = NOT_MEASURED) -> Html:
    """Stand for a value that is not known."""
    return tag("span", "–", cls="unknown", title=why, aria_label=why)


def known(value: object, words: Callable[[float], str], why: str = NOT_MEASURED) -> Html:
    """A number in words; a dash where it is not known."""
    found = number(value)
    return dash(why) if found is None else text(words(found))


def count(value: object) -> Html:
    """A whole number, e.g. 62,001,757."""
    return known(value, "{:,.0f}".format)


def fixed(value: object, digits: int, why: str = NOT_MEASURED) -> Html:
    """A number with as many decimals as said."""
    return known(value, f"{{:.{digits}f}}".format, why)


def map_text(value: float) -> str:
    """A mAP or a rate in [0, 1] with three decimals, or more where three would hide it."""
    if value == 0 or abs(value) >= 0.0005:
        return f"{value:.3f}"
    return f"{value:.4f}" if abs(value) >= 0.00005 else "< 0.0001"


def three_digits(value: float) -> str:
    """A number with three significant digits, whole from 100 on."""
    return number_text(value, ",")


def milliseconds(value: object, why: str = NOT_MEASURED) -> Html:
    """Milliseconds with three significant digits."""
    return known(value, lambda found: f"{three_digits(found)} ms", why)


def small(value: object) -> Html:
    """A number of which the size matters, e.g. 1.3e-06."""
    found = number(value)
    return dash() if found is None else tag("span", "0" if found == 0 else f"{found:.1e}", cls="whole")


def scaled(value: object, unit: str = "", why: str = NOT_MEASURED) -> Html:
    """A large number with a decimal prefix, e.g. 32.8 G; the exact one appears when pointed at."""
    found = number(value)
    if found is None:
        return dash(why)
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(found) >= factor:
            short = f"{three_digits(found / factor)} {prefix}{unit}"
            return tag("span", short, title=f"{found:,.0f} {unit}".strip())
    return text(f"{found:,.0f} {unit}".strip())


def percent(value: object, why: str = NOT_MEASURED) -> Html:
    """A fraction as a percentage."""
    return known(value, lambda found: f"{100 * found:.1f} %", why)


def interval(value: object) -> tuple[float, float] | None:
    """The two ends of a ``[low, high]``; None if either is not known."""
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        return None
    low, high = number(value[0]), number(value[1])
    return None if low is None or high is None else (low, high)


def map_cell(value: object, ends: object = None, why: str = NOT_MEASURED) -> Html:
    """A mAP with its bootstrap interval below it."""
    between = interval(ends)
    if number(value) is None or between is None:
        return known(value, map_text, why)
    low, high = map(map_text, between)
    return join(known(value, map_text), tag("small", f"{low} to {high}", cls="interval"))


def plain(value: object) -> Html:
    """Any JSON value, on one line."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return dash("not known")
    if isinstance(value, bool):
        return text("yes" if value else "no")
    if isinstance(value, float):
        return text(f"{value:.6g}" if abs(value) < 1e15 else f"{value:.6e}")
    if isinstance(value, (list, tuple)):
        return _listed(plain(item) for item in value)
    if isinstance(value, Mapping):
        return _listed(join(f"{key} ", plain(item)) for key, item in value.items())
    return text(value) if value != "" else dash("empty")


def _listed(items: Iterable[Html]) -> Html:
    return Html(", ".join(items) or "none")


def flattened(document: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested mappings with dotted keys."""
    for key, value in document.items():
        if isinstance(value, Mapping) and value:
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def without_nan(value: object) -> Any:
    """The same JSON value with null for NaN and infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return value if isinstance(value, (str, int)) or value is None else str(value)
