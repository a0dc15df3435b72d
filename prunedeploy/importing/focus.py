"""Blocks of 2 x 2 pixels stacked into channels before the first convolution, as YOLOX and early YOLOv5 have it.

A convolution of such a stack is one of the image: a kernel of twice the side and twice the step.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from prunedeploy.importing.onnx_graph import OnnxGraph, run

Order = tuple[tuple[int, int, int], ...]
"""Of each stacked channel the image's channel, and the row and the column of the pixel in its block."""


def is_of_pixels(graph: OnnxGraph, node: NodeProto) -> bool:
    """Whether a Slice takes pixels of the image, not channels of a map."""
    while node.op_type == "Slice" and node.input[0] != graph.image:
        if node.input[0] not in graph.producers:
            return False
        node = graph.producers[node.input[0]]
    return node.op_type == "Slice"


def stacked_pixels(graph: OnnxGraph, node: NodeProto) -> Order | None:
    """What a Concat stacks; None if it does not stack the image's pixels.

    Raises:
        OnnxImportError: It stacks parts of the image in another way.
    """
    sources = [graph.producers.get(name) for name in node.input]
    if not all(source is not None and is_of_pixels(graph, source) for source in sources):
        return None
    slices = [other for other in graph.nodes if other.op_type == "Slice" and is_of_pixels(graph, other)]
    shape = (1, *graph.input_shape)
    numbered = np.arange(np.prod(shape), dtype=np.float64).reshape(shape)
    program = graph.evaluator([*slices, node], [graph.image], [node.output[0]])
    stacked = np.asarray(run(program, {graph.image: numbered})[0])
    order = []
    for channel in stacked[0]:
        first = int(channel[0, 0])
        source, rest = divmod(first, shape[2] * shape[3])
        row, column = divmod(rest, shape[3])
        if max(row, column) > 1 or not np.array_equal(channel, numbered[0, source, row::2, column::2]):
            raise graph.refused(node, "joins parts of the image in a way that no convolution stands for")
        order.append((source, row, column))
    if sorted(order) != [(c, y, x) for c in range(shape[1]) for y in (0, 1) for x in (0, 1)]:
        raise graph.refused(node, "joins parts of the image in a way that no convolution stands for")
    return tuple(order)


def unstacked(weight: NDArray[np.float32], order: Order) -> NDArray[np.float32]:
    """A kernel of the stack as one of the image.

    Args:
        weight: ``(filters, 4 * channels, k, k)``.
        order: Of its ``4 * channels``.

    Returns:
        ``(filters, channels, 2 k, 2 k)``.
    """
    filters, stacked, size, _ = weight.shape
    whole = np.zeros((filters, stacked // 4, 2 * size, 2 * size), np.float32)
    for place, (channel, row, column) in enumerate(order):
        whole[:, channel, row::2, column::2] = weight[:, place]
    return whole
