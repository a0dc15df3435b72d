"""What the study compares: configurations, the pairs its ANOVA tests are about, and metrics.

Reference: Liu, Efficient and Adversarially Robust Object Detection, section IV. Its fifth configuration is the
unstructured one on greyscale, as its tables say, not the structured one of that section's first paragraph.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

ORIGINAL = "original"
"""Configuration of rows about the network as given: neither trained against an attack nor pruned."""
ORIGINAL_GREY = "original-grey"
"""The same on greyscale images."""
REFERENCES = (ORIGINAL, ORIGINAL_GREY)

GREY_SUFFIX = "-grey"
_SPELLED = {"deeplift": "DeepLIFT", "scaled": "scaled"}
_IN_THE_PAPER = {"deeplift": "DeepLIFT", "scaled": "HYDRA"}


@dataclass(frozen=True)
class Configuration:
    """One way to prune.

    Attributes:
        name: As in rows, ``<method>-<scores>`` with ``-grey`` behind it for greyscale images.
        method: ``unstructured``, ``structured`` or another granularity.
        scores: ``deeplift``, ``scaled`` or another importance score.
        greyscale: Whether images are Rec. 601 luma in all three channels.
    """

    name: str
    method: str
    scores: str
    greyscale: bool

    @property
    def original(self) -> str:
        """Configuration of the network as given, on the same images."""
        return ORIGINAL_GREY if self.greyscale else ORIGINAL

    @property
    def label(self) -> str:
        """For figures, e.g. ``unstructured, DeepLIFT``."""
        parts = [self.method, _SPELLED.get(self.scores, self.scores), "greyscale" if self.greyscale else ""]
        return ", ".join(part for part in parts if part)

    @property
    def phrase(self) -> str:
        """For sentences, where commas would part other things, e.g. ``unstructured DeepLIFT``."""
        return self.label.replace(",", "")

    @property
    def caption(self) -> str:
        """As the paper's tables call it, e.g. ``Unstructured HYDRA``: its name for scaled scores."""
        words = [self.method.capitalize(), _IN_THE_PAPER.get(self.scores, self.scores)]
        return " ".join([*words, "Greyscale"] if self.greyscale else words).strip()


def configuration(name: str) -> Configuration:
    """Take a configuration's name apart; any name is accepted."""
    method, _, scores = name.removesuffix(GREY_SUFFIX).partition("-")
    return Configuration(name, method, scores, name.endswith(GREY_SUFFIX))


PAPER_CONFIGURATIONS = (
    "unstructured-deeplift",
    "unstructured-scaled",
    "structured-deeplift",
    "structured-scaled",
    "unstructured-deeplift-grey",
)
"""In the order of the paper's Tables V to IX."""


@dataclass(frozen=True)
class Pair:
    """Two configurations that differ in one thing.

    Attributes:
        label: As in the paper's tables.
        a: First one's name; differences are ``a`` minus ``b``.
        b: Second one's name.
    """

    label: str
    a: str
    b: str


COLOUR_PAIRS = (
    Pair("DeepLIFT vs. HYDRA (Unstructured)", "unstructured-deeplift", "unstructured-scaled"),
    Pair("DeepLIFT vs. HYDRA (Structured)", "structured-deeplift", "structured-scaled"),
    Pair("Unstructured vs. Structured (DeepLIFT)", "unstructured-deeplift", "structured-deeplift"),
    Pair("Unstructured vs. Structured (HYDRA)", "unstructured-scaled", "structured-scaled"),
)
"""Rows of Tables I and II."""
GREY_PAIRS = (
    Pair("Greyscale vs Colour (Unstructured DeepLIFT)", "unstructured-deeplift-grey", "unstructured-deeplift"),
)
"""Rows of Tables III and IV."""


@dataclass(frozen=True)
class Metric:
    """A figure that rows have.

    Attributes:
        field: Name of the row's field.
        label: For axes and headings.
        unit: E.g. ``ms``; empty for mAP.
        decimals: As many as the paper prints.
    """

    field: str
    label: str
    unit: str
    decimals: int

    def digits(self, values: Iterable[float]) -> int:
        """Decimals that tell values apart: the paper's, and one or two more for times below 10 or 1 ms."""
        smallest = min((abs(value) for value in values), default=math.inf)
        return self.decimals + (self.is_time and smallest < 10) + (self.is_time and smallest < 1)

    @property
    def axis(self) -> str:
        """Label with unit."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    @property
    def is_time(self) -> bool:
        """Whether values are only comparable on one machine."""
        return self.field == "time_ms"


MAP_PGD = Metric("map_pgd", "mAP under PGD", "", 3)
MAP_PGD_CONF50 = Metric("map_pgd_conf50", "mAP under PGD, score threshold 0.5", "", 3)
MAP_ENSEMBLE = Metric("map_ensemble", "mAP under the ensemble of attacks", "", 3)
TIME_MS = Metric("time_ms", "Inference time", "ms", 1)
