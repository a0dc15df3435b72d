"""What the decoding of several kinds of heads has in common.

What the decoding knows beforehand (cells, strides, anchors) is a constant for all predictions of all heads,
so one multiplication and one addition do it: the whole tail costs a few passes over the predictions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from prunedeploy_export.graph.builder import GraphBuilder
from prunedeploy_export.graph.heads.group import HeadGroup
from prunedeploy_export.graph.network import Head


def split_head(graph: GraphBuilder, raw: str, head: Head, name: str, box_values: int = 4) -> Sequence[str]:
    """Append the nodes that split a raw head.

    Returns:
        Names of the numbers of the box ``(N, A, box_values, H * W)``, of objectness ``(N, A, 1, H * W)`` and of the
        classes ``(N, A, C, H * W)``.
    """
    channels, height, width = head.out_shape
    anchors = len(head.head_anchors_wh)
    # While the channels still stand before the cells, splitting copies whole blocks.
    grid = graph.reshape(raw, [0, anchors, channels // anchors, height * width], f"{name}/grid")
    outputs = [f"{name}/box", f"{name}/objectness", f"{name}/class"]
    return graph.split(grid, outputs, [box_values, 1, head.classes], axis=2)


def rows_of(graph: GraphBuilder, value: str, head: Head, length: int) -> str:
    """Append the nodes that turn ``(N, A, length, H * W)`` into one row per prediction, ``(N, A * H * W, length)``."""
    rows = graph.node("Transpose", [value], f"{value}/rows", perm=[0, 1, 3, 2])
    return graph.reshape(rows, [0, head.prediction_count, length], f"{value}/flat")


def add_boxes(
    graph: GraphBuilder, group: HeadGroup[Head], box_parts: Sequence[str], stretches: Sequence[float], new_coords: bool
) -> None:
    """Append the nodes from the numbers of boxes to the group's output of boxes.

    centre = (p * s - (s - 1) / 2 + cell) * stride and size = anchor * exp(twh), in input pixels, with p = sigmoid(txy);
    or size = anchor * (2 twh)^2, with p = txy.

    Args:
        graph: Where to.
        group: The heads.
        box_parts: Of each, txy and twh ``(N, A * H * W, 4)``.
        stretches: Of each, s.
        new_coords: Whether it is the second of the two.
    """
    name = group.name
    constants = (
        _constants(head, group.input_size, stretch) for head, stretch in zip(group.heads, stretches, strict=True)
    )
    centre_scale, centre_shift, half_anchors = (
        np.concatenate(parts, axis=1) for parts in zip(*constants, strict=True)
    )  # (1, M, 2) each
    predictions = graph.node("Concat", box_parts, f"{name}/predictions", axis=1)  # (N, M, 4)
    centre, half = graph.split(predictions, [f"{name}/txy", f"{name}/twh"], [2, 2], axis=2)
    if new_coords:
        half, half_anchors = graph.node("Mul", [half, half], f"{name}/squared"), 4 * half_anchors
    else:
        centre = graph.node("Sigmoid", [centre], f"{name}/sigmoid")
    centre = graph.node("Mul", [centre, graph.constant(f"{name}/centre_scale", centre_scale)], f"{name}/scaled")
    centre = graph.node("Add", [centre, graph.constant(f"{name}/centre_shift", centre_shift)], f"{name}/centre")
    if not new_coords:
        half = graph.node("Exp", [half], f"{name}/exp")
    half = graph.node("Mul", [half, graph.constant(f"{name}/half_anchors", half_anchors)], f"{name}/half_size")
    low = graph.node("Sub", [centre, half], f"{name}/low")
    high = graph.node("Add", [centre, half], f"{name}/high")
    graph.node("Concat", [low, high], group.boxes, axis=2)


def _constants(head: Head, input_size: tuple[int, int], stretch: float) -> tuple[npt.NDArray[np.float32], ...]:
    """Compute what decoding knows beforehand of one head.

    Returns:
        Three arrays ``(1, A * H * W, 2)`` in input pixels: centre = p * first + second, and half the size =
        exp(twh) * third.
    """
    _, height, width = head.out_shape
    stride = np.array([input_size[1] / width, input_size[0] / height])
    anchors = np.array(head.head_anchors_wh)
    rows, columns = np.mgrid[:height, :width]
    cells = np.stack((columns, rows), axis=-1)  # (H, W, 2)
    shape = (len(anchors), height, width, 2)
    scale = np.broadcast_to(stretch * stride, shape)
    shift = np.broadcast_to((cells - (stretch - 1) / 2) * stride, shape)
    half_anchors = np.broadcast_to(anchors[:, None, None] / 2, shape)
    return tuple(values.reshape(1, -1, 2).astype(np.float32) for values in (scale, shift, half_anchors))


def cells_and_strides(group: HeadGroup[Head]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Column and row of the cell of every prediction of heads with one per cell, and width and height of that cell.

    Returns:
        Two arrays ``(1, M, 2)``, the second in input pixels.
    """
    height, width = group.input_size
    cells, strides = [], []
    for head in group.heads:
        _, rows, columns = head.out_shape
        row, column = np.mgrid[:rows, :columns]
        own = np.stack((column, row), axis=-1).reshape(1, -1, 2)
        cells.append(own)
        strides.append(np.broadcast_to((width / columns, height / rows), own.shape))
    return np.concatenate(cells, axis=1).astype(np.float32), np.concatenate(strides, axis=1).astype(np.float32)
