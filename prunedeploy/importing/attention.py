"""Self-attention in an exported graph: one convolution gives queries, keys and values, which a Softmax weighs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import NodeProto

from prunedeploy.importing.onnx_graph import OnnxGraph, run
from prunedeploy.models.sections.attention import Attention

_INSIDE = ("Reshape", "Split", "Slice", "Transpose", "Mul", "Div", "MatMul", "Softmax")
_TOLERANCE = 1e-5


@dataclass(frozen=True, eq=False)
class AttentionFound:
    """An attention behind a convolution.

    Attributes:
        heads: Its number of heads.
        scale: Factor of the products.
        queries: Filters of the convolution that are queries, head by head; ``keys`` and ``values`` likewise.
        keys: See there.
        values: See there.
        means: Name of the tensor that it gives.
        passed_on: Name of the tensor of the values themselves, where something else reads them; None if nothing does.
        inside: Outputs of the nodes that it consists of.
    """

    heads: int
    scale: float
    queries: NDArray[np.int64]
    keys: NDArray[np.int64]
    values: NDArray[np.int64]
    means: str
    passed_on: str | None
    inside: frozenset[str]


def attention_behind(graph: OnnxGraph, tensor: str) -> AttentionFound | None:
    """The attention that reads a convolution's output; None if what reads it is something else.

    Raises:
        OnnxImportError: There is a Softmax, but what is around it does not compute what our section computes.
    """
    first = graph.readers.get(tensor, ())
    if len(first) != 1 or first[0].op_type != "Reshape":
        return None
    inside, exits = _region(graph, tensor)
    softmax = next((node for node in inside if node.op_type == "Softmax"), None)
    if softmax is None:
        return None
    refused = graph.refused(softmax, "belongs to an attention of a kind that is not known", "give YOLO11's, or none")
    split = graph.shape(first[0].output[0])
    behind = {name for node in _behind(graph, softmax) for name in node.output}
    means = [name for name in exits if name in behind]
    others = [name for name in exits if name not in behind]
    if len(split) != 4 or len(means) != 1 or len(others) > 1 or any(len(graph.shape(name)) != 4 for name in exits):
        raise refused
    _, heads, numbers, _ = split
    value_length, rest = divmod(graph.shape(means[0])[1], heads)
    key_length, odd = divmod(numbers - value_length, 2)
    if rest or odd or key_length < 1:
        raise refused
    places = np.arange(heads * numbers).reshape(heads, numbers)
    queries, keys, values = (part.reshape(-1) for part in np.split(places, [key_length, 2 * key_length], axis=1))
    found = AttentionFound(
        heads,
        _scale(graph, inside),
        queries,
        keys,
        values,
        means[0],
        others[0] if others else None,
        frozenset(name for node in inside for name in node.output),
    )
    if not _computes(graph, tensor, inside, found):
        raise refused
    return found


def _region(graph: OnnxGraph, tensor: str) -> tuple[list[NodeProto], list[str]]:
    """The nodes of an attention's operators behind a tensor, and those of their outputs that others read."""
    reached = {tensor}
    inside: list[NodeProto] = []
    for node in graph.nodes:
        own = [name for name in node.input if name and name not in graph.constants]
        if node.op_type in _INSIDE and reached.issuperset(own):
            inside.append(node)
            reached.update(node.output)
    ours = {id(node) for node in inside}
    exits = [
        name
        for node in inside
        for name in node.output
        if any(id(reader) not in ours for reader in graph.readers.get(name, ()))
    ]
    return inside, exits


def _behind(graph: OnnxGraph, node: NodeProto) -> list[NodeProto]:
    found, reached = [node], set(node.output)
    for other in graph.nodes:
        if not reached.isdisjoint(other.input):
            found.append(other)
            reached.update(other.output)
    return found


def _scale(graph: OnnxGraph, inside: list[NodeProto]) -> float:
    """The product of the numbers that something is multiplied by."""
    scale = 1.0
    for node in inside:
        for name in node.input if node.op_type in ("Mul", "Div") else ():
            if name in graph.constants and graph.constants[name].size == 1:
                value = float(graph.constants[name].reshape(-1)[0])
                scale = scale * value if node.op_type == "Mul" else scale / value
    return scale if math.isfinite(scale) else 0.0


def _computes(graph: OnnxGraph, tensor: str, inside: list[NodeProto], found: AttentionFound) -> bool:
    """Whether the file's nodes and our section give the same for random numbers."""
    shape = graph.shape(tensor)
    raw = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    wanted = [found.means] + ([found.passed_on] if found.passed_on else [])
    theirs = run(graph.evaluator(inside, [tensor], wanted), {tensor: raw})
    parts = [torch.from_numpy(raw[:, part]) for part in (found.queries, found.keys, found.values)]
    widths = tuple(part.shape[1] for part in parts)
    layer = Attention(0, "attention", 0, (0, 1, 2), widths, (widths[2], shape[2], shape[3]), found.heads, found.scale)
    ours = [layer.run(parts, {}), parts[2]]
    return all(
        one.shape == other.shape and bool(np.abs(one.numpy() - other).max() <= _TOLERANCE * np.abs(other).max())
        for one, other in zip(ours, theirs, strict=False)
    )
