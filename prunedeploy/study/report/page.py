"""``report.html`` of a study: claims, figures and tables in one file that needs nothing else.

Beside it ``tables/`` holds every table as CSV and LaTeX and ``figures/`` every figure as PNG and SVG. Nothing here
imports torch, and every sentence with a number in it is computed from the rows.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from prunedeploy.study.report.claims import claim_tiles, claims_table
from prunedeploy.study.report.plots import Plot, all_plots, sample_plots
from prunedeploy.study.report.samples import FOLDER, SampleSet
from prunedeploy.study.report.table_formats import to_csv, to_html, to_latex
from prunedeploy.study.rows.rows import Row
from prunedeploy.study.statistics.caveats import caveats, row_name
from prunedeploy.study.statistics.cells import Study, study_from_rows
from prunedeploy.study.statistics.claims import answer_claims
from prunedeploy.study.statistics.contrasts import all_contrasts
from prunedeploy.study.statistics.design import configuration
from prunedeploy.study.statistics.tables import Table, all_tables
from prunedeploy_engines.files import write_atomically
from prunedeploy_engines.markup.html import Html, Node, join, tag
from prunedeploy_engines.markup.page import bullets, details, document, note, sections

EXTRA_STYLE = """
.plot img { display: block; width: 100%; height: auto; background: #fff; border: 1px solid var(--line);
  border-radius: 8px; padding: .6rem; }
