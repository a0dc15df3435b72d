"""Section ``dfl``: the mean of a distribution over distances for each side of a box."""

from __future__ import annotations

import numpy as np

from prunedeploy_export.graph.builder import GraphBuilder
from prunedeploy_export.graph.heads.boxes import cells_and_strides
from prunedeploy_export.graph.heads.group import HeadGroup
from prunedeploy_export.graph.network import Head

SIDES = 4


def add_dfl(graph: GraphBuilder, group: HeadGroup[Head]) -> None:
    """Append the nodes that decode (Li et al., Generalized Focal Loss, 2020, equations 5 and 6).

    A corner is (cell + 1/2 -+ sum over bins of bin * softmax(logits)) * stride; score = sigmoid(class). The means are a
    product and a sum and no convolution, so that they stay in fp32 where convolutions do not.

    Args:
        graph: Where to.
        group: The heads.
    """
    name, box_parts, class_parts = group.name, [], []
    for number, (raw, head) in enumerate(zip(group.raw, group.heads, strict=True), start=group.first):
        channels, height, width = head.out_shape
        grid = graph.reshape(raw, [0, channels, height * width], f"head{number}/grid")
        outputs, sizes = [f"head{number}/{part}" for part in ("box", "class")], [channels - head.classes, head.classes]
        box, classes = graph.split(grid, outputs, sizes, axis=1)
        box_parts.append(box)
        class_parts.append(classes)
    classes = graph.node("Concat", class_parts, f"{name}/class", axis=2)  # (N, C, M)
    classes = graph.node("Sigmoid", [classes], f"{name}/p_class")
    graph.node("Transpose", [classes], group.scores, perm=[0, 2, 1])

    bins = (group.heads[0].out_shape[0] - group.heads[0].classes) // SIDES
    box = graph.node("Concat", box_parts, f"{name}/box", axis=2)
    box = graph.reshape(box, [0, SIDES, bins, -1], f"{name}/sides")
    box = graph.node("Softmax", [box], f"{name}/p_distance", axis=2)
    values = np.arange(bins, dtype=np.float32).reshape(1, 1, bins, 1)
    box = graph.node("Mul", [box, graph.constant(f"{name}/bins", values)], f"{name}/shares")
    box = graph.node("ReduceSum", [box, graph.integers([2])], f"{name}/distance", keepdims=0)  # (N, 4, M)
    box = graph.node("Transpose", [box], f"{name}/distances", perm=[0, 2, 1])  # (N, M, 4)
    before, behind = graph.split(box, [f"{name}/before", f"{name}/behind"], [2, 2], axis=2)
    cells, strides = cells_and_strides(group)
    centre = graph.constant(f"{name}/middles", cells + np.float32(0.5))
    low = graph.node("Sub", [centre, before], f"{name}/low")
    high = graph.node("Add", [centre, behind], f"{name}/high")
    box = graph.node("Concat", [low, high], f"{name}/corners", axis=2)
    graph.node("Mul", [box, graph.constant(f"{name}/strides", np.tile(strides, 2))], group.boxes)
