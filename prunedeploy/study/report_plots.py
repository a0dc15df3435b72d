"""The figures of a report."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from matplotlib.figure import Figure

from prunedeploy.study.cells import Study, study_from_rows
from prunedeploy.study.curve_figures import curves_figure, relative_figure
from prunedeploy.study.design import GREY_SUFFIX, MAP_PGD_CONF50, TIME_MS, configuration
from prunedeploy.study.figure_style import figure_bytes
from prunedeploy.study.paper import paper_rows
from prunedeploy.study.trade_off_figure import trade_off_figure


@dataclass(frozen=True)
class Plot:
    """A figure with its words.

    Attributes:
        name: Of its files.
        caption: What it shows.
        figure: Itself.
    """

    name: str
    caption: str
    figure: Figure

    @cached_property
    def svg(self) -> bytes:
        """As an SVG file."""
        return figure_bytes(self.figure, "svg")

    @cached_property
    def png(self) -> bytes:
        """As a PNG file."""
        return figure_bytes(self.figure, "png")


def all_plots(study: Study, compare_paper: bool) -> list[Plot]:
    """Every figure for which the study has rows."""
    paper = study_from_rows(paper_rows()) if compare_paper else None
    # The paper drops detections below a score of 0.5, so where it is drawn ours is shown at that threshold too.
    at_its_threshold = compare_paper and study.has(MAP_PGD_CONF50)
    curves = replace(study, map_metric=MAP_PGD_CONF50) if at_its_threshold else study
    names = study.configurations
    colour = [name for name in names if not configuration(name).greyscale]
    grey = [name for name in names if configuration(name).greyscale]
    dots = "A dot per run, the curve through the means, bars of one standard deviation."
    overlaid = (
        " Thin lines with hollow markers: the paper's means, YOLOv3 on COCO, score threshold 0.5."
        if compare_paper
        else ""
    )
    plots = []
    if colour:
        title = "Figure 3: scores and granularity"
        plots.append(
            Plot("figure-3", f"{title}. {dots}{overlaid}", curves_figure(curves, colour, title, paper))
        )
    if grey:
        both = [*(name.removesuffix(GREY_SUFFIX) for name in grey), *grey]
        title = "Figure 4: colour and greyscale images"
        figure = curves_figure(curves, [name for name in both if name in names], title, paper)
        plots.append(Plot("figure-4", f"{title}. {dots}{overlaid}", figure))
    if 0.0 in study.ratios and len(study.ratios) > 1:
        words = f"Robust mAP and time of every run divided by those of the same run at ratio 0. {dots}{overlaid}"
        plots.append(Plot("figure-relative", words, relative_figure(curves, names, paper)))
    if study.has(TIME_MS):
        words = (
            "Robust mAP against inference time, means with bars of one standard deviation. The grey steps are the "
            "Pareto front: no other model is both faster and more accurate."
        )
        plots.append(Plot("figure-trade-off", words, trade_off_figure(study, names)))
    return plots
