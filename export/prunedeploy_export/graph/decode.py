"""From raw heads to ``boxes`` and ``scores``, as ONNX nodes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from prunedeploy_export.graph.builder import GraphBuilder
from prunedeploy_export.graph.heads import HEAD_WRITERS, HeadGroup
from prunedeploy_export.graph.network import Cfg

BOXES = "boxes"
SCORES = "scores"


def add_decode(graph: GraphBuilder, cfg: Cfg, raw_heads: Sequence[str]) -> None:
    """Append the nodes that decode.

    The outputs are ``boxes`` ``(N, M, 4)`` xyxy in input pixels and ``scores`` ``(N, M, C)``; M counts head
    by head, then anchor, row, column.

    Args:
        graph: Where to.
        cfg: The network's layers.
        raw_heads: Names of the raw heads, each ``(N, A * V, H, W)``.
    """
    numbered = groupby(range(len(cfg.heads)), key=lambda number: cfg.heads[number].decoding)
    runs = [(decoding, list(numbers)) for decoding, numbers in numbered]
    outputs = []
    for decoding, numbers in runs:
        # Nodes are told apart by the first head's number only where there are heads of several kinds.
        part = "" if len(runs) == 1 else f"/part{numbers[0]}"
        group = HeadGroup(
            heads=[cfg.heads[number] for number in numbers],
            raw=[raw_heads[number] for number in numbers],
            first=numbers[0],
            input_size=cfg.input_shape[1:],
            name=f"decode{part}",
            boxes=BOXES + part,
            scores=SCORES + part,
        )
        HEAD_WRITERS[decoding](graph, group)
        outputs.append((group.boxes, group.scores))
    if len(runs) > 1:
        for output, parts in zip((BOXES, SCORES), zip(*outputs, strict=True), strict=True):
            graph.node("Concat", parts, output, axis=1)
