"""Section ``yolo``: logistics for centres, objectness and classes, which under ``new_coords`` are applied already."""

from __future__ import annotations

from prunedeploy_export.graph.builder import GraphBuilder
from prunedeploy_export.graph.heads.boxes import add_boxes, rows_of, split_head
from prunedeploy_export.graph.heads.group import HeadGroup
from prunedeploy_export.graph.network import Yolo


def add_yolo(graph: GraphBuilder, group: HeadGroup[Yolo]) -> None:
    """Append the nodes that decode (YOLOv3, Redmon and Farhadi 2018, section 2.1).

    Boxes are those of `add_boxes`; score = sigmoid(objectness) * sigmoid(class).

    Args:
        graph: Where to.
        group: The heads.
    """
    _add(graph, group, new_coords=False)


def add_yolo_new_coords(graph: GraphBuilder, group: HeadGroup[Yolo]) -> None:
    """The same of heads with ``new_coords``: score = objectness * class."""
    _add(graph, group, new_coords=True)


def _add(graph: GraphBuilder, group: HeadGroup[Yolo], new_coords: bool) -> None:
    box_parts, score_parts = [], []
    for number, (raw, head) in enumerate(zip(group.raw, group.heads, strict=True), start=group.first):
        name = f"head{number}"
        box, objectness, classes = split_head(graph, raw, head, name)
        if not new_coords:
            objectness = graph.node("Sigmoid", [objectness], f"{name}/p_object")
            classes = graph.node("Sigmoid", [classes], f"{name}/p_class")
        scores = graph.node("Mul", [classes, objectness], f"{name}/p")  # (N, A, C, H * W)
        box_parts.append(rows_of(graph, box, head, 4))
        score_parts.append(rows_of(graph, scores, head, head.classes))
    graph.node("Concat", score_parts, group.scores, axis=1)  # of one head too, for the name
    add_boxes(graph, group, box_parts, [head.scale_x_y for head in group.heads], new_coords)
