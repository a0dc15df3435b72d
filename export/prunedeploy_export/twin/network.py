"""An ONNX file of ours as a PyTorch module, up to its raw heads.

It interprets the file: whatever rounding stands in it is done, in the order in which it stands there. Nothing is known
of layers. Decoding is not run: an attack's loss takes raw heads, and has gradients of its own.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, shape_inference
from torch import Tensor, nn

from prunedeploy_engines.errors import EngineError
from prunedeploy_export.graph.edit import PARAMETERS, GraphEditor, read_model
from prunedeploy_export.twin.operators import OPERATORS, Operator
from prunedeploy_export.twin.rounding import Scaled, Value, half, quantised, real
from prunedeploy_export.twin.weights import ConvolutionWeights, convolution_weights

_FIX = "give an ONNX file that prunedeploy exported"
_CASTS_TO = (TensorProto.FLOAT, TensorProto.FLOAT16)


@dataclass(frozen=True)
class Step:
    """A node that is ready to run.

    Attributes:
        run: The operator with its attributes.
        inputs: Each a tensor's or constant's name, or the numbers of a parameter; None where the node leaves it out.
        output: Name of what it gives.
        halved: What it gives is half precision in the file.
        last: Names of the tensors that no later node reads.
    """

    run: Operator
    inputs: tuple[str | tuple[float, ...] | None, ...]
    output: str
    halved: bool
    last: tuple[str, ...] = ()


class OnnxTwin(nn.Module):
    """A file's layers in float32, with its roundings and a straight-through gradient.

    It has no parameters, and its constants are buffers: a backward pass reaches the images only, unless weights are
    given.

    Args:
        path: The file.

    Attributes:
        input_shape: ``(channels, height, width)``.
        uint8_input: The file takes uint8 images.
        heads: Names of the raw heads' tensors, in order.
        head_shapes: Of each ``(A * V, H, W)``.
        quantised: Names of the tensors that QuantizeLinear gives, in order.
        convolutions: Where its convolutions have their weights, in order.

    Raises:
        EngineError: It cannot be read, has no heads of ours, or has an operator that `OPERATORS` does not; the node is
            named.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        model = read_model(path)
        self.heads = raw_heads(model.graph)
        if not self.heads:
            raise EngineError("has no detection heads that prunedeploy knows", path, _FIX)
        images = model.graph.input[0]
        shape = tuple(dim.dim_value for dim in images.type.tensor_type.shape.dim[1:])
        self._images, self.uint8_input = images.name, images.type.tensor_type.elem_type == TensorProto.UINT8
        self.input_shape = (shape[-1], *shape[:-1]) if self.uint8_input else shape
        try:
            steps, constants = _read(model, self.heads)
        except _UnknownNodeError as error:
            raise EngineError(str(error), path, _FIX) from None
        self._steps = tuple(_with_last_readers(steps, self.heads))
        outputs = {step.output for step in steps}
        nodes = (node for node in model.graph.node if node.op_type == "QuantizeLinear")
        self.quantised = tuple(node.output[0] for node in nodes if node.output[0] in outputs)
        self.convolutions: tuple[ConvolutionWeights, ...] = convolution_weights(model.graph, outputs)
        self._held: dict[str, tuple[str, ...]] = {}  # names of a constant's buffers, of steps and their scale two
        for name, value in constants.items():
            parts = (value.steps, value.scale) if isinstance(value, Scaled) else (value,)
            self._held[name] = tuple(f"constant{len(self._held)}_{part}" for part in range(len(parts)))
            for buffer, part in zip(self._held[name], parts, strict=True):
                self.register_buffer(buffer, part.float(), persistent=False)
        try:
            with torch.no_grad():
                self.head_shapes = [tuple(head.shape[1:]) for head in self(torch.zeros(1, *self.input_shape))]
        except (RuntimeError, ValueError) as error:
            raise EngineError(f"cannot be computed in PyTorch ({error})", path, _FIX) from None

    @property
    def device(self) -> torch.device:
        """Where its constants are."""
        return next(self.buffers()).device

    def forward(self, images: Tensor, weights: Mapping[str, Tensor] | None = None) -> list[Tensor]:
        """Compute the raw heads.

        Args:
            images: ``(B, C, H, W)`` float32, RGB in [0, 1]; rounded to 8 bits where the file takes those.
            weights: Real weights and biases in the place of the file's own, by the names in `convolutions`. They are
                rounded as the exporter rounds, and gradients reach them.

        Returns:
            Raw heads in cfg order, each ``(B, A * V, H, W)`` float32.

        Raises:
            ValueError: ``images`` have another shape (both are printed).
        """
        return self.tensors(images, weights=weights)[0]

    def with_weights(self, weights: Mapping[str, Tensor]) -> OnnxTwin:
        """The same file with other weights, as constants; they are copied.

        Args:
            weights: As `forward` takes them.
        """
        twin = copy.copy(self)
        twin._buffers = dict(self._buffers)
        with torch.no_grad():
            for name, value in self._read_from(weights).items():
                parts = (value.steps, value.scale) if isinstance(value, Scaled) else (value,)
                twin._buffers.update(zip(self._held[name], (part.clone() for part in parts), strict=True))
        return twin

    def tensors(
        self,
        images: Tensor,
        instead: Mapping[str, Tensor] | None = None,
        weights: Mapping[str, Tensor] | None = None,
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Compute the raw heads, and each of `quantised` too.

        Args:
            images: As `forward` takes them.
            instead: By the names of `quantised`, what later nodes read instead of what was computed here. So each
                tensor is compared with another program's on that program's own inputs.
            weights: As `forward` takes them.

        Returns:
            The heads; and if ``instead`` is given what was computed of each of its tensors, whole numbers as float32.
        """
        if images.ndim != 4 or tuple(images.shape[1:]) != self.input_shape:
            raise ValueError(f"expected images (B, {', '.join(map(str, self.input_shape))}), got {tuple(images.shape)}")
        values: dict[str, Value] = {name: self._constant(*buffers) for name, buffers in self._held.items()}
        values |= {} if weights is None else self._read_from(weights)
        values[self._images] = self._as_the_file_takes(images)
        computed = {}
        for step in self._steps:
            result = step.run(*(values[one] if isinstance(one, str) else one for one in step.inputs))
            values[step.output] = half(real(result)) if step.halved else result
            if instead is not None and step.output in instead:
                computed[step.output], values[step.output] = real(result), instead[step.output]
            for name in step.last:
                del values[name]
        return [real(values[name]) for name in self.heads], computed

    def _as_the_file_takes(self, images: Tensor) -> Tensor:
        if not self.uint8_input:
            return images
        one, zero = images.new_ones(()), images.new_zeros(())
        return quantised(images * 255, one, zero, 0, 255).permute(0, 2, 3, 1)

    def _read_from(self, weights: Mapping[str, Tensor]) -> dict[str, Value]:
        given = (one for one in self.convolutions if one.weight in weights)
        return {name: value for one in given for name, value in one.read_from(weights)}

    def _constant(self, *buffers: str) -> Value:
        parts = [self.get_buffer(buffer) for buffer in buffers]
        return Scaled(*parts) if len(parts) == 2 else parts[0]


class _UnknownNodeError(Exception):
    """A node that cannot be computed; says which and why."""


def raw_heads(graph: GraphProto) -> tuple[str, ...]:
    """Names of the raw heads in cfg order: each is what the first node of its decoding reads, ``head{number}/grid``."""
    found = {}
    for node in graph.node:
        if node.op_type == "Reshape" and (named := re.fullmatch(r"head(\d+)/grid", node.name)):
            found[int(named[1])] = node.input[0]
    return tuple(found[number] for number in sorted(found))


def _read(model: ModelProto, heads: Sequence[str]) -> tuple[list[Step], dict[str, Value]]:
    """The nodes that the heads depend on, and the constants that they read; nodes of constants alone are computed."""
    editor, halved = GraphEditor(model.graph), _half_tensors(model)
    constants: dict[str, Value] = {}
    steps = []
    for node in _needed(model.graph, heads):
        function = _bound(node, editor)
        inputs: list[Any] = []
        for position, name in enumerate(node.input):
            if position in PARAMETERS.get(node.op_type, ()):
                inputs.append(tuple(editor.array(name).ravel().tolist()) if name else None)
                continue
            if name in editor.constants and name not in constants:
                # In float64, which has all of a bias's int32.
                constants[name] = torch.from_numpy(editor.array(name).astype(np.float64))
            inputs.append(name or None)
        if all(name in constants for name in inputs if isinstance(name, str)):
            constants[node.output[0]] = function(*(constants.get(name, name) for name in inputs))
        else:
            steps.append(Step(function, tuple(inputs), node.output[0], node.output[0] in halved))
    read = {name for step in steps for name in step.inputs if isinstance(name, str)}
    return steps, {name: value for name, value in constants.items() if name in read}


def _needed(graph: GraphProto, tensors: Sequence[str]) -> list[NodeProto]:
    """The nodes that tensors depend on, in order."""
    needed, found = set(tensors), []
    for node in reversed(graph.node):
        if not needed.isdisjoint(node.output):
            needed.update(node.input)
            found.append(node)
    return found[::-1]


def _half_tensors(model: ModelProto) -> set[str]:
    """Names of the tensors that are half precision."""
    inferred = shape_inference.infer_shapes(model).graph
    return {value.name for value in inferred.value_info if value.type.tensor_type.elem_type == TensorProto.FLOAT16}


def _with_last_readers(steps: Sequence[Step], kept: Sequence[str]) -> Iterator[Step]:
    """Steps that say what may be forgotten after them."""
    computed = {step.output for step in steps}
    last = {name: step.output for step in steps for name in step.inputs if isinstance(name, str)}
    for step in steps:
        own = dict.fromkeys(name for name in step.inputs if isinstance(name, str) and last[name] == step.output)
        forgotten = tuple(name for name in own if name in computed and name not in kept)
        yield Step(step.run, step.inputs, step.output, step.halved, forgotten)


def _bound(node: NodeProto, editor: GraphEditor) -> Operator:
    """A node's operator with its attributes.

    Raises:
        _UnknownNodeError: There is no such operator, or it has other inputs or attributes than those of our files.
    """
    function = OPERATORS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    if function is None:
        raise _UnknownNodeError(f"node {node.name!r} is a {node.op_type}, which has no twin in PyTorch")
    attributes = {one.name: _plain(helper.get_attribute_value(one)) for one in node.attribute}
    try:
        if node.op_type == "Cast" and attributes["to"] not in _CASTS_TO:
            raise ValueError("casts to neither float nor half")
        if node.op_type == "QuantizeLinear":
            limits = np.iinfo(editor.array(node.input[2]).dtype)
            attributes |= {"low": limits.min, "high": limits.max}
        inspect.signature(function).bind(*node.input, **attributes)
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise _UnknownNodeError(
            f"node {node.name!r}, a {node.op_type}, is not as prunedeploy writes it ({error})"
        ) from None
    return partial(function, **attributes)


def _plain(value: Any) -> Any:
    """An attribute's value: text, a number, or a tuple of numbers."""
    return value.decode() if isinstance(value, bytes) else tuple(value) if isinstance(value, list) else value
