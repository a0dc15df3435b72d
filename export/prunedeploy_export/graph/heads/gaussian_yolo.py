"""Section ``Gaussian_yolo``: a yolo head whose score falls with the deviations of its box."""

from __future__ import annotations

import numpy as np

from prunedeploy_export.graph.builder import GraphBuilder
from prunedeploy_export.graph.heads.boxes import add_boxes, rows_of, split_head
from prunedeploy_export.graph.heads.group import HeadGroup
from prunedeploy_export.graph.network import GaussianYolo


def add_gaussian_yolo(graph: GraphBuilder, group: HeadGroup[GaussianYolo]) -> None:
    """Append the nodes that decode (Choi et al., Gaussian YOLOv3, 2019).

    Boxes are those of `add_boxes`, of the means; score = sigmoid(objectness) * sigmoid(class) *
    (1 - mean of the four sigmoid(deviation)).

    Args:
        graph: Where to.
        group: The heads.
    """
    quarter = graph.constant("minus_quarter", np.array(-0.25, np.float32))
    one = graph.constant("one", np.array(1, np.float32))
    box_parts, score_parts = [], []
    for number, (raw, head) in enumerate(zip(group.raw, group.heads, strict=True), start=group.first):
        name = f"head{number}"
        box, objectness, classes = split_head(graph, raw, head, name, box_values=8)
        values = graph.split(box, [f"{name}/box/{value}" for value in range(8)], [1] * 8, axis=2)
        means = graph.node("Concat", values[0::2], f"{name}/means", axis=2)  # (N, A, 4, H * W)
        deviations = graph.node("Concat", values[1::2], f"{name}/deviations", axis=2)
        deviations = graph.node("Sigmoid", [deviations], f"{name}/p_deviation")
        total = graph.node("ReduceSum", [deviations, graph.integers([2])], f"{name}/deviation", keepdims=1)
        total = graph.node("Mul", [total, quarter], f"{name}/uncertainty")  # (N, A, 1, H * W)
        certainty = graph.node("Add", [total, one], f"{name}/certainty")
        objectness = graph.node("Sigmoid", [objectness], f"{name}/p_object")
        objectness = graph.node("Mul", [objectness, certainty], f"{name}/p_certain")
        classes = graph.node("Sigmoid", [classes], f"{name}/p_class")
        scores = graph.node("Mul", [classes, objectness], f"{name}/p")  # (N, A, C, H * W)
        box_parts.append(rows_of(graph, means, head, 4))
        score_parts.append(rows_of(graph, scores, head, head.classes))
    graph.node("Concat", score_parts, group.scores, axis=1)
    add_boxes(graph, group, box_parts, [head.scale_x_y for head in group.heads], new_coords=False)
