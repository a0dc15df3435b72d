"""Figures over the pruning ratio: the paper's 3 and 4, and what is left relative to ratio 0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from prunedeploy.study.report.figure_style import look, new_figure, styled
from prunedeploy.study.statistics.cells import Floats, Study
from prunedeploy.study.statistics.design import ORIGINAL, TIME_MS, Metric, configuration

DODGE = 0.35
"""Percentage points between the dots of neighbouring configurations, which would hide each other."""
THIN_AND_HOLLOW: Any = {"linestyle": "-", "linewidth": 0.8, "markersize": 4.5, "markerfacecolor": "white"}


def curves_figure(study: Study, names: Sequence[str], title: str, paper: Study | None = None) -> Figure:
    """Robust mAP and inference time against the pruning ratio, side by side: the paper's Figures 3 and 4.

    A dot per run, the curve through the means, bars of one standard deviation (population), a dashed line for the
    original network.

    Args:
        study: The data.
        names: Configurations to draw.
        title: Above both.
        paper: The paper's data, whose means are overlaid in mAP; None: not. Its times are of another machine, so
            they are only in `relative_figure`.
    """
    with styled():
        figure, axes = _two_panels(title)
        handles = [_handle(name, study) for name in names]
        originals = False
        for axis, metric, letter in zip(axes, (study.map_metric, TIME_MS), "ab", strict=True):
            for place, name in enumerate(names):
                values = {ratio: study.values(metric, name, ratio) for ratio in study.ratios}
                _curve(axis, study, name, values, place, len(names))
            originals |= _original(axis, study, metric)
            axis.set_title(f"({letter}) {metric.label}" + (_runtime(study) if metric.is_time else ""))
            axis.set_ylabel(f"{metric.unit} per image" if metric.is_time else "mAP")
            if paper is not None and not metric.is_time:
                for name in names:
                    values = {ratio: paper.values(paper.map_metric, name, ratio) for ratio in paper.ratios}
                    _paper_means(axis, paper, name, values)
            _finish(axis, study, study.has(metric))
        if originals:
            handles.append(Line2D([], [], color="black", linestyle="--", linewidth=1.1, label="original, not pruned"))
        _legend(figure, handles, paper)
    return figure


def relative_figure(study: Study, names: Sequence[str], paper: Study | None = None) -> Figure:
    """Robust mAP and time of every run relative to the same run at ratio 0, so that data sets and machines compare.

    Args:
        study: The data.
        names: Configurations to draw.
        paper: The paper's data, drawn as thin lines with hollow markers; None: not.
    """
    with styled():
        figure, axes = _two_panels("Relative to ratio 0")
        titles = "(a) robust mAP retained", "(b) inference time"
        for axis, metric, title in zip(axes, (study.map_metric, TIME_MS), titles, strict=True):
            axis.axhline(1, color="#888888", linewidth=0.8)
            for place, name in enumerate(names):
                _curve(axis, study, name, relative_to_zero(study, metric, name), place, len(names))
                if paper is not None:
                    of_paper = metric if metric.is_time else paper.map_metric
                    _paper_means(axis, paper, name, relative_to_zero(paper, of_paper, name))
            axis.set_title(title)
            axis.set_ylabel("of the same run at ratio 0")
            _finish(axis, study, study.has(metric))
        _legend(figure, [_handle(name, study) for name in names], paper)
    return figure


def _two_panels(title: str) -> tuple[Figure, Sequence[Axes]]:
    figure = new_figure(10.5, 4.9)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=11)
    return figure, figure.subplots(1, 2)


def relative_to_zero(study: Study, metric: Metric, name: str) -> dict[float, Floats]:
    """Values of each run divided by the same run's at ratio 0, ``(runs,)`` by ratio; runs without one are left out."""
    base = study.by_run(metric, name, 0.0)
    return {
        ratio: np.array([v / base[run] for run, v in study.by_run(metric, name, ratio).items() if base.get(run)])
        for ratio in study.ratios
    }


def _curve(axis: Axes, study: Study, name: str, values: Mapping[float, Floats], place: int, count: int) -> None:
    """Dots per run, means, and bars of one standard deviation."""
    style = look(name, study.configurations)
    shift = DODGE * (place - (count - 1) / 2)
    known = {ratio: group for ratio, group in values.items() if len(group)}
    if not known:
        return
    x = np.array([100 * ratio for ratio in known])
    dots = np.repeat(x, [len(group) for group in known.values()]) + shift
    axis.scatter(dots, np.concatenate(list(known.values())), s=7, color=style.colour, alpha=0.4, lw=0, zorder=2)
    axis.errorbar(
        x + shift,
        [group.mean() for group in known.values()],
        [group.std() for group in known.values()],
        **style.line_and_marker,
        capsize=2.2,
        elinewidth=0.9,
        zorder=3,
    )


def _paper_means(axis: Axes, paper: Study, name: str, values: Mapping[float, Floats]) -> None:
    style = look(name, paper.configurations)
    known = {100 * ratio: group.mean() for ratio, group in values.items() if len(group)}
    means = list(known.values())
    axis.plot(list(known), means, color=style.colour, marker=style.marker, alpha=0.75, zorder=1.5, **THIN_AND_HOLLOW)


def _original(axis: Axes, study: Study, metric: Metric) -> bool:
    values = study.values(metric, ORIGINAL, 0.0)
    if len(values):
        axis.axhline(float(values.mean()), color="black", linestyle="--", linewidth=1.1, zorder=1)
    return bool(len(values))


def _runtime(study: Study) -> str:
    return f", {study.bench[1]}" if study.bench is not None and study.bench[1] else ""


def _finish(axis: Axes, study: Study, measured: bool) -> None:
    if not measured:
        axis.text(0.5, 0.5, "not measured", transform=axis.transAxes, ha="center", color="#777777")
    ticks = [100 * ratio for ratio in study.ratios]
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=8)
    axis.set_xlim(-3, 102)
    axis.set_xlabel("pruning ratio (% of the weights)")
    axis.set_ylim(bottom=0)
    axis.grid(axis="x", visible=False)


def _handle(name: str, study: Study) -> Line2D:
    return Line2D([], [], **look(name, study.configurations).line_and_marker, label=configuration(name).label)


def _legend(figure: Figure, handles: Sequence[Line2D], paper: Study | None) -> None:
    entries = list(handles)
    if paper is not None:
        entries.append(Line2D([], [], color="#555555", marker="o", label="paper's means", **THIN_AND_HOLLOW))
    columns = len(entries) if len(entries) <= 5 else -(-len(entries) // 2)
    figure.legend(handles=entries, loc="outside lower center", ncols=columns, handlelength=3.2, fontsize=9)
