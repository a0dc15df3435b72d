"""The figures of a report."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from prunedeploy.study.report.curve_figures import curves_figure, relative_figure
from prunedeploy.study.report.figure_style import figure_bytes
from prunedeploy.study.report.sample_figure import sample_caption, sample_figure
from prunedeploy.study.report.samples import KINDS, SampleSet
from prunedeploy.study.report.trade_off_figure import trade_off_figure
from prunedeploy.study.statistics.cells import Study, study_from_rows
from prunedeploy.study.statistics.design import GREY_SUFFIX, MAP_PGD_CONF50, TIME_MS, configuration
from prunedeploy.study.statistics.paper import paper_rows

SAMPLES_ON_PAGE = 2
"""So many sample images are on the page, clean and attacked; others are files only, or it would grow without end."""


@dataclass(frozen=True)
class Plot:
    """A figure with its words.

    Attributes:
        name: Name of its files.
        caption: What it shows.
        figure: Itself.
        has_photographs: Then a page takes it as JPEG, a third of the SVG.
        on_page: Whether it is on the page, or a file only.
    """

    name: str
    caption: str
    figure: Figure
    has_photographs: bool = False
    on_page: bool = True

    @cached_property
    def svg(self) -> bytes:
        """As an SVG file."""
        return figure_bytes(self.figure, "svg")

    @cached_property
    def png(self) -> bytes:
        """As a PNG file."""
        return figure_bytes(self.figure, "png")

    @cached_property
    def jpeg(self) -> bytes:
        """As a JPEG file, its thin lines in full colour; a page that is printed into a PDF takes it as it is."""
        buffer = io.BytesIO()
        with Image.open(io.BytesIO(self.png)) as image:
            image.convert("RGB").save(buffer, "JPEG", quality=80, subsampling=0, optimize=True)
        return buffer.getvalue()


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
    if compare_paper:
        dots += " Thin lines with hollow markers: the paper's means, YOLOv3 on COCO, score threshold 0.5."
    both = [*(name.removesuffix(GREY_SUFFIX) for name in grey), *grey]
    plots = []
    for number, title, shown in (
        (3, "scores and granularity", colour),
        (4, "colour and greyscale images", [name for name in both if name in names]),
    ):
        if shown:
            heading = f"Figure {number}: {title}"
            figure = curves_figure(curves, shown, heading, paper)
            plots.append(Plot(f"figure-{number}", f"{heading}. {dots}", figure))
    if 0.0 in study.ratios and len(study.ratios) > 1:
        words = f"Robust mAP and time of every run divided by those of the same run at ratio 0. {dots}"
        plots.append(Plot("figure-relative", words, relative_figure(curves, names, paper)))
    if study.has(TIME_MS):
        words = (
            "Robust mAP against inference time, means with bars of one standard deviation. The grey steps are the "
            "Pareto front: no other model is both faster and more accurate."
        )
        plots.append(Plot("figure-trade-off", words, trade_off_figure(study, names)))
    return plots


def sample_plots(study: Study, samples: SampleSet | None, folder: Path) -> list[Plot]:
    """Figure 5, clean and attacked, for every sample image; nothing where there is none.

    Args:
        study: Whose configurations are the columns.
        samples: The same sweep's samples.
        folder: With their pictures.
    """
    if samples is None:
        return []
    counts = [len(cell.images) for cell in samples.cells if cell.configuration in study.configurations]
    plots = []
    for number in range(1, max(counts, default=0) + 1):
        for kind in KINDS:
            name = f"figure-5-{'attacked' if kind == 'pgd' else kind}{f'-{number}' if number > 1 else ''}"
            figure = sample_figure(samples, folder, study.configurations, kind, number)
            words = sample_caption(samples, kind, number)
            plots.append(Plot(name, words, figure, has_photographs=True, on_page=number <= SAMPLES_ON_PAGE))
    return plots
