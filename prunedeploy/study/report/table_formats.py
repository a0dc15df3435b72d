"""A table as HTML, CSV and LaTeX."""

from __future__ import annotations

import csv
import io

from prunedeploy.study.statistics.tables import Cell, Table
from prunedeploy_engines.markup.html import Html, join, tag

MANY_COLUMNS = 12
"""With more, LaTeX gets smaller letters."""
SUMMARIES = ("max", "min", "avg", "std dev")
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "–": "--",
    "²": r"\textsuperscript{2}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}


def to_csv(table: Table) -> str:
    """Unrounded values, one line per row, headings first; what is not known is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.head)
    for label, cells in table.rows:
        writer.writerow([label, *("" if cell.value is None else cell.value for cell in cells)])
    return text.getvalue()


def to_latex(table: Table) -> str:
    """A ``table`` environment that needs no package; what stands out is bold."""
    # LaTeX numbers tables itself.
    caption = f"{table.title} (as Table {table.number} of the paper)" if table.number else table.title
    columns = "l" + "".join("l" if _is_text(table, i) else "r" for i in range(len(table.head) - 1))
    lines = [
        r"\begin{table}",
        rf"\caption{{{latex_text(caption)}}}",
        rf"\label{{tab:{table.name}}}",
        r"\centering",
        *([r"\scriptsize\setlength{\tabcolsep}{2pt}"] if len(table.head) > MANY_COLUMNS else []),
        rf"\begin{{tabular}}{{{columns}}}",
        r"\hline",
        " & ".join(latex_text(heading) for heading in table.head) + r" \\",
        r"\hline",
    ]
    for label, cells in table.rows:
        if label == SUMMARIES[0]:
            lines.append(r"\hline")
        texts = [latex_text(cell.text) for cell in cells]
        bold = [rf"\textbf{{{t}}}" if cell.strong else t for cell, t in zip(cells, texts, strict=True)]
        lines.append(" & ".join([latex_text(label), *bold]) + r" \\")
    lines += [r"\hline", r"\end{tabular}"]
    if table.note:
        lines += [rf"\par\smallskip\footnotesize {latex_text(table.note)}"]
    return "\n".join([*lines, r"\end{table}", ""])


def latex_text(text: str) -> str:
    """Escape what LaTeX would take for a command."""
    return "".join(_LATEX.get(character, character) for character in text)


def to_html(table: Table) -> Html:
    """A ``figure`` with the table, its caption and its note."""
    kinds = [None, *("number" if not _is_text(table, i) else None for i in range(len(table.head) - 1))]
    head = tag("tr", *(tag("th", name, cls=kind, scope="col") for name, kind in zip(table.head, kinds, strict=True)))
    body = [_html_row(label, cells, kinds[1:]) for label, cells in table.rows]
    whole = tag("table", tag("caption", table.caption), tag("thead", head), tag("tbody", *body))
    note = tag("figcaption", table.note) if table.note else None
    return tag("figure", tag("div", whole, cls="scroll"), note, cls="table", id=table.name)


def _html_row(label: str, cells: tuple[Cell, ...], kinds: list[str | None]) -> Html:
    shown = []
    for cell, kind in zip(cells, kinds, strict=True):
        content = tag("b", cell.text) if cell.strong else cell.text
        shown.append(tag("td", join(content), cls=kind, title=cell.note or None))
    first = "summary" if label == SUMMARIES[0] else None
    return tag("tr", tag("th", label, scope="row"), *shown, cls=first)


def _is_text(table: Table, column: int) -> bool:
    """Whether the cells of a column, row labels not counted, hold words."""
    return any(isinstance(cells[column].value, str) and not cells[column].text.isdigit() for _, cells in table.rows)
