"""Robust mAP against inference time, and which models no other one beats in both."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from prunedeploy.study.report.figure_style import look, new_figure, styled
from prunedeploy.study.statistics.cells import Floats, Study
from prunedeploy.study.statistics.design import TIME_MS, configuration


def pareto_front(time_ms: Floats, accuracy: Floats) -> list[int]:
    """Indices of the points that no other point beats: none is at least as good in both and better in one.

    Args:
        time_ms: ``(N,)``, less is better.
        accuracy: ``(N,)``, more is better.

    Returns:
        Ascending by time. Of equal points all are there.

    Raises:
        ValueError: Lengths differ.
    """
    if len(time_ms) != len(accuracy):
        raise ValueError(f"expected as many times as accuracies, got {len(time_ms)} and {len(accuracy)}")
    front: list[int] = []
    best, best_time = -np.inf, -np.inf
    for index in np.lexsort((-accuracy, time_ms)):
        equal = accuracy[index] == best and time_ms[index] == best_time
        if accuracy[index] > best or equal:
            front.append(int(index))
            best, best_time = accuracy[index], time_ms[index]
    return front


def trade_off_figure(study: Study, names: Sequence[str]) -> Figure:
    """Mean robust mAP against mean inference time, a point per configuration and ratio, with the Pareto front.

    Args:
        study: The data; cells without time or mAP are left out.
        names: Configurations to draw.
    """
    metric = study.map_metric
    points = [
        (name, ratio, times, maps)
        for name in names
        for ratio in study.ratios
        if len(times := study.values(TIME_MS, name, ratio)) and len(maps := study.values(metric, name, ratio))
    ]
    with styled():
        figure = new_figure(8.2, 5.4)
        axis = figure.subplots()
        for name in names:
            own = [(times, maps) for who, _, times, maps in points if who == name]
            style = look(name, study.configurations)
            axis.errorbar(
                [times.mean() for times, _ in own],
                [maps.mean() for _, maps in own],
                [maps.std() for _, maps in own],
                [times.std() for times, _ in own],
                color=style.colour,
                marker=style.marker,
                linestyle=style.line,
                linewidth=1.1,
                elinewidth=0.8,
                markeredgecolor="white",
                markeredgewidth=0.6,
                label=configuration(name).label,
                zorder=3,
            )
        x = np.array([times.mean() for _, _, times, _ in points])
        y = np.array([maps.mean() for *_, maps in points])
        front = pareto_front(x, y)
        axis.plot(
            x[front], y[front], drawstyle="steps-post", color="#999999", linewidth=5, alpha=0.35, zorder=1,
            solid_joinstyle="miter", label="Pareto front",
        )  # fmt: skip
        for index in _apart(x, y, front):
            axis.annotate(
                f"{100 * points[index][1]:g} %", (x[index], y[index]), xytext=(-5, 5), textcoords="offset points",
                ha="right", fontsize=8, color="#333333",
            )  # fmt: skip
        axis.set_xlabel(f"{TIME_MS.axis}, mean" + (f", {study.bench[1]}" if study.bench and study.bench[1] else ""))
        axis.set_ylabel(f"{metric.label}, mean")
        axis.set_title("Robust accuracy against time; percentages are pruning ratios", fontweight="bold", fontsize=11)
        axis.set_xlim(left=0)
        axis.set_ylim(bottom=0)
        axis.margins(0.06)
        figure.legend(loc="outside lower center", ncols=3, handlelength=3.2, fontsize=9)
    return figure


def _apart(x: Floats, y: Floats, front: Sequence[int]) -> list[int]:
    """Those points of the front whose labels do not lie on an earlier one's."""
    chosen: list[int] = []
    wide, high = 0.06 * x.max(initial=0), 0.035 * y.max(initial=0)
    for index in front:
        if all(abs(x[index] - x[other]) > wide or abs(y[index] - y[other]) > high for other in chosen):
            chosen.append(index)
    return chosen
