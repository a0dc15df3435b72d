"""The end of an exported detector: which convolutions its heads are, and how their values become boxes and scores.

What a file decodes is not read from names: the part between the heads' convolutions and the output is run on numbers
chosen for it, and what it gives says what kind of head it is, and with which anchors. Whether our own section computes
the same is checked afterwards, on random numbers: `differs_by`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import NodeProto
from onnx.reference import ReferenceEvaluator

from prunedeploy.importing.onnx_graph import OnnxGraph, run
from prunedeploy.models.anchor_free_loss import BINS
from prunedeploy.models.sections.head import Head
from prunedeploy_engines.errors import OnnxImportError

_KNOWN = "known are the heads of YOLOv5, v5u, v7, v8, 11 and YOLOX, exported with their decoding"

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Decoding:
    """What turns the heads' values into the output.

    Attributes:
        graph: The whole graph.
        scales: By head in the order of the output, the outputs of the convolutions that it reads.
        tail: Names of the outputs of the nodes behind those convolutions.
        program: Those nodes.
        by_row: Whether the output is ``(1, numbers, predictions)`` instead of ``(1, predictions, numbers)``.
        numbers: Of a prediction in the output.
        anchors: Per cell.
    """

    graph: OnnxGraph
    scales: tuple[tuple[str, ...], ...]
    tail: frozenset[str]
    program: ReferenceEvaluator
    by_row: bool
    numbers: int
    anchors: int

    def run(self, values: Mapping[str, Floats]) -> list[Floats]:
        """The output for values of the convolutions: of each head ``(A, H, W, numbers)``."""
        output = run(self.program, values)[0][0]
        rows, found, start = output.T if self.by_row else output, [], 0
        for names in self.scales:
            height, width = self.graph.shape(names[0])[2:]
            end = start + self.anchors * height * width
            found.append(rows[start:end].reshape(self.anchors, height, width, -1))
            start = end
        return found

    def random(self, seed: int) -> dict[str, Floats]:
        """Values of all convolutions as a trained network has them, from about -4 to 4."""
        generator = np.random.default_rng(seed)
        return {
            name: (generator.standard_normal(self.graph.shape(name)) * 1.5).astype(np.float32)
            for names in self.scales
            for name in names
        }

    def constant(self, value: float) -> dict[str, Floats]:
        """The same number everywhere."""
        return {name: np.full(self.graph.shape(name), value, np.float32) for names in self.scales for name in names}


@dataclass(frozen=True)
class HeadPlan:
    """Sections that decode as the file does.

    Attributes:
        kind: Name of the section.
        options: Of each head's section, in the order of `Decoding.scales`.
        order: By head, the convolutions' outputs as the section reads them.
        logistic: Whether the convolutions end in a logistic.
        decoded: Whether the file's output is decoded; without it boxes are the convolutions' own values.
    """

    kind: str
    options: tuple[str, ...]
    order: tuple[tuple[str, ...], ...]
    logistic: bool = False
    decoded: bool = True


def find_decoding(graph: OnnxGraph) -> Decoding:
    """Follow the output back to the convolutions of the heads.

    Raises:
        OnnxImportError: The file does not end as a detector does.
    """
    heads, tail = _heads(graph)
    scales: dict[tuple[int, ...], list[str]] = {}
    for name in heads:
        if len(graph.shape(name)) != 4:
            raise graph.refused(graph.producers[name], "ends the network, and is no convolution of a map", _KNOWN)
        scales.setdefault(graph.shape(name)[2:], []).append(name)
    shape = graph.shape(graph.output)
    cells = sum(height * width for height, width in scales)
    counts = {len(names) for names in scales.values()}
    fits = [axis for axis in (1, 2) if len(shape) == 3 and cells and shape[axis] % cells == 0]
    if len(counts) != 1 or not fits or shape[0] != 1:
        ends = f"{len(heads)} convolutions on {len(scales)} maps end the network, and its output has shape {shape}"
        raise OnnxImportError(f"is no detector that is known: {ends}", graph.path, _KNOWN)
    axis = fits[-1]
    program = graph.evaluator([node for node in graph.nodes if node.output[0] in tail], heads, [graph.output])
    return Decoding(
        graph,
        tuple(tuple(names) for names in scales.values()),
        frozenset(tail),
        program,
        axis == 2,
        shape[3 - axis],
        shape[axis] // cells,
    )


def _heads(graph: OnnxGraph) -> tuple[list[str], set[str]]:
    """Outputs of the last convolutions, in the order in which the output is put together, and what is behind them."""
    heads: dict[str, None] = {}
    tail: set[str] = set()
    pending = [graph.output]
    while pending:
        name = pending.pop()
        if name in tail or name in heads or name in graph.constants or not name:
            continue
        if name == graph.image:
            what = "its output depends on the image without a convolution"
            raise OnnxImportError(f"is no detector that is known: {what}", graph.path, _KNOWN)
        node = graph.producers[name]
        if node.op_type == "Conv" and not _is_mean_of_bins(graph, node):
            heads[name] = None
        else:
            tail.update(node.output)
            pending.extend(reversed(node.input))
    return list(heads), tail


def _is_mean_of_bins(graph: OnnxGraph, node: NodeProto) -> bool:
    """Whether a convolution is DFL's: one filter with the weights 0, 1, 2 and so on."""
    weight = graph.constants.get(node.input[1])
    return weight is not None and weight.shape[0] == 1 and np.array_equal(weight.ravel(), np.arange(weight.size))


