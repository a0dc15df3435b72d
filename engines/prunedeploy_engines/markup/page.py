"""Pages of HTML that need nothing else: one style, no scripts, nothing that is loaded from anywhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prunedeploy_engines.markup.html import Html, Node, join, tag
from prunedeploy_engines.markup.style import STYLE


def document(title: str, *body: Node, style: str = "") -> str:
    """The text of an HTML file; ``style`` is added to the style of all pages."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Html(STYLE + style)),
    )
    return f"<!DOCTYPE html>\n{tag('html', head, tag('body', *body), lang='en')}\n"


def sections(parts: Sequence[tuple[str, str, Node]]) -> Html:
    """Sections, each of an anchor, a title and content, below links to them."""
    links = (join(tag("a", title, href=f"#{anchor}"), " ") for anchor, title, _ in parts)
    whole = (tag("section", tag("h2", title), content, id=anchor) for anchor, title, content in parts)
    return join(tag("nav", *links), tag("main", *whole))


def tiles(figures: Iterable[tuple[str, str, str]]) -> Html:
    """The figures that matter most: a name, the figure in large letters, and more about it."""
    shown = (
        tag("div", tag("span", name, cls="name"), tag("b", figure), tag("span", more), cls="tile")
        for name, figure, more in figures
    )
    return tag("div", *shown, cls="tiles")


def note(*content: Node) -> Html:
    """A paragraph in small letters."""
    return tag("p", *content, cls="note")


def bullets(lines: Iterable[Node]) -> Html:
    """A list of lines."""
    return tag("ul", *(tag("li", line) for line in lines), cls="plain")


def details(summary: Node, *content: Node) -> Html:
    """Something that is unfolded by a click on its summary."""
    return tag("details", tag("summary", summary), *content)


def table(head: Sequence[Node], rows: Iterable[Html | Sequence[Node]], *, numbers: Iterable[int] = ()) -> Html:
    """A table that scrolls sideways where the page is narrow.

    Args:
        head: Headings of the columns.
        rows: Cells, or a whole row as markup.
        numbers: Columns set flush right.
    """
    kinds = dict.fromkeys(numbers, "number")
    headings = (tag("th", one, scope="col", cls=kinds.get(i)) for i, one in enumerate(head))
    body = [
        row if isinstance(row, Html) else tag("tr", *(tag("td", one, cls=kinds.get(i)) for i, one in enumerate(row)))
        for row in rows
    ]
    whole = tag("table", tag("thead", tag("tr", *headings)), tag("tbody", *body))
    return tag("div", whole, cls="scroll", tabindex="0")


def number_cell(content: Node) -> Html:
    """A cell set flush right."""
    return tag("td", content, cls="number")
