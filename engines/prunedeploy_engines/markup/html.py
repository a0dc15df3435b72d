"""HTML by construction: what is not markup is text, and text is escaped."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

VOID = frozenset({"br", "col", "hr", "img", "link", "meta"})
_ILLEGAL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")


class Html(str):
    """Markup. Any other string is text."""

    __slots__ = ()


Node = str | Iterable["Node"] | None
"""Markup, text, nothing, or several of them."""


def join(*nodes: Node) -> Html:
    """Put nodes one after the other."""
    return Html("".join(_markup(node) for node in nodes))


def tag(name: str, /, *children: Node, **attributes: str | float | None) -> Html:
    """Build an element, e.g. ``tag("td", "a < b", cls="number")``.

    Args:
        name: Name of the element.
        *children: Text is escaped, markup is not.
        **attributes: ``cls`` is ``class``; in other names ``_`` is ``-``; None leaves the attribute out;
            floats are rounded to two decimals, as coordinates of pictures are.
    """
    written = "".join(
        f' {"class" if key == "cls" else key.replace("_", "-")}="{_attribute(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID:
        return Html(f"<{name}{written}>")
    return Html(f"<{name}{written}>{join(*children)}</{name}>")


def text(value: object) -> Html:
    """Escape; characters that no HTML file may hold become the replacement character."""
    return Html(html.escape(_ILLEGAL.sub("\N{REPLACEMENT CHARACTER}", str(value)), quote=True))


def _markup(node: Node) -> str:
    if node is None:
        return ""
    if isinstance(node, Html):
        return node
    if isinstance(node, str):
        return text(node)
    return "".join(_markup(child) for child in node)


def _attribute(value: str | float) -> str:
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return text(value)
