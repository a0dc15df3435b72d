"""fp32 ONNX to int8: QuantizeLinear and DequantizeLinear nodes around what is to be computed in 8 bits.

Where they stand decides what a runtime can fuse, and runtimes differ, so there are two files:

- for CPUs (``activations="uint8"``): unsigned activations with a zero point, and a pair around every operator,
  so that ONNX Runtime finds ``DequantizeLinear -> Conv -> QuantizeLinear`` everywhere and moves 8 bits;
- for TensorRT (``activations="int8"``): signed activations symmetric around 0, and a pair at the inputs of
  convolutions only, so that convolution, bias and activation stay one kernel.

Weights are signed, symmetric, with a scale per output channel in both.

References: Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference, 2018, section 2; Nagel et al., A White Paper on Neural Network Quantization, 2021, section 2.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto

from prunedeploy_export.graph.edit import GraphEditor, convolutions, redirect
from prunedeploy_export.precision.calibration import Range

Activations = Literal["uint8", "int8"]

# Operators that choose, move or add values: in 8 bits they cost a quarter of the traffic and no accuracy of
# their own. The output of the first group has the values of its input, and so its range.
SAME_RANGE = ("MaxPool", "Resize", "Slice")
FOLLOWING = (*SAME_RANGE, "LeakyRelu", "Relu", "Add", "Concat")
LARGEST_BIAS = 2.0**30
"""In steps; half of int32, the other half is for the sum over the inputs."""
SMALLEST_SCALE = 1e-30
"""A filter of zeros, or of next to nothing, has a scale of 1 instead: see `_usable`."""
_DATA_INPUTS = {"MaxPool": 1, "Resize": 1, "Slice": 1, "LeakyRelu": 1, "Relu": 1}


@dataclass(frozen=True)
class QuantisationPlan:
    """What becomes 8 bits.

    Attributes:
        activations: ``"uint8"`` or ``"int8"``.
        convolutions: Names of the convolutions that compute in 8 bits.
        operators: Names of the other nodes that do.
        tensors: Quantised tensors, each once, in the order of the graph.
        same_as: Tensors that take the scale of another one.
    """

    activations: Activations
    convolutions: tuple[str, ...]
    operators: tuple[str, ...]
    tensors: tuple[str, ...]
    same_as: Mapping[str, str]


def plan_quantisation(model: ModelProto, activations: Activations, skip: Collection[str] = ()) -> QuantisationPlan:
    """Decide what becomes 8 bits.

    Args:
        model: The fp32 network.
        activations: ``"uint8"`` for CPUs, ``"int8"`` for TensorRT.
        skip: Names of convolutions that stay in fp32.
    """
    graph = model.graph
    chosen = {node.name: node for node in convolutions(graph) if node.name not in skip}
    outputs = {value.name for value in graph.output}
    quantised: set[str] = set()  # tensors that an 8-bit operator gives
    operators: list[str] = []
    for node in graph.node if activations == "uint8" else ():
        follows = node.op_type in FOLLOWING and outputs.isdisjoint(node.output)
        if node.name in chosen:
            quantised.add(node.output[0])
        elif follows and quantised.issuperset(node.input[: _DATA_INPUTS.get(node.op_type)]):
            operators.append(node.name)
            quantised.add(node.output[0])
    needed = quantised | {node.input[0] for node in chosen.values()}
    ordered = [graph.input[0].name, *(name for node in graph.node for name in node.output)]
    same_as = {
        node.output[0]: node.input[0]
        for node in graph.node
        if node.op_type in SAME_RANGE and {node.input[0], node.output[0]} <= needed
    }
    return QuantisationPlan(
        activations=activations,
        convolutions=tuple(chosen),
        operators=tuple(operators),
        tensors=tuple(name for name in ordered if name in needed),
        same_as=same_as,
    )


def quantise(model: ModelProto, plan: QuantisationPlan, ranges: Mapping[str, Range]) -> ModelProto:
    """Write a plan into a copy of a network.

    Args:
        model: The fp32 network.
        plan: From `plan_quantisation` of this network.
        ranges: Ranges of every tensor of the plan that does not take another one's scale.

    Returns:
        The int8 network; metadata is not touched.
    """
    copy = ModelProto.FromString(model.SerializeToString())
    editor = GraphEditor(copy.graph)
    readers = {name: editor.consumers(name) for name in plan.tensors}
    scales = {name: _scale(ranges[_root(name, plan.same_as)], plan.activations) for name in plan.tensors}
    in_8_bits = {*plan.convolutions, *plan.operators}
    for name in plan.tensors:
        dequantised = _add_pair(editor, name, *scales[name])
        producer = editor.producers.get(name)
        integer = plan.activations == "uint8" and producer is not None and producer.name in in_8_bits
        for node in readers[name]:
            # What an 8-bit operator gives exists in 8 bits only. What a float operator gives is there for
            # float readers as it is.
            if integer or node.name in in_8_bits or (plan.activations == "int8" and node.op_type in FOLLOWING):
                redirect(node, name, dequantised)
    for node in convolutions(copy.graph):
        if node.name in plan.convolutions:
            source = node.input[0].removesuffix(_DEQUANTISED)
            _quantise_weights(editor, node, scales[source][0] if plan.activations == "uint8" else None)
    editor.commit()
    return copy


_DEQUANTISED = "/dequantised"


def _root(name: str, same_as: Mapping[str, str]) -> str:
    while name in same_as:
        name = same_as[name]
    return name


def _scale(found: Range, activations: Activations) -> tuple[np.float32, npt.NDArray]:
    """Scale and zero point."""
    if activations == "int8":
        return _usable(max(-found.low, found.high) / 127), np.zeros((), np.int8)
    low, high = min(found.low, 0.0), max(found.high, 0.0)
    scale = _usable((high - low) / 255)
    return scale, np.clip(np.rint(-low / scale), 0, 255).astype(np.uint8)


def _add_pair(editor: GraphEditor, tensor: str, scale: np.float32, zero_point: npt.NDArray) -> str:
    parameters = [
        editor.constant(f"{tensor}/scale", np.asarray(scale)),
        editor.constant(f"{tensor}/zero_point", zero_point),
    ]
    quantised = editor.insert_after(tensor, "QuantizeLinear", [tensor, *parameters], f"{tensor}/quantised")
    return editor.insert_after(tensor, "DequantizeLinear", [quantised, *parameters], f"{tensor}{_DEQUANTISED}")


def _quantise_weights(editor: GraphEditor, node: NodeProto, input_scale: np.float32 | None) -> None:
    """Replace a convolution's constants.

    Args:
        editor: The graph's editor.
        node: The convolution.
        input_scale: Scale of its input, if its bias becomes int32 too; None leaves the bias in fp32, as TensorRT
            wants it.
    """
    name = node.input[1]
    weight = editor.array(name).astype(np.float64)
    bias = editor.array(node.input[2]).astype(np.float64) if len(node.input) > 2 else None
    if input_scale is None or bias is None:
        scales = weight_scales(weight)
    else:
        scales = weight_scales(weight, np.abs(bias) / (float(input_scale) * LARGEST_BIAS))
    per_filter = scales.astype(np.float64).reshape(-1, *([1] * (weight.ndim - 1)))
    editor.replace_constant(name, np.clip(np.rint(weight / per_filter), -127, 127).astype(np.int8))
    node.input[1] = _dequantised_constant(editor, name, scales, np.int8)
    if input_scale is not None and bias is not None:
        bias_name = node.input[2]
        bias_scales = (scales.astype(np.float64) * float(input_scale)).astype(np.float32)
        editor.replace_constant(bias_name, np.rint(bias / bias_scales).astype(np.int32))
        node.input[2] = _dequantised_constant(editor, bias_name, bias_scales, np.int32)


def negative_slopes(model: ModelProto) -> dict[str, float]:
    """Slope for negative values of the rectifier that is the only reader of a tensor, by tensor."""
    editor = GraphEditor(model.graph)
    slopes = {}
    for node in model.graph.node:
        if node.op_type in ("LeakyRelu", "Relu") and len(editor.consumers(node.input[0])) == 1:
            slopes[node.input[0]] = next((entry.f for entry in node.attribute if entry.name == "alpha"), 0.0)
    return slopes


def weight_scales(weight: npt.NDArray, smallest: npt.NDArray[np.float64] | float = 0.0) -> npt.NDArray[np.float32]:
    """Scale of each output channel, ``(filters,)``, such that its largest weight is 127 steps.

    Args:
        weight: ``(filters, ...)``.
        smallest: No scale is below it, ``(filters,)`` or one for all. The bias is counted in steps of weight
            scale * input scale, and in a filter that training has all but killed it would not fit into int32.
    """
    scales = np.maximum(np.abs(weight).reshape(len(weight), -1).max(axis=1) / 127, smallest)
    return np.array([_usable(scale) for scale in scales], np.float32)


def _usable(scale: float) -> np.float32:
    """Zeros need some scale too; and one that float32 rounds to 0 would divide by it."""
    return np.float32(scale if scale > SMALLEST_SCALE else 1.0)


def _dequantised_constant(
    editor: GraphEditor, name: str, scales: npt.NDArray[np.float32], kind: type[np.integer]
) -> str:
    scale_name = editor.constant(f"{name}/scale", scales)
    zero_name = editor.constant(f"{name}/zero_point", np.zeros(len(scales), kind))
    inputs = [name, scale_name, zero_name]
    return editor.insert_after(None, "DequantizeLinear", inputs, f"{name}{_DEQUANTISED}", axis=0)
