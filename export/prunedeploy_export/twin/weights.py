"""The weights of a file's convolutions, rounded again from real numbers: what training in 8 bits needs.

Attacks take a file's weights as they are. A training moves the real weights that they were rounded from, so these are
rounded in every pass, as `prunedeploy_export.precision.quantisation` rounds them, with a straight-through gradient.
A filter's scale follows its largest weight, so nothing saturates, and is a constant to the gradient.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass

import torch
from onnx import GraphProto
from torch import Tensor

from prunedeploy_export.graph.edit import GraphEditor, convolutions
from prunedeploy_export.precision.quantisation import LARGEST_BIAS, SMALLEST_SCALE
from prunedeploy_export.twin.rounding import Scaled, Value, quantised


@dataclass(frozen=True)
class ConvolutionWeights:
    """Where a convolution of a file has its weights, and how they are rounded.

    Attributes:
        weight: Name of the constant that the exporter gave the real weight.
        bias: Of the bias; None if there is none.
        weight_read: Name of what the convolution reads in its place: the same, or what DequantizeLinear gives.
        bias_read: Likewise of the bias.
        input_scale: Step of the input if the bias is rounded, which is counted in its products with the weight's.
    """

    weight: str
    bias: str | None
    weight_read: str
    bias_read: str | None
    input_scale: float | None

    def read_from(self, weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Value]]:
        """What the convolution reads, by name, made of real weights.

        Args:
            weights: By name, ``(filters, in / groups, k, k)`` and ``(filters,)`` float32; other names do not matter.
        """
        weight, bias = weights[self.weight], None if self.bias is None else weights[self.bias]
        scale = None
        if self.weight_read == self.weight:
            yield self.weight_read, _in_file_order(weight)
        else:
            scale = filter_scales(weight, bias, self.input_scale)
            yield self.weight_read, rounded(weight, scale, 127)
        if bias is not None and self.bias_read is not None:
            if scale is None or self.input_scale is None:
                yield self.bias_read, bias
            else:
                yield self.bias_read, rounded(bias, (scale.double() * self.input_scale).float(), 2.0**31)


def convolution_weights(graph: GraphProto, needed: Container[str]) -> tuple[ConvolutionWeights, ...]:
    """Those of a file's convolutions whose output is among the tensors that are needed, in order."""
    editor = GraphEditor(graph)

    def source(name: str) -> tuple[str, float | None]:
        """What DequantizeLinear reads to give a tensor, and its scale if there is one for all; or the tensor itself."""
        node = editor.producers.get(name)
        if node is None or node.op_type != "DequantizeLinear":
            return name, None
        scale = editor.array(node.input[1])
        return node.input[0], float(scale) if scale.ndim == 0 else None

    found = []
    for node in convolutions(graph):
        if node.output[0] in needed:
            weight_read, bias_read = node.input[1], node.input[2] if len(node.input) > 2 else None
            bias = None if bias_read is None else source(bias_read)[0]
            input_scale = None if bias == bias_read else source(node.input[0])[1]
            found.append(ConvolutionWeights(source(weight_read)[0], bias, weight_read, bias_read, input_scale))
    return tuple(found)


def filter_scales(weight: Tensor, bias: Tensor | None = None, input_scale: float | None = None) -> Tensor:
    """Length of each filter's step, ``(filters,)`` float32, as `precision.quantisation.weight_scales` chooses it.

    Args:
        weight: ``(filters, ...)``.
        bias: ``(filters,)``.
        input_scale: Step of the input, if the bias is counted in these steps times it and has to fit into int32.
    """
    scales = weight.detach().abs().flatten(1).amax(1).double() / 127
    if bias is not None and input_scale is not None:
        scales = torch.maximum(scales, bias.detach().abs().double() / (input_scale * LARGEST_BIAS))
    return torch.where(scales > SMALLEST_SCALE, scales, 1.0).float()


def rounded(values: Tensor, scale: Tensor, limit: float) -> Scaled:
    """Real numbers in steps of their filter, in float64 as the exporter computes them.

    Args:
        values: ``(filters, ...)``.
        scale: ``(filters,)`` float32.
        limit: No step is beyond it or its negative.

    Returns:
        With gradient 1 from ``values`` to their rounded real numbers.
    """
    per_filter = scale.view(-1, *([1] * (values.ndim - 1)))
    steps = quantised(
        _in_file_order(values).double(), per_filter.double(), per_filter.new_zeros(()).double(), -limit, limit
    )
    return Scaled(steps.float(), per_filter)


def _in_file_order(values: Tensor) -> Tensor:
    """In the memory layout that a file is read into: in another one, sums of floats differ in their last bits."""
    return values.clone(memory_format=torch.contiguous_format)
