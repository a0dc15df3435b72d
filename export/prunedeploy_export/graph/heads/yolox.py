"""Section ``yolox``: centres as they are, sizes as exponentials, both in cells."""

from __future__ import annotations

import numpy as np

from prunedeploy_export.graph.builder import GraphBuilder
from prunedeploy_export.graph.heads.boxes import cells_and_strides, rows_of, split_head
from prunedeploy_export.graph.heads.group import HeadGroup
from prunedeploy_export.graph.network import Head


def add_yolox(graph: GraphBuilder, group: HeadGroup[Head]) -> None:
    """Append the nodes that decode (Ge et al., YOLOX, 2021, section 2.1).

    centre = (cell + txy) * stride, size = exp(twh) * stride; score = sigmoid(objectness) * sigmoid(class).

    Args:
        graph: Where to.
        group: The heads.
    """
    name, box_parts, score_parts = group.name, [], []
    for number, (raw, head) in enumerate(zip(group.raw, group.heads, strict=True), start=group.first):
        own = f"head{number}"
        box, objectness, classes = split_head(graph, raw, head, own)
        objectness = graph.node("Sigmoid", [objectness], f"{own}/p_object")
        classes = graph.node("Sigmoid", [classes], f"{own}/p_class")
        scores = graph.node("Mul", [classes, objectness], f"{own}/p")  # (N, 1, C, H * W)
        box_parts.append(rows_of(graph, box, head, 4))
        score_parts.append(rows_of(graph, scores, head, head.classes))
    graph.node("Concat", score_parts, group.scores, axis=1)
    box = graph.node("Concat", box_parts, f"{name}/predictions", axis=1)  # (N, M, 4)
    centre, size = graph.split(box, [f"{name}/txy", f"{name}/twh"], [2, 2], axis=2)
    cells, strides = cells_and_strides(group)
    centre = graph.node("Add", [centre, graph.constant(f"{name}/cells", cells)], f"{name}/centre")
    size = graph.node("Exp", [size], f"{name}/size")
    half = graph.node("Mul", [size, graph.constant(f"{name}/half", np.array(0.5, np.float32))], f"{name}/half_size")
    low = graph.node("Sub", [centre, half], f"{name}/low")
    high = graph.node("Add", [centre, half], f"{name}/high")
    box = graph.node("Concat", [low, high], f"{name}/corners", axis=2)
    graph.node("Mul", [box, graph.constant(f"{name}/strides", np.tile(strides, 2))], group.boxes)
