"""Robust mAP against inference time, and which models no other one beats in both."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from prunedeploy.study.report.figure_style import look, new_figure, styled
from prunedeploy.study.statistics.cells import Floats, Study
from prunedeploy.study.statistics.design import TIME_MS, configuration
from prunedeploy_engines.bench.pictures.front import pareto_front


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
            axis.errorbar(
                [times.mean() for times, _ in own],
                [maps.mean() for _, maps in own],
                [maps.std() for _, maps in own],
                [times.std() for times, _ in own],
                **look(name, study.configurations).line_and_marker,
                linewidth=1.1,
                elinewidth=0.8,
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