figure.plot, figure.table { margin: 1.25rem 0 1.75rem; }
caption { text-align: left; font-weight: 600; padding: .3rem 0; }
figure.table table { font-size: .82rem; } figure.table td, figure.table th { padding: .26rem .5rem; }
figure.table td.number { white-space: nowrap; }
figure[id^=comparisons] table { font-size: .74rem; } figure[id^=comparisons] :is(td, th) { padding: .2rem .3rem; }
figure[id^=comparisons] td:last-child { min-width: 7rem; line-height: 1.3; }
tr.summary > * { border-top: 2px solid var(--line); }
.claims thead th { white-space: normal; } .claims tr:first-child > * { border-bottom: 0; padding-top: .8rem; }
.claims tbody th { font-weight: 600; width: 46%; } .claims tbody small { font-weight: 400; }
.claims td.wide { padding-bottom: .8rem; font-size: .95em; } .claims td.wide div { max-width: 56rem; }
.claims thead tr:first-child > * { border-bottom: 2px solid var(--line); }
.claims details, .claims ul { margin: .3rem 0 0; max-width: none; } .claims li { margin: .15rem 0; }
.verdict { white-space: nowrap; } .muted { color: var(--soft); font-weight: 600; }
figure.plot > .scroll { margin: 0 0 .4rem; } figcaption { max-width: 56rem; }
@media (max-width: 40rem) {
  .plot img { min-width: 42rem; } .plot.tall img { min-width: 34rem; } figcaption { font-size: .88rem; }
  figure.table :is(tbody, thead) th:first-child { position: sticky; left: 0; background: var(--paper); }
  .claims thead th { font-size: .74rem; }
}
@media print {
  .plot img { width: auto; max-width: 100% !important; min-width: 0; margin: 0 auto; border: 0; padding: 0; }
  .claims tbody { break-inside: avoid; } .plot.tall img { max-height: 21.5cm; } figcaption { font-size: 9pt; }
  figure.table table { font-size: 7.5pt; } figure[id^=comparisons] table { font-size: 6pt; }
}
"""
P_TABLES = ("I", "II", "III", "IV")


@dataclass(frozen=True)
class ReportFiles:
    """What `write_report` has written."""

    page: Path
    tables: tuple[Path, ...]
    figures: tuple[Path, ...]


def write_report(
    rows: Iterable[Row],
    folder: Path,
    *,
    title: str = "a study",
    machine: str | None = None,
    compare_paper: bool = False,
    notes: Sequence[str] = (),
    samples: SampleSet | None = None,
) -> ReportFiles:
    """Write ``report.html``, ``tables/`` and ``figures/`` of a study.

    Args:
        rows: The rows of one sweep.
        folder: Where to; files of an earlier report are replaced.
        title: Title of the page.
        machine: Whose times to show; None: the one with the most rows.
        compare_paper: Whether the paper's means are drawn and its numbers answer the claims beside ours.
        notes: Sentences about the rows' reading, shown on the page.
        samples: The same sweep's samples, with its pictures in ``samples/`` of the folder; None: there are none.

    Raises:
        ConfigError: There is no row to report on, or none with a time of that machine.
        StoreError: A file cannot be written.
    """
    study = study_from_rows(rows, machine)
    contrasts = all_contrasts(study)
    tables = all_tables(study, contrasts)
    plots = [*all_plots(study, compare_paper), *sample_plots(study, samples, folder / FOLDER)]
    page = folder / "report.html"
    text = _page(study, title, tables, plots, caveats(study, contrasts), compare_paper, notes)
    written = {
        folder / "tables" / f"{table.name}{suffix}": write(table).encode("utf-8")
        for table in tables
        for suffix, write in ((".csv", to_csv), (".tex", to_latex))
    }
    drawn = {
        folder / "figures" / f"{plot.name}{suffix}": data
        for plot in plots
        for suffix, data in ((".png", plot.png), (".svg", plot.svg))
    }
    for path, content in (written | drawn | {page: text.encode("utf-8")}).items():
        write_atomically(path, content)
    return ReportFiles(page, tuple(written), tuple(drawn))


def _page(
    study: Study,
    title: str,
    tables: Sequence[Table],
    plots: Sequence[Plot],
    limits: Sequence[str],
    compare_paper: bool,
    notes: Sequence[str],
) -> str:
    answers = answer_claims(study)
    parts: list[tuple[str, str, Node]] = [
        ("claims", "What the paper claims, and what these rows say", claims_table(study, answers, compare_paper)),
        ("limits", "What these numbers do not say", bullets(limits)),
        ("figures", "Figures", [_plot(plot) for plot in plots if not plot.has_photographs]),
        ("samples", "Sample images", _samples(plots)),
        ("tests", "Tables I to IV: tests", [to_html(table) for table in tables if table.number in P_TABLES]),
        ("everything", "Every number", _folded(tables)),
        ("method", "How it was computed", _method()),
    ]
    if study.failed or study.missing or notes:
        parts.append(("missing", "What is missing", _missing(study, notes)))
    name = f"prunedeploy: {title}"
    header = tag("header", tag("h1", name), tag("p", _about(study), cls="about"))
    return document(name, header, claim_tiles(answers), sections(parts), style=EXTRA_STYLE)


def _about(study: Study) -> str:
    done = {row.cell for row in study.rows if row.error is None and row.configuration in study.configurations}
    sizes = f"{len(study.configurations)} configurations x {len(study.ratios)} ratios x {len(study.runs)} runs"
    parts = [f"{len(done)} models: {sizes}"]
    if study.failed:
        parts.append(f"{len(study.failed)} failed")
    if study.missing:
        parts.append(f"{len(study.missing)} not done")
    parts.append(f"robust mAP is {study.map_metric.label}")
    if study.bench is not None:
        machine, runtime = study.bench
        names = [row.machine_name for row in study.rows if row.machine == machine and row.machine_name]
        parts.append(f"times from {names[0] if names else machine}" + (f" with {runtime}" if runtime else ""))
    else:
        parts.append("no times")
    return f"{'; '.join(parts)}. Rows of configuration {study.rows[0].configuration_hash[:12]}."


def _plot(plot: Plot) -> Html:
    form, content = ("jpeg", plot.jpeg) if plot.has_photographs else ("svg+xml", plot.svg)
    data = base64.b64encode(content).decode("ascii")
    # Letters of all figures are about as large as those of the page: a small figure is not blown up to its width.
    widest = plot.figure.get_figwidth() * (8 if plot.has_photographs else 6.7)
    source = f"data:image/{form};base64,{data}"
    image = tag("img", src=source, alt=plot.caption, style=f"max-width: {widest:.1f}rem")
    kind = "plot tall" if plot.has_photographs else "plot"
    return tag("figure", tag("div", image, cls="scroll"), tag("figcaption", plot.caption), cls=kind, id=plot.name)


def _samples(plots: Sequence[Plot]) -> Node:
    pictures = [plot for plot in plots if plot.has_photographs]
    more = sum(not plot.on_page for plot in pictures)
    if not pictures:
        return note(
            "Figure 5 is left out: there are no sample images beside these rows. `prunedeploy sweep` makes them as "
            "long as its store has the networks; rows do not need them."
        )
    shown = [_plot(plot) for plot in pictures if plot.on_page]
    return [*shown, note(f"{more} more are in the folder figures.") if more else None]


def _folded(tables: Sequence[Table]) -> list[Html]:
    rest = [table for table in tables if table.number not in P_TABLES]
    return [details(table.caption, to_html(table)) for table in rest]


def _method() -> Html:
    lines = (
        "One-way ANOVA (scipy.stats.f_oneway) of two configurations at one ratio, a value per run; with two groups its "
        "F is the square of Student's t.",
        "What it assumes is checked by Levene's test around the median (equal variances) and Shapiro's in either group "
        "(normal distribution). Where one has p < 0.05, or a group has fewer than three runs, Welch's test is read.",
        "Effect sizes: eta squared, the share of the sum of squares between the groups; Hedges' g, the difference in "
        "pooled standard deviations, corrected for small groups. Intervals of differences are Welch's, at 95 %.",
        "Holm's correction is over all tests of Tables I to IV together; it holds for tests that depend on each other.",
        "A group with one run, or two groups in which no run differs from its group, are not tested. A cell without "
        "runs is a dash.",
        "Reference: Liu, Efficient and Adversarially Robust Object Detection, Western University; its 900 numbers come "
        "with prunedeploy.",
    )
    return bullets(lines)


def _missing(study: Study, notes: Sequence[str]) -> Html:
    failed = [f"{row_name(row)}: {row.error}" for row in study.failed]
    missing = [f"{configuration(name).label} at {100 * ratio:g}%, run {run}" for name, ratio, run in study.missing]
    return join(
        *(tag("p", one) for one in notes),
        [tag("h3", "Failed"), bullets(failed)] if failed else None,
        details(f"{len(missing)} models not done", bullets(missing)) if missing else None,
    )
