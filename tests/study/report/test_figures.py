"""Figures show the numbers they are given, and can be told apart without colour and by colour-blind readers."""

from __future__ import annotations

import io
import itertools
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from prunedeploy.study.report.curve_figures import curves_figure, relative_figure, relative_to_zero
from prunedeploy.study.report.figure_style import figure_bytes, look
from prunedeploy.study.report.trade_off_figure import trade_off_figure
from prunedeploy.study.statistics.cells import study_from_rows
from prunedeploy.study.statistics.design import MAP_PGD, PAPER_CONFIGURATIONS
from prunedeploy.study.statistics.paper import paper_rows
from study_rows import grid, row

NAMES = ("structured-deeplift", "structured-scaled")


@pytest.fixture
def study():
    cells = {
        ("structured-deeplift", 0.0): (0.40, 0.42),
        ("structured-deeplift", 0.5): (0.30, 0.21),
        ("structured-scaled", 0.0): (0.40, 0.42),
        ("structured-scaled", 0.5): (0.20, 0.25),
    }
    times = {key: [100 * value for value in values] for key, values in cells.items()}
    timed = grid(times, "time_ms", machine="m1", runtime="onnxruntime")
    return study_from_rows([*grid(cells), *timed, row("original", 0.0, map_pgd=0.11, time_ms=44.0)])


def dots(axis):
    """Heights of all dots, by the ratio next to them."""
    found = {}
    for collection in axis.collections:
        if not hasattr(collection, "get_sizes") or not len(collection.get_sizes()):
            continue
        for x, y in collection.get_offsets():
            found.setdefault(round(float(x)) if x < 25 else 50, []).append(round(float(y), 6))
    return {x: sorted(values) for x, values in found.items()}


def lines(axis):
    return [line.get_ydata() for line in axis.lines]


def test_curves_have_a_dot_per_run_the_means_and_the_original(study):
    figure = curves_figure(study, NAMES, "title")
    for axis, scale in zip(figure.axes, (1, 100), strict=True):
        expected = {0: [0.40, 0.40, 0.42, 0.42], 50: [0.20, 0.21, 0.25, 0.30]}
        assert dots(axis) == {x: [pytest.approx(scale * v) for v in values] for x, values in expected.items()}
        means = [np.array(line) / scale for line in lines(axis) if len(line) == 2]
        assert any(np.allclose(mean, [0.41, 0.255]) for mean in means)
        assert any(np.allclose(mean, [0.41, 0.225]) for mean in means)
        bars = [s for c in axis.collections if hasattr(c, "get_segments") for s in c.get_segments()]
        half = sorted(round(float(s[1][1] - s[0][1]) / 2 / scale, 6) for s in bars)
        assert half == [0.01, 0.01, 0.025, 0.045]  # population standard deviations of two runs
    originals = [[set(y) for y in lines(axis) if len(set(y)) == 1] for axis in figure.axes]
    assert originals == [[{0.11}], [{44.0}]]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["structured, DeepLIFT", "structured, scaled", "original, not pruned"]


def test_the_papers_means_are_overlaid_in_map_and_in_the_relative_figure(study):
    paper = study_from_rows(paper_rows())
    figure = curves_figure(study, NAMES, "title", paper)
    left, right = ([line for line in lines(axis) if len(line) == 9] for axis in figure.axes)
    # Table VII's means at 0 and 99 %.
    assert any(np.allclose(line[[0, -1]], [0.4099, 0.0428], atol=2e-4) for line in map(np.array, left))
    assert len(left) == 2
    assert right == []  # times of another machine
    assert figure.legends[0].get_texts()[-1].get_text() == "paper's means"
    for axis in relative_figure(study, NAMES, paper).axes:
        assert sum(len(line) == 9 and line[0] == 1 for line in lines(axis)) == 2


