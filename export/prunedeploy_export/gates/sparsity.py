"""The gate of n:m sparsity: whether the weights that a file really holds have the pattern.

Folding batch normalisation multiplies a whole filter, a lower precision rounds towards zero, and 8 bits without a
zero point keep zeros: a pattern survives all of them. This looks instead of trusting that.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from onnx import NodeProto

from prunedeploy_engines.errors import EngineError, GateError
from prunedeploy_export.graph.edit import GraphEditor, convolutions, read_model


@dataclass(frozen=True)
class BlockCount:
    """What the weights of one convolution hold.

    Attributes:
        weights: Their number.
        zeros: How many of them are zero.
        blocks: Number of blocks; 0 where the input channels are not a multiple of m.
        broken: Blocks with more than n weights that are not zero.
    """

    weights: int
    zeros: int
    blocks: int
    broken: int


def check_onnx_pattern(path: str | Path, n: int, m: int, *, dense: Collection[str] = ()) -> dict[str, BlockCount]:
    """Count blocks of m consecutive input channels with more than n weights that are not zero.

    Args:
        path: An ONNX file; its convolutions' weights are constants in fp32, fp16 or 8 bits.
        n: Weights of a block that may be other than zero.
        m: Length of a block.
        dense: Layers that need not have the pattern, by the exporter's name, e.g. ``layer0``.

    Returns:
        Of every convolution in the file, by the name of its layer, also of the dense ones.

    Raises:
        GateError: A layer that is not in ``dense`` does not have the pattern; or no layer was left to look at.
        EngineError: It is not an ONNX file, or the weights of a convolution are not constants in it.
    """
    editor = GraphEditor(read_model(path).graph)
    counts = {}
    for node in convolutions(editor.graph):
        counts[node.name.partition("/")[0]] = _count(_zeros(editor, node, path), n, m)
    wrong = []
    for name, count in counts.items():
        if name not in dense and (count.blocks == 0 or count.broken):
            wrong.append(f"{name} ({count.broken} of {count.blocks} blocks)")
    if wrong:
        raise GateError(f"weights do not have the pattern {n}:{m}: {', '.join(wrong)}", path, "prune again")
    if not counts.keys() - set(dense):
        raise GateError(f"no convolution has the pattern {n}:{m}", path, "prune again")
    return counts


def _count(zeros: npt.NDArray[np.bool_], n: int, m: int) -> BlockCount:
    filters, channels, *kernel = zeros.shape
    if channels % m:
        return BlockCount(zeros.size, int(zeros.sum()), 0, 0)
    # (filters, channels, ...) -> (filters, channels / m, m, ...) -> (filters, channels / m, ...)
    living = (~zeros.reshape(filters, channels // m, m, *kernel)).sum(axis=2)
    return BlockCount(zeros.size, int(zeros.sum()), living.size, int((living > n).sum()))


def _zeros(editor: GraphEditor, convolution: NodeProto, path: str | Path) -> npt.NDArray[np.bool_]:
    """Which weights of a convolution are zero, ``(filters, channels / groups, ...)``."""
    name, zero_point = convolution.input[1], np.zeros((), np.int8)
    while name in editor.producers:
        node = editor.producers[name]
        if node.op_type == "DequantizeLinear":
            zero_point = editor.array(node.input[2]) if len(node.input) > 2 else zero_point
        elif node.op_type in ("QuantizeLinear", "Cast"):
            zero_point = np.zeros((), np.int8)
        else:
            break
        name = node.input[0]
    if name not in editor.constants:
        raise EngineError(f"the weights of {convolution.name} are not constants", path, "export it again")
    weight = editor.array(name)
    # One zero point for all, or one for each filter.
    return np.asarray(weight == zero_point.reshape(-1, *[1] * (weight.ndim - 1)))
