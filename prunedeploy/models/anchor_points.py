"""Raw heads without anchors by anchor point, the middle of a cell: what their losses are computed of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class AnchorPoints:
    """What heads without anchors predict: N anchor points, scale by scale, then row, then column.

    Attributes:
        values: ``(B, N, V)``, float32 or float64: the channels of the heads.
        points_xy: ``(N, 2)`` in input pixels.
        stride: ``(N, 1)``: width and height of a cell in input pixels.
        input_size: ``(height, width)`` in pixels.
    """

    values: Tensor
    points_xy: Tensor
    stride: Tensor
    input_size: tuple[float, float]

    @classmethod
    def of(cls, heads: Sequence[Tensor], strides: Sequence[float], targets: Tensor, class_start: int) -> AnchorPoints:
        """View heads by anchor point.

        Args:
            heads: The raw output of each scale, ``(B, class_start + C, H, W)``. Half precision becomes float32.
            strides: Width and height of a cell of each scale, in input pixels.
            targets: The objects, whose shape is checked.
            class_start: How many channels there are before those of the classes.

        Raises:
            ValueError: Shapes do not fit; they are printed.
        """
        shapes = [tuple(raw.shape) for raw in heads]
        if targets.ndim != 2 or targets.shape[1] != 6:
            raise ValueError(f"expected targets (T, 6), got {tuple(targets.shape)}")
        if not heads or len(heads) != len(strides):
            raise ValueError(f"expected a stride for each head, got {len(heads)} heads and {len(strides)} strides")
        alike = len({shape[:2] for shape in shapes}) == 1 and all(raw.ndim == 4 for raw in heads)
        if not alike or shapes[0][1] <= class_start:
            raise ValueError(f"expected heads (B, {class_start} + classes, H, W) with one B and C, got {shapes}")
        sizes = {(shape[2] * stride, shape[3] * stride) for shape, stride in zip(shapes, strides, strict=True)}
        if len(sizes) > 1:
            raise ValueError(f"heads {shapes} with strides {list(strides)} are not of one input size")
        dtype = torch.float64 if heads[0].dtype == torch.float64 else torch.float32
        values = torch.cat([raw.to(dtype).flatten(2) for raw in heads], dim=2).transpose(1, 2)  # (B, N, V)
        points, cells = [], []
        for (_, _, height, width), stride in zip(shapes, strides, strict=True):
            rows, columns = (torch.arange(n, device=values.device, dtype=dtype) + 0.5 for n in (height, width))
            y, x = torch.meshgrid(rows, columns, indexing="ij")
            points.append(torch.stack((x, y), dim=-1).flatten(0, 1) * stride)
            cells.append(values.new_full((height * width, 1), stride))
        return cls(values, torch.cat(points), torch.cat(cells), sizes.pop())

    def truth_cxcywh(self, targets: Tensor) -> Tensor:
        """The objects of ``targets (T, 6)`` in input pixels, ``(T, 4)``."""
        height, width = self.input_size
        return targets[:, 2:].to(self.values.dtype) * self.values.new_tensor([width, height, width, height])
