"""How figures look: colours that colour-blind readers can tell apart, and in print marker and line as well.

Colours are those of Okabe and Ito, Color Universal Design, 2008. Every configuration also has a marker and a line of
its own, so that nothing is said by colour alone. Figures are drawn without pyplot: no state, no window.
"""

from __future__ import annotations

import io
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from prunedeploy.study.statistics.design import PAPER_CONFIGURATIONS

SETTINGS: Any = {  # keys are matplotlib's
    "font.family": "DejaVu Sans",  # comes with matplotlib, so figures are the same everywhere
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 5.5,
    "svg.hashsalt": "prunedeploy",  # ids inside the file, which are random otherwise
    "svg.fonttype": "path",
}
DPI = 150


@dataclass(frozen=True)
class Look:
    """How one configuration is drawn.

    Attributes:
        colour: ``#rrggbb``.
        marker: Matplotlib's name of the marker.
        line: Matplotlib's line style.
    """

    colour: str
    marker: str
    line: Any

    @property
    def line_and_marker(self) -> dict[str, Any]:
        """Matplotlib's keywords of a line with markers, which a white rim sets off."""
        rim = {"markeredgecolor": "white", "markeredgewidth": 0.6}
        return {"color": self.colour, "marker": self.marker, "linestyle": self.line, **rim}


_LOOKS = (
    Look("#0072B2", "o", "-"),
    Look("#E69F00", "s", (0, (5, 1.5))),
    Look("#009E73", "^", (0, (7, 1.5, 1.5, 1.5))),
    Look("#D55E00", "D", (0, (2.5, 1.2))),
    Look("#8C5A86", "X", (0, (1, 1.1))),  # their reddish purple, darker: it stands on white
    Look("#56B4E9", "v", (0, (4, 1, 1, 1, 1, 1))),
    Look("#222222", "P", (0, (9, 2))),
)


def look(name: str, names: tuple[str, ...]) -> Look:
    """Return how a configuration is drawn: one of the paper always alike, others in turn.

    Args:
        name: Name of the configuration.
        names: All of the study.
    """
    if name in PAPER_CONFIGURATIONS:
        return _LOOKS[PAPER_CONFIGURATIONS.index(name)]
    others = [other for other in names if other not in PAPER_CONFIGURATIONS]
    # The last two looks are the others' own; after that all are used again.
    return _LOOKS[(len(PAPER_CONFIGURATIONS) + others.index(name)) % len(_LOOKS)]


def styled() -> AbstractContextManager[None]:
    """Draw inside this in our style; nothing stays changed."""
    return mpl.rc_context(SETTINGS)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def figure_bytes(figure: Figure, form: str) -> bytes:
    """Return a figure as a ``png`` or ``svg`` file's content; the same figure gives the same bytes.

    Pictures in it keep their pixels in SVG, which whoever shows it enlarges; in PNG they are enlarged smoothly.
    """
    for picture in (picture for axes in figure.axes for picture in axes.images):
        picture.set_interpolation("none" if form == "svg" else "bicubic")
    metadata = {"Date": None, "Creator": "prunedeploy"} if form == "svg" else {"Software": "prunedeploy"}
    buffer = io.BytesIO()
    with styled():
        if figure.get_layout_engine() is not None:
            # Once is enough: every drawing would measure all texts again.
            figure.canvas.draw()
            figure.set_layout_engine("none")
        figure.savefig(buffer, format=form, dpi=DPI, metadata=metadata)
    return buffer.getvalue()
