"""Non-maximum suppression as part of the graph, in operators that every runtime has.

The operator NonMaxSuppression is not used: TensorRT-RTX parses it and cannot build it, full TensorRT looks at
5000 boxes only, and the length of what it gives depends on the data. Here the same greedy suppression is a
fixed point of masked sums over the best candidates: all shapes are fixed but for the batch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import GraphProto, ModelProto, TensorProto, helper

from prunedeploy_engines.runtimes.onnx_file import NmsInGraph
from prunedeploy_engines.runtimes.runner import DETECTION_COLUMNS
from prunedeploy_export.graph.builder import GraphBuilder
from prunedeploy_export.graph.decode import BOXES, SCORES
from prunedeploy_export.graph.edit import metadata_of, set_metadata

DETECTIONS = "detections"
NUM_DETECTIONS = "num_detections"
MAX_CANDIDATES = 512
"""Pairs of box and class per image that enter suppression, the best by score. The memory grows with its square;
TensorRT's TopK ends at 3840."""

_BOOL = TensorProto.BOOL
_BEYOND = np.float32(1e18)  # no box is there: exp(tw) has overflowed, and so would areas


def with_nms(model: ModelProto, nms: NmsInGraph, max_candidates: int = MAX_CANDIDATES) -> ModelProto:
    """A copy that gives detections: suppression within each class is part of the graph.

    Outputs: ``detections`` ``(N, K, 6)`` float32, rows of x1, y1, x2, y2 in input pixels, score, class id, by
    descending score, zeros behind the last; ``num_detections`` ``(N,)`` int32. They are those of
    `prunedeploy_engines.detection.nms.detections_from` with ``pre_nms_top_k=max_candidates``, but that boxes whose
    coordinates add up to 1e18 pixels are none, as those with infinite ones are.

    Args:
        model: Gives ``boxes`` ``(N, M, 4)`` and ``scores`` ``(N, M, C)``.
        nms: Thresholds, and K; K is lowered to the number of candidates.
        max_candidates: Lowered to M * C.

    Raises:
        ValueError: A threshold is outside [0, 1], or a number is below 1.

    Reference: Felzenszwalb et al., Object Detection with Discriminatively Trained Part Based Models, 2010,
        section 6.2; greedy suppression as a fixed point: a box stays if no better box that stays overlaps it.
    """
    thresholds_fit = 0 <= nms.score_threshold <= 1 and 0 <= nms.iou_threshold <= 1
    if not thresholds_fit or min(nms.max_detections, max_candidates) < 1:
        raise ValueError(f"thresholds must be in [0, 1] and numbers at least 1, got {nms}, {max_candidates}")
    copy = ModelProto.FromString(model.SerializeToString())
    output = next(value for value in copy.graph.output if value.name == SCORES)
    predictions, classes = (dim.dim_value for dim in output.type.tensor_type.shape.dim[1:])
    candidates = min(max_candidates, predictions * classes)
    used = replace(nms, max_detections=min(nms.max_detections, candidates))
    _Suppression(copy.graph, classes, candidates, used).add()
    del copy.graph.output[:]
    table: list[str | int | None] = ["batch", used.max_detections, DETECTION_COLUMNS]
    copy.graph.output.append(helper.make_tensor_value_info(DETECTIONS, TensorProto.FLOAT, table))
    copy.graph.output.append(helper.make_tensor_value_info(NUM_DETECTIONS, TensorProto.INT32, ["batch"]))
    names = metadata_of(copy).get("class_names", json.dumps([f"class {number}" for number in range(classes)]))
    set_metadata(copy, class_names=names, nms=json.dumps(asdict(used)), nms_candidates=str(candidates))
    return copy