def test_what_is_retained_is_relative_to_the_same_run():
    rows = grid({("structured-scaled", 0.0): (0.4, 0.2, 0.0), ("structured-scaled", 0.5): (0.2, 0.15, 0.1, 0.3)})
    retained = relative_to_zero(study_from_rows(rows), MAP_PGD, "structured-scaled")
    # Run 2 starts from 0 and run 3 has no ratio 0: neither can be relative to it.
    assert retained[0.5].tolist() == [0.5, pytest.approx(0.75)]
    assert retained[0.0].tolist() == [1, 1]


def test_without_times_the_panel_says_so():
    figure = curves_figure(study_from_rows(grid({("structured-scaled", 0.5): (0.2,)})), ("structured-scaled",), "title")
    texts = [[text.get_text() for text in axis.texts] for axis in figure.axes]
    assert texts == [[], ["not measured"]]


def test_trade_off_shows_every_mean_and_the_front(study):
    (axis,) = trade_off_figure(study, NAMES).axes
    points = [point for line in axis.lines for point in zip(*line.get_data(), strict=True)]
    drawn = {(round(float(x), 6), round(float(y), 6)) for x, y in points}
    assert {(41.0, 0.41), (25.5, 0.255), (22.5, 0.225)} <= drawn
    assert {text.get_text() for text in axis.texts} == {"0 %", "50 %"}


def test_files_are_real_pictures_and_the_same_every_time(study):
    first, second = (curves_figure(study, NAMES, "title") for _ in range(2))
    png = figure_bytes(first, "png")
    with Image.open(io.BytesIO(png)) as image:
        assert image.size == (1575, 735)
        colours = image.convert("RGB").getcolors(1 << 24)
    assert len(colours) > 100
    assert figure_bytes(second, "png") == png
    svg = figure_bytes(first, "svg")
    assert figure_bytes(second, "svg") == svg
    assert ElementTree.fromstring(svg).tag.endswith("svg")


SRGB_TO_LMS = np.array([[0.31399, 0.63951, 0.04650], [0.15537, 0.75789, 0.08670], [0.01775, 0.10944, 0.87257]])
# Viénot, Brettel and Mollon 1999: what protanopes and deuteranopes see, in LMS of linear RGB.
BLINDNESS = {
    "none": np.eye(3),
    "protanopia": np.array([[0, 1.05118, -0.05116], [0, 1, 0], [0, 0, 1]]),
    "deuteranopia": np.array([[1, 0, 0], [0.95131, 0, 0.04867], [0, 0, 1]]),
}


def lab(colour: str, blindness: str) -> np.ndarray:
    """CIE L*a*b* of ``#rrggbb`` as it looks to somebody."""
    srgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = np.linalg.inv(SRGB_TO_LMS) @ BLINDNESS[blindness] @ SRGB_TO_LMS @ linear
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(np.maximum(to_xyz @ np.clip(seen, 0, 1) / [0.9505, 1, 1.089], 0.0089))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("blindness", BLINDNESS)
def test_colours_differ_for_everybody(blindness):
    seen = {name: lab(look(name, ()).colour, blindness) for name in PAPER_CONFIGURATIONS}
    for a, b in itertools.combinations(seen, 2):
        assert np.linalg.norm(seen[a] - seen[b]) > 15, (a, b)  # about 2 can just be told apart


def test_the_simulation_of_colour_blindness_makes_red_and_green_alike():
    apart = {name: np.linalg.norm(lab("#c05020", name) - lab("#709020", name)) for name in BLINDNESS}
    assert apart["deuteranopia"] < 0.3 * apart["none"]
    assert apart["protanopia"] < 0.6 * apart["none"]


def test_without_colour_marker_and_line_tell_configurations_apart():
    names = (*PAPER_CONFIGURATIONS, "kernel-taylor", "hybrid-taylor")
    looks = [look(name, names) for name in names]
    for part in ("colour", "marker", "line"):
        assert len({str(getattr(one, part)) for one in looks}) == len(names)
    assert look("structured-scaled", ()) == look("structured-scaled", names), "a configuration always looks alike"
