"""Non-maximum suppression as part of the graph, in operators that every runtime has.

The operator NonMaxSuppression is not used: TensorRT-RTX parses it and cannot build it, full TensorRT looks at
5000 boxes only, and the length of what it gives depends on the data. Here the same greedy suppression is a loop over
the detections, each of which takes out of the best candidates what it overlaps: all shapes are fixed but for the
batch, and so is the most that is computed, whatever the image (docs/flood.md): Q * Q pairs of candidates are compared
and at most K rounds look at Q of them each.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import GraphProto, ModelProto, TensorProto, helper

from prunedeploy_engines.detection.nms import MAX_CANDIDATES
from prunedeploy_engines.runtimes.onnx_file import NmsInGraph
from prunedeploy_engines.runtimes.runner import DETECTION_COLUMNS
from prunedeploy_export.graph.builder import GraphBuilder
from prunedeploy_export.graph.decode import BOXES, SCORES
from prunedeploy_export.graph.edit import metadata_of, set_metadata

DETECTIONS = "detections"
NUM_DETECTIONS = "num_detections"
LARGEST_TOP_K = 3840
"""TensorRT's."""

_BOOL = TensorProto.BOOL
_TAKEN, _DROPPED = np.float32(-1), np.float32(-2)
"""Marks of candidates; one that is still open has its own, above 0."""
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
        max_candidates: Lowered to M * C, and to `LARGEST_TOP_K`. The memory grows with its square.

    Raises:
        ValueError: A threshold is outside [0, 1], or a number is below 1.

    Reference: Felzenszwalb et al., Object Detection with Discriminatively Trained Part Based Models, 2010,
        section 6.2.
    """
    thresholds_fit = 0 <= nms.score_threshold <= 1 and 0 <= nms.iou_threshold <= 1
    if not thresholds_fit or min(nms.max_detections, max_candidates) < 1:
        raise ValueError(f"thresholds must be in [0, 1] and numbers at least 1, got {nms}, {max_candidates}")
    copy = ModelProto.FromString(model.SerializeToString())
    output = next(value for value in copy.graph.output if value.name == SCORES)
    predictions, classes = (dim.dim_value for dim in output.type.tensor_type.shape.dim[1:])
    candidates = min(max_candidates, predictions * classes, LARGEST_TOP_K)
    used = replace(nms, max_detections=min(nms.max_detections, candidates))
    opset = next(entry.version for entry in copy.opset_import if entry.domain in ("", "ai.onnx"))
    _Suppression(copy.graph, predictions, classes, candidates, used, opset).add()
    del copy.graph.output[:]
    table: list[str | int | None] = ["batch", used.max_detections, DETECTION_COLUMNS]
    copy.graph.output.append(helper.make_tensor_value_info(DETECTIONS, TensorProto.FLOAT, table))
    copy.graph.output.append(helper.make_tensor_value_info(NUM_DETECTIONS, TensorProto.INT32, ["batch"]))
    names = metadata_of(copy).get("class_names", json.dumps([f"class {number}" for number in range(classes)]))
    set_metadata(copy, class_names=names, nms=json.dumps(asdict(used)), nms_candidates=str(candidates))
    return copy


class _Suppression:
    """Appends the nodes; N is the batch, Q the number of candidates, K of detections."""

    def __init__(
        self, graph: GraphProto, predictions: int, classes: int, candidates: int, nms: NmsInGraph, opset: int
    ) -> None:
        self._graph, self._opset = GraphBuilder(graph), opset
        self._predictions, self._classes, self._candidates, self._nms = predictions, classes, candidates, nms

    def add(self) -> None:
        """Append everything."""
        scores, boxes, class_ids = self._best_candidates()  # (N, Q), (N, Q, 4), (N, Q)
        above = self._node("Greater", [scores, self._constant("score_threshold", self._nms.score_threshold)], "above")
        marks = self._node("Where", [above, self._open_marks(), self._constant("dropped", _DROPPED)], "at_first")
        kept = self._taken_one_by_one(self._effects(boxes, class_ids), marks)
        alive = self._node("Where", [kept, scores, self._constant("zero", 0.0)], "alive")
        columns = [
            boxes,
            self._node("Unsqueeze", [scores, self._axis(2)], "score_column"),
            self._node("Cast", [self._column(class_ids, "class_id_column")], "class_column", to=TensorProto.FLOAT),
        ]
        self._detections(alive, self._node("Concat", columns, "table", axis=2))

    def _best_candidates(self) -> tuple[str, str, str]:
        """Scores, boxes and class ids by descending score; equal ones in the order of (box, class)."""
        scores, boxes = self._scores_of_boxes(), BOXES
        if self._classes > 1 and self._predictions > self._candidates:
            # The best Q pairs lie in the Q boxes with the best pair each; in the order of the boxes, for equal scores.
            best = self._best_of_each(scores)
            _, best_rows = self._top(best, self._candidates, "best_box")
            order = self._node("Cast", [best_rows], "best_box_float", to=TensorProto.FLOAT)
            ascending, _ = self._top(order, self._candidates, "box", largest=0)
            box_rows = self._node("Cast", [ascending], "box_row", to=TensorProto.INT64)
            scores = self._gather(scores, box_rows, "scores_of_best")
            boxes = self._gather(BOXES, box_rows, "best_boxes")
        flat = self._node("Reshape", [scores, self._constant("flat", np.array([0, -1]))], "flat_scores")
        scores, index = self._top(flat, self._candidates, "candidate")
        count = self._constant("classes", np.array(self._classes))
        row = self._node("Div", [index, count], "row")
        class_ids = self._node("Sub", [index, self._node("Mul", [row, count], "row_start")], "class_id")
        return scores, self._gather(boxes, row, "candidate_box"), class_ids

    def _best_of_each(self, scores: str) -> str:
        """``(N, M)`` of ``(N, M, C)``."""
        if self._opset < 18:  # axes became an input then
            return self._node("ReduceMax", [scores], "best_of_box", axes=[2], keepdims=0)
        return self._node("ReduceMax", [scores, self._axis(2)], "best_of_box", keepdims=0)

    def _scores_of_boxes(self) -> str:
        """Scores ``(N, M, C)``, 0 where the box is none, so that it takes no candidate's place."""
        reach = self._node("ReduceSum", [self._node("Abs", [BOXES], "distances"), self._axis(2)], "reach", keepdims=1)
        finite = self._node("Less", [reach, self._constant("beyond", _BEYOND)], "finite")  # (N, M, 1)
        return self._node("Where", [finite, SCORES, self._constant("zero", 0.0)], "scores_of_boxes")

    def _effects(self, boxes: str, class_ids: str) -> str:
        """``(N, Q, Q)``: what becomes of the column's mark, at most, once the row's candidate is taken."""
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
        ranks = [self._constant("rank_column", rank[None, :, None]), self._constant("rank_line", rank[None, None, :])]
        suppresses = self._node("And", [same, self._node("Less", ranks, "better")], "suppresses")
        untouched = np.full((self._candidates, self._candidates), self._candidates, np.float32)
        np.fill_diagonal(untouched, _TAKEN)
        marks = [self._constant("dropped", _DROPPED), self._constant("untouched", untouched[None])]
        return self._node("Where", [suppresses, *marks], "effects")

    def _open_marks(self) -> str:
        """``(1, Q)``: Q for the best candidate down to 1, so that the largest mark is that of the best one open."""
        return self._constant("open", np.arange(self._candidates, 0, -1, dtype=np.float32)[None])

    def _shared(self, low: str, high: str) -> str:
        """Length that two candidates share along one axis, ``(N, Q, Q)``."""
        name = low.removeprefix("nms/")[0]
        end = self._node("Min", [high, self._turned(high)], f"shared_{name}_end")
        start = self._node("Max", [low, self._turned(low)], f"shared_{name}_start")
        return self._node("Relu", [self._node("Sub", [end, start], f"shared_{name}")], f"shared_{name}_or_0")

    def _taken_one_by_one(self, effects: str, marks: str) -> str:
        """``(N, Q)`` bool, the K best candidates that stay: K times the best open one is taken.

        Marks only fall. An image without an open candidate does not change any more: its largest mark is that of one
        taken already, whose effects are there, or all are dropped, and a dropped one's effects change nothing.
        """
        line: list[str | int | None] = ["batch", self._candidates]
        body = [
            helper.make_node("ArgMax", ["nms/before"], ["nms/best_open"], axis=1, keepdims=1),  # (N, 1)
            helper.make_node("GatherND", [effects, "nms/best_open"], ["nms/effect"], batch_dims=1),  # (N, Q)
            helper.make_node("Min", ["nms/before", "nms/effect"], ["nms/after"]),
            helper.make_node("ReduceMax", ["nms/after"], ["nms/largest_mark"], keepdims=0),
            helper.make_node("Greater", ["nms/largest_mark", self._constant("zero", 0.0)], ["nms/go_on"]),
        ]
        info = helper.make_tensor_value_info
        before, after = (info(f"nms/{name}", TensorProto.FLOAT, line) for name in ("before", "after"))
        go_on_before, go_on = (info(f"nms/{name}", _BOOL, []) for name in ("go_on_before", "go_on"))
        inputs = [info("nms/round", TensorProto.INT64, []), go_on_before, before]
        graph = helper.make_graph(body, "nms_round", inputs, [go_on, after])
        limit = self._constant("rounds", np.array(self._nms.max_detections))
        left = self._node("Loop", [limit, self._constant("start", np.array(True)), marks], "marks_left", body=graph)
        return self._node("Equal", [left, self._constant("taken", _TAKEN)], "kept")

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

    def _top(self, source: str, count: int, name: str, largest: int = 1) -> Sequence[str]:
        """Names of the best scores, best first, and of their indices; of the lowest, lowest first, unless largest."""
        inputs = [source, self._constant(f"{name}_count", np.array([count]))]
        outputs = [f"nms/{name}_score", f"nms/{name}_index"]
        return self._graph.nodes("TopK", inputs, outputs, f"nms/{name}", axis=1, largest=largest, sorted=1)

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
