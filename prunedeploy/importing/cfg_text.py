"""A cfg that grows section by section, together with the weights of its convolutions."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from prunedeploy.models.darknet_weights import LayerParameters

IMAGE = -1


@dataclass
class GrowingCfg:
    """The sections so far.

    Attributes:
        lines: Their text.
        weights: By layer index.
        count: How many there are.
        previous: The layer that the next section reads without a route; -1 is the image.
    """

    lines: list[str] = field(default_factory=list)
    weights: dict[int, LayerParameters] = field(default_factory=dict)
    count: int = 0
    previous: int = IMAGE

    def add(self, kind: str, options: str) -> int:
        """Append a section and return its index."""
        self.lines.append(f"[{kind}]\n{options}")
        self.previous = self.count
        self.count += 1
        return self.previous

    def add_head(self, kind: str, options: str) -> None:
        """Append a head, which nothing reads: what follows reads what the head reads."""
        before = self.previous
        self.add(kind, options)
        self.previous = before

    def read(self, layer: int) -> None:
        """Have the next section read a layer, by a route if it is not the previous one."""
        if layer != self.previous:
            self.add("route", f"layers={layer}\n")

    def add_convolution(
        self, layer: int, options: str, weight: NDArray[np.float32], bias: NDArray[np.float32], activation: str
    ) -> int:
        """Append a convolution that reads a layer, and return its index."""
        self.read(layer)
        filters, _, size, _ = weight.shape
        index = self.add("convolutional", f"filters={filters}\nsize={size}\n{options}activation={activation}\n")
        self.weights[index] = {"bias": bias.astype(np.float32), "weight": weight.astype(np.float32)}
        return index
