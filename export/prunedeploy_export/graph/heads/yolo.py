"""Section ``yolo``: logistics for centres, objectness and classes.

What the decoding knows beforehand (cells, strides, anchors) is a constant for all predictions of all heads,
so one multiplication and one addition do it: the whole tail costs a few passes over the predictions.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from prunedeploy_export.graph.builder import GraphBuilder
from prunedeploy_export.graph.heads.group import HeadGroup
from prunedeploy_export.graph.network import Yolo


def add_yolo(graph: GraphBuilder, group: HeadGroup[Yolo]) -> None:
    """Append the nodes that decode (YOLOv3, Redmon and Farhadi 2018, section 2.1).

    centre = (sigmoid(txy) * s - (s - 1) / 2 + cell) * stride and size = anchor * exp(twh), in input pixels,
    with s = ``scale_x_y``; score = sigmoid(objectness) * sigmoid(class).

    Args:
        graph: Where to.
        group: The heads.
    """
    box_parts, score_parts = [], []
    for number, (raw, head) in enumerate(zip(group.raw, group.heads, strict=True), start=group.first):
        boxes, scores = _split_head(graph, raw, head, f"head{number}")
        box_parts.append(boxes)
        score_parts.append(scores)
    graph.node("Concat", score_parts, group.scores, axis=1)  # of one head too, for the name

    name = group.name
    constants = (_constants(head, group.input_size) for head in group.heads)
    centre_scale, centre_shift, half_anchors = (
        np.concatenate(parts, axis=1) for parts in zip(*constants, strict=True)
    )  # (1, M, 2) each
    predictions = graph.node("Concat", box_parts, f"{name}/predictions", axis=1)  # (N, M, 4)
    txy, twh = graph.split(predictions, [f"{name}/txy", f"{name}/twh"], [2, 2], axis=2)
    centre = graph.node("Sigmoid", [txy], f"{name}/sigmoid")
    centre = graph.node("Mul", [centre, graph.constant(f"{name}/centre_scale", centre_scale)], f"{name}/scaled")
    centre = graph.node("Add", [centre, graph.constant(f"{name}/centre_shift", centre_shift)], f"{name}/centre")
    half = graph.node("Exp", [twh], f"{name}/exp")
    half = graph.node("Mul", [half, graph.constant(f"{name}/half_anchors", half_anchors)], f"{name}/half_size")
    low = graph.node("Sub", [centre, half], f"{name}/low")
    high = graph.node("Add", [centre, half], f"{name}/high")
    graph.node("Concat", [low, high], group.boxes, axis=2)


def _split_head(graph: GraphBuilder, raw: str, head: Yolo, name: str) -> tuple[str, str]:
    """Append the nodes from a raw head to its predictions, row by row.

    Returns:
        Names of txy and twh ``(N, A * H * W, 4)``, and of the scores ``(N, A * H * W, C)``.
    """
    channels, height, width = head.out_shape
    anchors, cells = len(head.head_anchors_wh), height * width
    # While the channels still stand before the cells, splitting copies whole blocks.
    grid = graph.reshape(raw, [0, anchors, channels // anchors, cells], f"{name}/grid")
    box, objectness, classes = graph.split(
        grid, [f"{name}/box", f"{name}/objectness", f"{name}/class"], [4, 1, head.classes], axis=2
    )
    objectness = graph.node("Sigmoid", [objectness], f"{name}/p_object")
    classes = graph.node("Sigmoid", [classes], f"{name}/p_class")
    scores = graph.node("Mul", [classes, objectness], f"{name}/p")  # (N, A, C, H * W)
    flat = []
    for value, length in ((box, 4), (scores, head.classes)):
        rows = graph.node("Transpose", [value], f"{value}/rows", perm=[0, 1, 3, 2])
        flat.append(graph.reshape(rows, [0, anchors * cells, length], f"{value}/flat"))
    return flat[0], flat[1]


def _constants(head: Yolo, input_size: tuple[int, int]) -> tuple[npt.NDArray[np.float32], ...]:
    """Compute what decoding knows beforehand of one head.

    Returns:
        Three arrays ``(1, A * H * W, 2)`` in input pixels: centre = sigmoid(txy) * first + second, and
        half the size = exp(twh) * third.
    """
    _, height, width = head.out_shape
    stride = np.array([input_size[1] / width, input_size[0] / height])
    anchors = np.array(head.head_anchors_wh)
    rows, columns = np.mgrid[:height, :width]
    cells = np.stack((columns, rows), axis=-1)  # (H, W, 2)
    shape = (len(anchors), height, width, 2)
    scale = np.broadcast_to(head.scale_x_y * stride, shape)
    shift = np.broadcast_to((cells - (head.scale_x_y - 1) / 2) * stride, shape)
    half_anchors = np.broadcast_to(anchors[:, None, None] / 2, shape)
    return tuple(values.reshape(1, -1, 2).astype(np.float32) for values in (scale, shift, half_anchors))
