"""The paper's Figure 5: a test image in front of every network, rows are ratios and columns configurations.

The figure is one pair of axes whose unit is the inch: fifty pairs would take many times as long to draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from prunedeploy.study.design import GREY_SUFFIX, ORIGINAL, ORIGINAL_GREY, configuration
from prunedeploy.study.figure_style import new_figure, styled
from prunedeploy.study.sample_matches import Mark, MarkedBox, marked_boxes
from prunedeploy.study.samples import CellSamples, Kind, SampleImage, SampleSet
from prunedeploy.study.tables import percent

MOST_PIXELS = 224
"""Pictures with a longer side are made smaller: they are a good inch wide."""
SIDE, GAP, WORDS = 1.4, 0.07, 0.19
LEFT, TOP, BOTTOM = 0.95, 1.0, 0.55
# Blue, vermilion and black differ for colour-blind readers, and solid, dashed and dotted lines without any colour.
LINES: dict[Mark, tuple[str, Any, str]] = {
    Mark.FOUND: ("#0072B2", "-", "right class, IoU at least 0.5"),
    Mark.WRONG: ("#D55E00", (0, (3, 1.4)), "wrong class or place, or twice"),
    Mark.MISSED: ("#000000", (0, (0.9, 1.1)), "object not found"),
}
ORIGINAL_ROW = "original,\nnot pruned"


def sample_figure(samples: SampleSet, folder: Path, names: Sequence[str], kind: Kind, number: int) -> Figure:
    """Draw one image in front of every network, with what each finds, gets wrong and misses.

    Args:
        samples: Of a sweep.
        folder: With their pictures. One that is missing or damaged is a blank.
        names: Configurations, a column each; those without an image are left out.
        kind: Clean or attacked images.
        number: Which of the images, from 1.
    """
    there = {(cell.configuration, cell.ratio): cell for cell in samples.cells if len(cell.images) >= number}
    columns = [name for name in names if any(name == who for who, _ in there)]
    ratios = sorted({ratio for name, ratio in there if name in columns})
    first = next(iter(there.values())).images[number - 1]
    high = SIDE * first.height / first.width
    references = {name: there.get((_reference(name), 0.0)) for name in columns}
    rows = [(percent(ratio), {name: there.get((name, ratio)) for name in columns}) for ratio in ratios]
    if any(references.values()):
        rows.insert(0, (ORIGINAL_ROW, references))
    width = LEFT + len(columns) * (SIDE + GAP)
    height = TOP + len(rows) * (high + WORDS + GAP) + BOTTOM
    width = max(width, 5.6)  # for title and legend
    with styled():
        figure = new_figure(width, height)
        figure.set_layout_engine("none")
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        axes.set_axis_off()
        what = "under PGD" if kind == "pgd" else "clean"
        bold = {"fontweight": "bold", "va": "top"}
        axes.text(0.06, 0.08, f"Figure 5: sample image, {what}", fontsize=12, **bold)
        for column, name in enumerate(columns):
            label = configuration(name).label.replace(", ", ",\n")
            axes.text(_x(column) + SIDE / 2, TOP - 0.07, label, ha="center", va="bottom", fontsize=9.5)
        for row, (label, cells) in enumerate(rows):
            y = TOP + row * (high + WORDS + GAP)
            axes.text(LEFT - 0.1, y + high / 2, label, ha="right", va="center", fontsize=10.5, linespacing=1.25)
            for column, name in enumerate(columns):
                _picture(axes, cells[name], folder, kind, number, _x(column), y, high)
        axes.set(xlim=(0, width), ylim=(height, 0))
        handles = [_line(mark) for mark in Mark]
        figure.legend(
            handles=handles, loc="lower center", ncols=3, handlelength=2.6, fontsize=9.5, columnspacing=1.6
        )
    return figure


def sample_caption(samples: SampleSet, kind: Kind, number: int) -> str:
    """What the figure shows, in words."""
    cells = [cell for cell in samples.cells if len(cell.images) >= number]
    image, attacks = cells[0].images[number - 1], {str(sorted(cell.attack.items())) for cell in cells}
    seen = "as it is"
    if kind == "pgd":
        settings = cells[0].attack
        strength = f"eps {settings.get('eps')}, {settings.get('steps')} steps of {settings.get('step_size')}"
        # Every network is attacked through its own gradients, so each picture in the grid is another one.
        seen = f"attacked through each network's own gradients ({strength if len(attacks) == 1 else 'PGD'})"
    thresholds = sorted({cell.score_threshold for cell in cells})
    return (
        f"Figure 5, {'under PGD' if kind == 'pgd' else 'clean'}: test image {image.image_id} ({image.file_name}), "
        f"{seen}, in front of the networks of run {cells[0].run}. Solid blue: detections of the right class with an "
        "IoU of at least 0.5. Dashed vermilion: all other detections. Dotted black: objects that were not found. "
        f"Detections have a score above {' or '.join(f'{one:g}' for one in thresholds)}. One image is an "
        "illustration, not a measurement; nobody has chosen it: it is "
        f"{'the first' if number == 1 else f'number {number}'} of the test images that have boxes."
    )


def _reference(name: str) -> str:
    return ORIGINAL_GREY if name.endswith(GREY_SUFFIX) else ORIGINAL


def _x(column: int) -> float:
    return LEFT + column * (SIDE + GAP)


def _picture(
    axes: Axes, cell: CellSamples | None, folder: Path, kind: Kind, number: int, x: float, y: float, high: float
) -> None:
    """A picture with its boxes, and how much was found in words below."""
    image = None if cell is None or len(cell.images) < number else cell.images[number - 1]
    pixels = None if cell is None or image is None else _pixels(folder / cell.picture(kind, number), image)
    if image is None or pixels is None:
        axes.add_patch(Rectangle((x, y), SIDE, high, facecolor="#f2f2f2", edgecolor="#bbbbbb", linewidth=0.5))
        axes.text(x + SIDE / 2, y + high / 2, "no picture", ha="center", va="center", color="#666666", fontsize=8)
        return
    # Nearest here; `figure_bytes` enlarges smoothly where the file cannot leave that to its viewer.
    axes.imshow(pixels, extent=(x, x + SIDE, y + high, y), aspect="auto", interpolation="none", zorder=1)
    marked = marked_boxes(image.ground_truth, image.detections(kind))
    for box in sorted(marked, key=lambda one: list(Mark).index(one.mark), reverse=True):
        _draw_box(axes, box, image, x, y, high)
    found, wrong = (sum(one.mark is mark for one in marked) for mark in (Mark.FOUND, Mark.WRONG))
    words = f"{found} of {len(image.ground_truth)} found" + (f", {wrong} wrong" if wrong else "")
    axes.text(x + SIDE / 2, y + high + 0.03, words, ha="center", va="top", fontsize=8)


def _draw_box(axes: Axes, box: MarkedBox, image: SampleImage, x: float, y: float, high: float) -> None:
    """A line on a white one, so that it shows on any picture; what lies outside the picture is cut off."""
    x1, x2 = (x + SIDE * min(max(box.box_xyxy[i] / image.width, 0.0), 1.0) for i in (0, 2))
    y1, y2 = (y + high * min(max(box.box_xyxy[i] / image.height, 0.0), 1.0) for i in (1, 3))
    colour, line, _ = LINES[box.mark]
    for under in (True, False):
        axes.add_patch(
            Rectangle(
                (x1, y1),
                x2 - x1,
                y2 - y1,
                fill=False,
                edgecolor="white" if under else colour,
                linewidth=2.9 if under else 1.7,
                linestyle="-" if under else line,
                joinstyle="miter",
                zorder=2,
            )
        )


def _line(mark: Mark) -> Line2D:
    colour, line, label = LINES[mark]
    return Line2D([], [], color=colour, linestyle=line, linewidth=1.9, label=label)


def _pixels(path: Path, image: SampleImage) -> NDArray[np.uint8] | None:
    """``(H, W, 3)`` uint8; None if there is no such picture, or not of the size it must have."""
    try:
        with Image.open(path) as picture:
            if picture.size != (image.width, image.height):
                return None
            picture = picture.convert("RGB")
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
    picture.thumbnail((MOST_PIXELS, MOST_PIXELS), Image.Resampling.LANCZOS)
    return np.array(picture)
