"""Tables I to XIV of the paper and the comparisons behind I to IV, as data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from prunedeploy.study.statistics.anova import ALPHA
from prunedeploy.study.statistics.cells import Study
from prunedeploy.study.statistics.contrasts import Contrast
from prunedeploy.study.statistics.design import (
    COLOUR_PAIRS,
    GREY_PAIRS,
    PAPER_CONFIGURATIONS,
    TIME_MS,
    Metric,
    Pair,
    configuration,
)

RAW_MAP_NUMBERS = dict(zip(PAPER_CONFIGURATIONS, ("V", "VI", "VII", "VIII", "IX"), strict=True))
RAW_TIME_NUMBERS = dict(zip(PAPER_CONFIGURATIONS, ("X", "XI", "XII", "XIII", "XIV"), strict=True))


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: For people.
        value: For machines, unrounded; None where nothing is known.
        note: What to know about it.
        strong: Whether it stands out.
    """

    text: str
    value: float | str | None = None
    note: str = ""
    strong: bool = False


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: Name of its files, e.g. ``table-I``.
        number: The paper's, e.g. ``I``; empty for tables that the paper does not have.
        title: Without the number.
        head: Column headings, that of the row labels first.
        rows: Label and cells, one fewer than headings.
        note: How to read it.
    """

    name: str
    number: str
    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    note: str = ""

    @property
    def caption(self) -> str:
        """Title, with the number if there is one."""
        return f"Table {self.number}: {self.title}" if self.number else self.title


def percent(ratio: float) -> str:
    """A ratio as the paper's column headings have it, e.g. ``25%``."""
    return f"{100 * ratio:g}%"


def all_tables(study: Study, contrasts: Sequence[Contrast]) -> tuple[Table, ...]:
    """Every table for which there are rows: I to IV, the comparisons behind them, then V to XIV."""
    p_tables = [
        _p_table(number, metric, pairs, study, contrasts)
        for number, metric, pairs in (
            ("I", study.map_metric, COLOUR_PAIRS),
            ("II", TIME_MS, COLOUR_PAIRS),
            ("III", study.map_metric, GREY_PAIRS),
            ("IV", TIME_MS, GREY_PAIRS),
        )
    ]
    details = [_detail_table(metric, contrasts) for metric in (study.map_metric, TIME_MS)]
    raw = [
        raw_table(study, metric, name, numbers.get(name, ""))
        for metric, numbers in ((study.map_metric, RAW_MAP_NUMBERS), (TIME_MS, RAW_TIME_NUMBERS))
        if study.has(metric)
        for name in study.configurations
    ]
    return tuple(table for table in [*p_tables, *details, *raw] if table.rows)


def raw_table(study: Study, metric: Metric, name: str, number: str = "") -> Table:
    """One configuration's values: a row per run, then maximum, minimum, mean and population standard deviation."""
    runs = {run for ratio in study.ratios for run in study.by_run(metric, name, ratio)}
    everything = [value for ratio in study.ratios for value in study.values(metric, name, ratio)]
    plain = f".{metric.digits(everything)}f"
    rows = [
        (f"run {run}", tuple(_cell(study.by_run(metric, name, ratio).get(run), plain) for ratio in study.ratios))
        for run in sorted(runs)
    ]
    summaries: tuple[tuple[str, Callable[..., float], str], ...] = (
        ("max", np.max, plain),
        ("min", np.min, plain),
        ("avg", np.mean, plain),
        ("std dev", np.std, ".1e"),
    )
    for label, summary, form in summaries if runs else ():
        groups = (study.values(metric, name, ratio) for ratio in study.ratios)
        rows.append((label, tuple(_cell(float(summary(g)) if len(g) else None, form) for g in groups)))
    kind = "Time" if metric.is_time else "mAP"
    head = ("Pruning ratio", *(percent(ratio) for ratio in study.ratios))
    title = f"{configuration(name).caption} {kind}"
    unit = f"{metric.axis}." if metric.unit else f"{metric.label}."
    note = f"{unit} The standard deviation is the population's (divided by n), as the paper's."
    return Table(f"table-{number}" if number else f"raw-{name}-{kind.lower()}", number, title, head, tuple(rows), note)