class _Suppression:
    """Appends the nodes; N is the batch, Q the number of candidates, K of detections."""

    def __init__(self, graph: GraphProto, classes: int, candidates: int, nms: NmsInGraph) -> None:
        self._graph = GraphBuilder(graph)
        self._classes, self._candidates, self._nms = classes, candidates, nms

    def add(self) -> None:
        """Append everything."""
        scores, boxes, class_ids = self._best_candidates()  # (N, Q), (N, Q, 4), (N, Q)
        above = self._node("Greater", [scores, self._constant("score_threshold", self._nms.score_threshold)], "above")
        valid = self._column(self._node("Cast", [above], "above_float", to=TensorProto.FLOAT), "valid")
        kept = self._fixed_point(self._suppresses(boxes, class_ids), valid)  # (N, Q, 1), 1 or 0
        stays = self._node("Cast", [self._node("Squeeze", [kept, self._axis(2)], "kept")], "kept_bool", to=_BOOL)
        alive = self._node("Where", [stays, scores, self._constant("zero", 0.0)], "alive")
        columns = [
            boxes,
            self._node("Unsqueeze", [scores, self._axis(2)], "score_column"),
            self._node("Cast", [self._column(class_ids, "class_id_column")], "class_column", to=TensorProto.FLOAT),
        ]
        self._detections(alive, self._node("Concat", columns, "table", axis=2))

    def _best_candidates(self) -> tuple[str, str, str]:
        """Scores, boxes and class ids by descending score; equal ones in the order of (box, class)."""
        rows = self._constant("flat", np.array([0, -1]))
        flat = self._node("Reshape", [self._scores_of_boxes(), rows], "flat_scores")
        scores, index = self._top(flat, self._candidates, "candidate")
        count = self._constant("classes", np.array(self._classes))
        row = self._node("Div", [index, count], "row")
        class_ids = self._node("Sub", [index, self._node("Mul", [row, count], "row_start")], "class_id")
        return scores, self._gather(BOXES, row, "candidate_box"), class_ids

    def _scores_of_boxes(self) -> str:
        """Scores ``(N, M, C)``, 0 where the box is none, so that it takes no candidate's place."""
        reach = self._node("ReduceSum", [self._node("Abs", [BOXES], "distances"), self._axis(2)], "reach", keepdims=1)
        finite = self._node("Less", [reach, self._constant("beyond", _BEYOND)], "finite")  # (N, M, 1)
        return self._node("Where", [finite, SCORES, self._constant("zero", 0.0)], "scores_of_boxes")

    def _suppresses(self, boxes: str, class_ids: str) -> str:
        """``(N, Q, Q)``: 1 where the column's candidate would drop the row's: better, same class, overlapping."""
        ones = self._constant("ones", np.ones(4, np.int64))
        outputs = [f"nms/{corner}" for corner in ("x1", "y1", "x2", "y2")]
        x1, y1, x2, y2 = self._graph.nodes("Split", [boxes, ones], outputs, "nms/corners", axis=2)  # (N, Q, 1) each
        width = self._node("Relu", [self._node("Sub", [x2, x1], "width")], "width_or_0")
        height = self._node("Relu", [self._node("Sub", [y2, y1], "height")], "height_or_0")
        area = self._node("Mul", [width, height], "area")
        shared = [self._shared(low, high) for low, high in ((x1, x2), (y1, y2))]
        intersection = self._node("Mul", shared, "intersection")  # (N, Q, Q)
        both = self._node("Add", [area, self._turned(area)], "both_areas")
        union = self._node("Sub", [both, intersection], "union")
        # No division, so that 0 / 0 is no case.
        limit = self._node("Mul", [union, self._constant("iou_threshold", self._nms.iou_threshold)], "limit")
        overlaps = self._node("Greater", [intersection, limit], "overlaps")
        column = self._column(class_ids, "class_of_row")
        line = self._node("Unsqueeze", [class_ids, self._axis(1)], "class_of_column")
        same = self._node("And", [overlaps, self._node("Equal", [column, line], "same_class")], "competes")
        rank = np.arange(self._candidates)
        ranks = [self._constant("rank_line", rank[None, None, :]), self._constant("rank_column", rank[None, :, None])]
        suppresses = self._node("And", [same, self._node("Less", ranks, "better")], "suppresses")
        return self._node("Cast", [suppresses], "suppresses_float", to=TensorProto.FLOAT)

    def _shared(self, low: str, high: str) -> str:
        """Length that two candidates share along one axis, ``(N, Q, Q)``."""
        name = low.removeprefix("nms/")[0]
        end = self._node("Min", [high, self._turned(high)], f"shared_{name}_end")
        start = self._node("Max", [low, self._turned(low)], f"shared_{name}_start")
        return self._node("Relu", [self._node("Sub", [end, start], f"shared_{name}")], f"shared_{name}_or_0")

    def _fixed_point(self, suppresses: str, valid: str) -> str:
        """``(N, Q, 1)``: 1 for candidates that stay. At the latest after Q rounds nothing changes any more."""
        column: list[str | int | None] = ["batch", self._candidates, 1]
        body = [
            helper.make_node("Transpose", ["nms/before"], ["nms/before_line"], perm=[0, 2, 1]),
            # Not a MatMul: TensorRT-RTX has none in fp32 inside a Loop for Turing (sm75).
            helper.make_node("Mul", [suppresses, "nms/before_line"], ["nms/suppressing"]),  # (N, Q, Q)
            helper.make_node("ReduceSum", ["nms/suppressing", self._axis(2)], ["nms/better_ones"], keepdims=1),
            helper.make_node("Less", ["nms/better_ones", self._constant("half", 0.5)], ["nms/free"]),
            helper.make_node("Cast", ["nms/free"], ["nms/free_float"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["nms/free_float", valid], ["nms/after"]),
            helper.make_node("Sub", ["nms/after", "nms/before"], ["nms/change"]),
            helper.make_node("Abs", ["nms/change"], ["nms/changed"]),
            helper.make_node("ReduceMax", ["nms/changed"], ["nms/most_changed"], keepdims=0),
            helper.make_node("Greater", ["nms/most_changed", self._constant("half", 0.5)], ["nms/go_on"]),
        ]
        info = helper.make_tensor_value_info
        before, after = (info(f"nms/{name}", TensorProto.FLOAT, column) for name in ("before", "after"))
        go_on_before, go_on = (info(f"nms/{name}", _BOOL, []) for name in ("go_on_before", "go_on"))
        inputs = [info("nms/round", TensorProto.INT64, []), go_on_before, before]
        graph = helper.make_graph(body, "nms_round", inputs, [go_on, after])
        limit = self._constant("rounds", np.array(self._candidates))
        return self._node("Loop", [limit, self._constant("start", np.array(True)), valid], "stays", body=graph)

    def _detections(self, alive: str, table: str) -> None:
        """The best K rows of the table ``(N, Q, 6)`` by the scores that are left."""
        best, index = self._top(alive, self._nms.max_detections, "best")
        rows = self._gather(table, index, "rows")
        zero = self._constant("zero", 0.0)
        found = self._node("Greater", [best, zero], "found")
        mask = self._node("Unsqueeze", [found, self._axis(2)], "found_column")
        self._graph.node("Where", [mask, rows, zero], DETECTIONS)
        counted = self._node("Cast", [found], "counted", to=TensorProto.INT32)
        self._graph.node("ReduceSum", [counted, self._axis(1)], NUM_DETECTIONS, keepdims=0)

    def _top(self, source: str, count: int, name: str) -> Sequence[str]:
        """Names of the best scores, best first, and of their indices."""
        inputs = [source, self._constant(f"{name}_count", np.array([count]))]
        outputs = [f"nms/{name}_score", f"nms/{name}_index"]
        return self._graph.nodes("TopK", inputs, outputs, f"nms/{name}", axis=1, largest=1, sorted=1)

    def _gather(self, source: str, rows: str, name: str) -> str:
        """Rows of ``(N, R, ...)`` by ``(N, Q)``."""
        return self._node("GatherND", [source, self._column(rows, f"{name}_index")], name, batch_dims=1)

    def _column(self, source: str, name: str) -> str:
        return self._node("Unsqueeze", [source, self._axis(2)], name)

    def _turned(self, source: str) -> str:
        """``(N, Q, 1)`` to ``(N, 1, Q)``."""
        return self._node("Transpose", [source], f"{source.removeprefix('nms/')}_turned", perm=[0, 2, 1])

    def _axis(self, axis: int) -> str:
        return self._constant(f"axis_{axis}", np.array([axis]))

    def _constant(self, name: str, value: float | np.float32 | npt.NDArray) -> str:
        array = value if isinstance(value, np.ndarray) else np.asarray(value, np.float32)
        return self._graph.constant(f"nms/{name}", array)

    def _node(self, op: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        return self._graph.node(op, inputs, f"nms/{name}", **attributes)
