"""Section ``region``: YOLOv2's head, whose classes are a softmax."""

from __future__ import annotations

from prunedeploy_export.graph.builder import GraphBuilder
from prunedeploy_export.graph.heads.boxes import add_boxes, rows_of, split_head
from prunedeploy_export.graph.heads.group import HeadGroup
from prunedeploy_export.graph.network import Region


def add_region(graph: GraphBuilder, group: HeadGroup[Region]) -> None:
    """Append the nodes that decode (YOLO9000, Redmon and Farhadi 2017, section 2).

    Boxes are those of `add_boxes`; score = sigmoid(objectness) * softmax(classes), or a logistic of each class.

    Args:
        graph: Where to.
        group: The heads.
    """
    box_parts, score_parts = [], []
    for number, (raw, head) in enumerate(zip(group.raw, group.heads, strict=True), start=group.first):
        name = f"head{number}"
        box, objectness, classes = split_head(graph, raw, head, name)
        objectness = graph.node("Sigmoid", [objectness], f"{name}/p_object")
        if head.softmax:
            classes = graph.node("Softmax", [classes], f"{name}/p_class", axis=2)
        else:
            classes = graph.node("Sigmoid", [classes], f"{name}/p_class")
        scores = graph.node("Mul", [classes, objectness], f"{name}/p")  # (N, A, C, H * W)
        box_parts.append(rows_of(graph, box, head, 4))
        score_parts.append(rows_of(graph, scores, head, head.classes))
    graph.node("Concat", score_parts, group.scores, axis=1)
    add_boxes(graph, group, box_parts, [1.0] * len(group.heads), new_coords=False)