def _p_table(number: str, metric: Metric, pairs: Sequence[Pair], study: Study, contrasts: Iterable[Contrast]) -> Table:
    found = {p.label: tuple(_p_cell(c) for c in contrasts if c.metric == metric and c.pair == p) for p in pairs}
    rows = tuple((label, cells) for label, cells in found.items() if cells)
    what = "inference time" if metric.is_time else "mAP"
    note = (
        "Plain p-values of one-way ANOVA, as the paper's. Bold: below 0.05 after Holm's correction over all tests of "
        "Tables I to IV, read from Welch's test where * says that ANOVA's assumptions fail."
    )
    head = ("Pruning ratio", *(percent(ratio) for ratio in study.ratios))
    return Table(f"table-{number}", number, f"p-values from ANOVA tests on {what}", head, rows, note)


def _p_cell(contrast: Contrast) -> Cell:
    result = contrast.comparison
    if result.p_anova is None:
        return Cell("–", None, result.remark)
    star = "*" if result.test == "Welch" else ""
    notes = [f"{result.test} is read", result.remark, f"Holm {_p(contrast.p_holm)}"]
    return Cell(f"{_p(result.p_anova)}{star}", result.p_anova, "; ".join(n for n in notes if n), contrast.significant)


def _detail_table(metric: Metric, contrasts: Iterable[Contrast]) -> Table:
    found = [(c.pair.label, _detail_cells(c)) for c in contrasts if c.metric == metric]
    head = ("Comparison", *(found[0][1] if found else ()))
    rows = tuple((label, tuple(cells.values())) for label, cells in found)
    note = (
        f"Differences of means in {metric.axis}, first minus second, with Welch's interval, which is not corrected for "
        f"many comparisons. Read: whose p-value counts; Welch's where Levene's or Shapiro's is below {ALPHA:g}. "
        "p Holm: that one, corrected over all tests of Tables I to IV. p paired: of Student's paired test, where both "
        "configurations start from the same network in every run; it is not read."
    )
    kind = "time" if metric.is_time else "map"
    return Table(f"comparisons-{kind}", "", f"All comparisons: {metric.label}", head, rows, note)


def _detail_cells(contrast: Contrast) -> dict[str, Cell]:
    """By column heading."""
    result = contrast.comparison
    decimals = f".{contrast.metric.decimals + 1 + contrast.metric.is_time}f"
    n = str(result.n_a) if result.n_a == result.n_b else f"{result.n_a} / {result.n_b}"
    return {
        "Ratio": Cell(percent(contrast.ratio), contrast.ratio),
        "n": Cell(n, n),
        "Difference": _cell(result.difference, f"+{decimals}"),
        "95 % from": _cell(result.low, f"+{decimals}"),
        "to": _cell(result.high, f"+{decimals}"),
        "p ANOVA": _cell(result.p_anova, ".2e"),
        "p Welch": _cell(result.p_welch, ".2e"),
        "Read": Cell(result.test or "–", result.test),
        "p Holm": Cell(_p(contrast.p_holm), contrast.p_holm, "", contrast.significant),
        "p paired": _cell(contrast.p_paired, ".2e"),
        "eta²": _cell(result.eta_squared, ".3f"),
        "Hedges' g": _cell(result.hedges_g, "+.2f"),
        "p Levene": _cell(result.p_levene, ".3f"),
        "p Shapiro": _cell(result.p_shapiro, ".3f"),
        "Remark": Cell(result.remark, result.remark),
    }


def _cell(value: float | None, form: str) -> Cell:
    return Cell("–", None, "not there") if value is None else Cell(format(value, form), value)


def _p(value: float | None) -> str:
    return "–" if value is None else f"{value:.2e}"
