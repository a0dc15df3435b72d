"""Option ``antialiasing`` of ``convolutional`` and ``maxpool``: a fixed blur that takes over the section's stride."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from prunedeploy.models.sections.reading import Reader


@dataclass(frozen=True)
class Blur:
    """What stands behind a section with ``antialiasing``, each channel by itself; the weight file has nothing of it.

    Two means of 2 x 2 behind each other are the kernel (1, 2, 1) x (1, 2, 1) / 16, with one zero around the map.

    Attributes:
        size: 3 as above, or 2: one mean of 2 x 2 without a border (``antialiasing=2``).
        strides: Steps down and across, which the section itself then lacks.

    Reference: Darknet, ``make_convolutional_layer``; Zhang, Making Convolutional Networks Shift-Invariant Again, 2019.
    """

    size: int
    strides: tuple[int, int]

    def out_size(self, height: int, width: int) -> tuple[int, int]:
        """Size of the blurred map; 0 where the map is smaller than the kernel."""
        reach = 1 if self.size == 3 else 2
        down, across = self.strides
        return (height - reach) // down + 1, (width - reach) // across + 1

    def run(self, x: Tensor) -> Tensor:
        """Blur ``(B, C, H, W)``."""
        if self.size == 3:
            x = F.avg_pool2d(x, 2, 1, padding=1)
        return F.avg_pool2d(x, 2, self.strides)

    def constants(self, values: Tensor) -> Tensor:
        """What constants become, NaN where they differ at the border; see `Layer.constants`."""
        return torch.where(values == 0, values, torch.nan) if self.size == 3 else values


def read_blur(reader: Reader, strides: tuple[int, int]) -> Blur | None:
    """The blur of a section whose own options say ``strides``; None without ``antialiasing``."""
    antialiasing = reader.integer("antialiasing", 0, 0)
    return Blur(2 if antialiasing == 2 else 3, strides) if antialiasing else None


def read_strides(reader: Reader) -> tuple[int, int]:
    """Steps down and across: ``stride_y`` and ``stride_x``, each ``stride`` by default."""
    stride = reader.integer("stride", 1)
    return reader.integer("stride_y", stride), reader.integer("stride_x", stride)
