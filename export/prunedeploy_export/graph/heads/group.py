"""Detection heads of one decoding that stand one behind the other, decoded together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from prunedeploy_export.graph.network import Head

H = TypeVar("H", bound=Head, covariant=True)


@dataclass(frozen=True)
class HeadGroup(Generic[H]):
    """What a writer of heads gets, and the outputs that it has to give.

    Attributes:
        heads: The heads in cfg order.
        raw: Names of what they read, each ``(N, A * V, H, W)``.
        first: Number of the first one among all heads of the network.
        input_size: ``(height, width)`` of the network's input.
        name: Nodes that serve all of them are called ``{name}/...``; those of one head ``head{number}/...``.
        boxes: Name of the output ``(N, M, 4)``, xyxy in input pixels; M counts head by head, then anchor, row, column.
        scores: Name of the output ``(N, M, C)`` in [0, 1].
    """

    heads: Sequence[H]
    raw: Sequence[str]
    first: int
    input_size: tuple[int, int]
    name: str
    boxes: str
    scores: str
