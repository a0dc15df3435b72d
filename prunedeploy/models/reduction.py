"""How losses sum over predictions: by image, or by whatever else asks."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Reduce = Callable[[Tensor, Tensor, "Tensor | None"], Tensor]
"""Sums ``(P, ...)`` values by the image of each, ``(P,)``, or by the target of each; None where they belong to none."""


def sums_by_image(batch: int) -> Reduce:
    """A `Reduce` to ``(batch,)``: every image by itself."""

    def reduce(values: Tensor, image: Tensor, _: Tensor | None) -> Tensor:
        return values.new_zeros(batch).index_add(0, image, values.flatten(1).sum(1))

    return reduce