def plan_heads(decoding: Decoding) -> HeadPlan:
    """Say which sections decode as the file does.

    Raises:
        OnnxImportError: None of ours.
    """
    convolutions = len(decoding.scales[0])
    if convolutions == 2 and decoding.anchors == 1:
        return _dfl(decoding)
    if convolutions == 3 and decoding.anchors == 1 and decoding.numbers > 5:
        return _yolox(decoding)
    if convolutions == 1 and decoding.numbers > 5:
        return _anchored(decoding)
    what = f"is no detector that is known: {convolutions} convolutions per map, {decoding.anchors} predictions per cell"
    hint = ", as of segmentation, pose and oriented boxes" if convolutions == 3 else ""
    raise OnnxImportError(f"{what} of {decoding.numbers} numbers{hint}", decoding.graph.path, _KNOWN)


def _dfl(decoding: Decoding) -> HeadPlan:
    order = []
    before = decoding.random(0)
    for at, names in enumerate(decoding.scales):
        changed = {**before, names[0]: decoding.random(1)[names[0]]}
        same = np.array_equal(decoding.run(before)[at][..., 4:], decoding.run(changed)[at][..., 4:])
        order.append(names if same else names[::-1])
        channels = decoding.graph.shape(order[-1][0])[1]
        if channels != 4 * BINS:
            node = decoding.graph.producers[order[-1][0]]
            what = f"gives {channels} numbers for a box, not {4 * BINS}"
            raise decoding.graph.refused(node, what, f"give a network with {BINS} bins per side (reg_max={BINS})")
    return HeadPlan("dfl", (f"classes={decoding.numbers - 4}\n",) * len(order), tuple(order))


def _yolox(decoding: Decoding) -> HeadPlan:
    raw = decoding.random(0)
    boxes = [next((n for n in names if decoding.graph.shape(n)[1] == 4), names[0]) for names in decoding.scales]
    decoded = not all(
        np.array_equal(found[0, ..., :4], raw[name][0].transpose(1, 2, 0))
        for found, name in zip(decoding.run(raw), boxes, strict=True)
    )
    options = (f"classes={decoding.numbers - 5}\n",) * len(boxes)
    return HeadPlan("yolox", options, decoding.scales, decoded=decoded)


def _anchored(decoding: Decoding) -> HeadPlan:
    """Anchors are the sizes at logits of 0, and how these grow says whether it is (2 sigmoid)^2 or exp."""
    at_zero, at_one = (decoding.run(decoding.constant(value)) for value in (0.0, 1.0))
    anchors = np.concatenate([found[:, 0, 0, 2:4] for found in at_zero])  # (all anchors, 2)
    growth = float(np.median(at_one[0][..., 2:4] / np.maximum(at_zero[0][..., 2:4], 1e-9)))
    new_coords = abs(growth - (2 / (1 + np.exp(-1))) ** 2) < 0.01
    listed = ", ".join(f"{width:.9g},{height:.9g}" for width, height in anchors)
    options, first = [], 0
    for _ in decoding.scales:
        mask = ",".join(str(first + place) for place in range(decoding.anchors))
        first += decoding.anchors
        kind = "new_coords=1\nscale_x_y=2.0\niou_loss=ciou\n" if new_coords else ""
        options.append(f"mask={mask}\nanchors={listed}\nclasses={decoding.numbers - 5}\nnum={len(anchors)}\n{kind}")
    return HeadPlan("yolo", tuple(options), decoding.scales, logistic=new_coords)


def differs_by(decoding: Decoding, plan: HeadPlan, heads: Sequence[Head]) -> float:
    """How far our sections are from the file's decoding on random numbers, relative to the largest of each.

    Args:
        decoding: The file's.
        plan: Its plan.
        heads: The sections that were read of it, in the order of ``decoding.scales``.
    """
    values, worst = decoding.random(2), 0.0
    for found, head, names in zip(decoding.run(values), heads, plan.order, strict=True):
        raw = torch.cat([torch.from_numpy(values[name]) for name in names], dim=1)
        raw = torch.sigmoid(raw) if plan.logistic else raw
        theirs = torch.from_numpy(np.ascontiguousarray(found))  # (A, H, W, numbers)
        boxes = head.decode_boxes(head.split(raw), decoding.graph.input_shape[1:])[0]
        if not plan.decoded:
            boxes = head.split(raw)[0, ..., :4]
        scores = head.scores(raw)[0]
        expected = theirs[..., 4:] if not head.has_objectness else theirs[..., 4:5] * theirs[..., 5:]
        for ours, other in ((boxes, theirs[..., :4]), (scores, expected.flatten(0, 2))):
            if ours.shape != other.shape:
                return float("inf")
            worst = max(worst, float((ours - other).abs().max() / other.abs().max().clamp(min=1e-9)))
    return worst
