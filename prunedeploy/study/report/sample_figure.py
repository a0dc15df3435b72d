"""The paper's Figure 5: a test image in front of every network, rows are ratios and columns configurations.

The figure is one pair of axes whose unit is the inch: fifty pairs would take many times as long to draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from PIL import Image

from prunedeploy.study.report.figure_style import new_figure, styled
from prunedeploy.study.report.sample_matches import Mark, MarkedBox, marked_boxes
from prunedeploy.study.report.samples import CellSamples, Kind, SampleImage, SampleSet
from prunedeploy.study.statistics.design import GREY_SUFFIX, ORIGINAL, ORIGINAL_GREY, configuration
from prunedeploy.study.statistics.tables import percent

MOST_PIXELS = 224
"""Pictures with a longer side are made smaller: they are a good inch wide."""
SIDE, GAP, WORDS = 1.4, 0.07, 0.23
LEFT, TOP, LINE = 1.15, 1.15, 0.25
# Large letters: on a sheet of paper a figure of ten rows is little more than half as large.
TITLE_SIZE, RATIO_SIZE, COLUMN_SIZE, WORDS_SIZE = 15, 13, 12, 10
# Blue, vermilion and black differ for colour-blind readers, and solid, dashed and dotted lines without any colour.
LINES: dict[Mark, tuple[str, Any, str]] = {
    Mark.FOUND: ("#0072B2", "-", "right"),
    Mark.WRONG: ("#D55E00", (0, (3, 1.4)), "wrong class or place"),
    Mark.MISSED: ("#000000", (0, (0.9, 1.1)), "object not found"),
}
_WHAT: dict[Kind, str] = {"clean": "clean", "pgd": "under PGD"}
ORIGINAL_ROW = "original,\nnot pruned"


def sample_figure(samples: SampleSet, folder: Path, names: Sequence[str], kind: Kind, number: int) -> Figure:
    """Draw one image in front of every network, with what each finds, gets wrong and misses.

    Args:
        samples: A sweep's samples.
        folder: With their pictures. One that is missing or damaged is a blank.
        names: Configurations, a column each; those without an image are left out.
        kind: Clean or attacked images.
        number: Which of the images, from 1.
    """
    there = {(cell.configuration, cell.ratio): cell for cell in _showing(samples, number)}
    columns = [name for name in names if any(name == who for who, _ in there)]
    ratios = sorted({ratio for name, ratio in there if name in columns})
    first = next(iter(there.values())).images[number - 1]
    high = SIDE * first.height / first.width
    references = {name: there.get((_reference(name), 0.0)) for name in columns}
    rows = [(percent(ratio), {name: there.get((name, ratio)) for name in columns}) for ratio in ratios]
    if any(references.values()):
        rows.insert(0, (ORIGINAL_ROW, references))
    across = 3 if len(columns) > 4 else 1
    width = LEFT + max(3, len(columns)) * (SIDE + GAP)  # for title and legend at least so much
    height = TOP + len(rows) * (high + WORDS + GAP) + (2 + 3 / across) * LINE
    with styled():
        figure = new_figure(width, height)
        figure.set_layout_engine("none")
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        axes.set_axis_off()
        boxes: list[MarkedBox] = []
        title = f"Figure 5: sample image{f' {number}' if number > 1 else ''}, {_WHAT[kind]}"
        axes.text(0.06, 0.08, title, fontsize=TITLE_SIZE, fontweight="bold", va="top")
        for column, name in enumerate(columns):
            label = configuration(name).label.replace(", ", ",\n")
            axes.text(_x(column) + SIDE / 2, TOP - 0.07, label, ha="center", va="bottom", fontsize=COLUMN_SIZE)
        for row, (label, cells) in enumerate(rows):
            y = TOP + row * (high + WORDS + GAP)
            axes.text(LEFT - 0.1, y + high / 2, label, ha="right", va="center", fontsize=RATIO_SIZE)
            for column, name in enumerate(columns):
                boxes += _picture(axes, cells[name], folder, kind, number, _x(column), y, high)
        _draw_boxes(axes, boxes)
        axes.set(xlim=(0, width), ylim=(height, 0))
        handles = [
            Line2D([], [], color=colour, linestyle=line, linewidth=1.9, label=label)
            for colour, line, label in LINES.values()
        ]
        figure.legend(
            handles=handles, loc="lower center", ncols=across, handlelength=2.6, fontsize=COLUMN_SIZE, columnspacing=1.4
        )
    return figure


def sample_caption(samples: SampleSet, kind: Kind, number: int) -> str:
    """What the figure shows, in words."""
    cells = _showing(samples, number)
    image, attacks = cells[0].images[number - 1], {str(sorted(cell.attack.items())) for cell in cells}
    seen = "as it is"
    if kind == "pgd":
        settings = cells[0].attack
        strength = f"eps {settings.get('eps')}, {settings.get('steps')} steps of {settings.get('step_size')}"
        strength += ", best iterate" if settings.get("iterate") == "best" else ""
        # Every network is attacked through its own gradients, so each picture in the grid is another one.
        seen = f"attacked through each network's own gradients ({strength if len(attacks) == 1 else 'PGD'})"
    thresholds = sorted({cell.score_threshold for cell in cells})
    return (
        f"Figure 5, {_WHAT[kind]}: test image {image.image_id} ({image.file_name}), "
        f"{seen}, in front of the networks of run {cells[0].run}. Solid blue: detections of the right class with an "
        "IoU of at least 0.5. Dashed vermilion: all other detections. Dotted black: objects that were not found. "
        f"Detections have a score above {' or '.join(f'{one:g}' for one in thresholds)}. One image illustrates and "
        "proves nothing; it was chosen by how many objects it has, not by what is found in it."
    )


def _showing(samples: SampleSet, number: int) -> list[CellSamples]:
    """The cells that have an image of this number, and the same one."""
    cells = [cell for cell in samples.cells if len(cell.images) >= number]
    image_id = cells[0].images[number - 1].image_id
    return [cell for cell in cells if cell.images[number - 1].image_id == image_id]


def _reference(name: str) -> str:
    return ORIGINAL_GREY if name.endswith(GREY_SUFFIX) else ORIGINAL


def _x(column: int) -> float:
    return LEFT + column * (SIDE + GAP)


def _picture(
    axes: Axes, cell: CellSamples | None, folder: Path, kind: Kind, number: int, x: float, y: float, high: float
) -> list[MarkedBox]:
    """Draw a picture and in words how much was found; return the boxes to draw, in inches."""
    image = None if cell is None else cell.images[number - 1]
    pixels = None if cell is None or image is None else _pixels(folder / cell.picture(kind, number), image)
    if image is None or pixels is None:
        axes.add_patch(Rectangle((x, y), SIDE, high, facecolor="#f2f2f2", edgecolor="#bbbbbb", linewidth=0.5))
        axes.text(
            x + SIDE / 2, y + high / 2, "no picture", ha="center", va="center", color="#666666", fontsize=WORDS_SIZE
        )
        return []
    axes.imshow(pixels, extent=(x, x + SIDE, y + high, y), aspect="auto", zorder=1)
    marked = marked_boxes(image.ground_truth, image.detections(kind))
    found, wrong = (sum(one.mark is mark for one in marked) for mark in (Mark.FOUND, Mark.WRONG))
    words = f"{found}/{len(image.ground_truth)} found" + (f", {wrong} wrong" if wrong else "")
    axes.text(x + SIDE / 2, y + high + 0.03, words, ha="center", va="top", fontsize=WORDS_SIZE)
    scale = np.array([SIDE / image.width, high / image.height] * 2)
    placed = []
    for one in marked:
        inside = np.clip(one.box_xyxy, 0, [image.width, image.height] * 2)
        x1, y1, x2, y2 = (inside * scale + (x, y, x, y)).tolist()
        placed.append(MarkedBox(one.mark, (x1, y1, x2, y2)))
    return placed


def _draw_boxes(axes: Axes, boxes: Sequence[MarkedBox]) -> None:
    """Lines on white ones, so that they show on any picture; what is right lies on top."""
    for mark in reversed(Mark):
        colour, line, _ = LINES[mark]
        own = [one.box_xyxy for one in boxes if one.mark is mark]
        corners = [[(x1, y1), (x2, y1), (x2, y2), (x1, y2)] for x1, y1, x2, y2 in own]
        for edge, width, style in (("white", 2.9, "-"), (colour, 1.7, line)):
            look: Any = {"facecolors": "none", "edgecolors": edge, "linewidths": width, "linestyles": [style]}
            axes.add_collection(PolyCollection(corners, joinstyle="miter", zorder=2, **look))


def _pixels(path: Path, image: SampleImage) -> NDArray[np.uint8] | None:
    """``(H, W, 3)`` uint8; None if there is no such picture, or not of the size it must have."""
    try:
        with Image.open(path) as picture:
            if picture.size != (image.width, image.height):
                return None
            colours = picture.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
    colours.thumbnail((MOST_PIXELS, MOST_PIXELS), Image.Resampling.LANCZOS)
    return np.array(colours)
