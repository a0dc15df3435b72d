"""The part of an exported detector before its heads, node by node as sections of a cfg."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper

from prunedeploy.importing.activations import Behind, activation_behind
from prunedeploy.importing.attention import AttentionFound, attention_behind
from prunedeploy.importing.cfg_text import IMAGE, GrowingCfg
from prunedeploy.importing.decoding import Decoding, HeadPlan
from prunedeploy.importing.focus import Order, is_of_pixels, stacked_pixels, unstacked
from prunedeploy.importing.onnx_graph import OnnxGraph
from prunedeploy_engines.errors import OnnxImportError

Floats = NDArray[np.float32]


class Trunk:
    """Writes sections.

    Args:
        graph: The file's.
        decoding: Its end, whose convolutions are written and what is behind them is not.
        plan: The sections of the heads.
        pixels: What the first convolution's weights are multiplied by, ``(channels,)``, and the order of its channels.
    """

    def __init__(
        self, graph: OnnxGraph, decoding: Decoding, plan: HeadPlan, pixels: tuple[Floats, list[int]] | None = None
    ) -> None:
        self.graph = graph
        self.plan = plan
        self.cfg = GrowingCfg()
        self.heads = {name: at for at, names in enumerate(plan.order) for name in names}
        self.head_layers: list[int] = [0] * len(plan.order)
        self._pixels = pixels
        self._layers: dict[str, int] = {graph.image: IMAGE}
        self._stacked: dict[str, Order] = {}
        self._done = set(decoding.tail)
        for node in graph.nodes:
            if self._done.isdisjoint(node.output):
                self._write(node)
        if len(plan.order[0]) > 1:
            for at, names in enumerate(plan.order):
                self.cfg.add("route", f"layers={','.join(str(self._layers[name]) for name in names)}\n")
                self._add_head(at)

    def _add_head(self, at: int) -> None:
        self.head_layers[at] = self.cfg.count
        self.cfg.add_head(self.plan.kind, self.plan.options[at])

    def _write(self, node: NodeProto) -> None:
        if node.op_type not in _WRITERS:
            raise self.graph.refused(node, "is an operator that no section stands for")
        _WRITERS[node.op_type](self, node)

    def _layer(self, node: NodeProto, place: int) -> int:
        """The layer that a node reads."""
        name = node.input[place]
        if name not in self._layers:
            why = "reads a constant" if name in self.graph.constants else f"reads {name}, which no section gives"
            raise self.graph.refused(node, why)
        layer = self._layers[name]
        if layer == IMAGE and self.cfg.count:
            raise self.graph.refused(node, "reads the image a second time")
        return layer

    def _gives(self, node: NodeProto, layer: int, behind: Behind | None = None) -> None:
        """Remember what a layer stands for, an activation behind the node included."""
        self._layers[node.output[0] if behind is None else behind.output] = layer
        if behind is not None:
            self._done |= behind.inside

    def _convolution(self, node: NodeProto) -> None:
        graph, attributes = self.graph, _attributes(node)
        weight, bias = self._weights(node)
        strides, dilations = attributes.get("strides", [1, 1]), attributes.get("dilations", [1, 1])
        pads, groups = attributes.get("pads", [0] * 4), attributes.get("group", 1)
        size, dilation = weight.shape[2], dilations[0]
        if attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or len(set(pads)) != 1:
            raise graph.refused(node, f"has padding {attributes.get('auto_pad', pads)}, not the same on all sides")
        if weight.ndim != 4 or weight.shape[3] != size or len(set(dilations)) != 1 or pads[0] % dilation:
            raise graph.refused(node, f"has a kernel of shape {weight.shape[2:]} and dilations {dilations}")
        padding, stride = pads[0] // dilation, list(strides)
        name = node.input[0]
        if name in self._stacked:
            weight = unstacked(weight, self._stacked[name])
            size, padding, stride, name = 2 * size, 2 * padding, [2 * step for step in stride], graph.image
        if name == graph.image:
            weight = self._of_pixels(weight)
        source = IMAGE if name == graph.image else self._layer(node, 0)
        if source == IMAGE and self.cfg.count:
            raise graph.refused(node, "reads the image a second time")
        options = f"stride={stride[0]}\n" if stride[0] == stride[1] else f"stride_y={stride[0]}\nstride_x={stride[1]}\n"
        options += "pad=1\n" if padding == size // 2 else f"padding={padding}\n"
        options += f"groups={groups}\n" * (groups > 1) + f"dilation={dilation}\n" * (dilation > 1)
        if node.output[0] in self.heads:
            activation = "logistic" if self.plan.logistic else "linear"
            self._gives(node, self.cfg.add_convolution(source, options, weight, bias, activation))
            if len(self.plan.order[0]) == 1:
                self._add_head(self.heads[node.output[0]])
            return
        found = attention_behind(graph, node.output[0]) if groups == 1 else None
        if found is not None:
            self._attention(source, options, weight, bias, found)
            return
        behind = activation_behind(graph, node.output[0])
        weight, bias = behind.normalised(weight, bias)
        self._gives(node, self.cfg.add_convolution(source, options, weight, bias, behind.activation), behind)

    def _weights(self, node: NodeProto) -> tuple[Floats, Floats]:
        constants = self.graph.constants
        if any(name not in constants for name in node.input[1:] if name):
            raise self.graph.refused(node, "has weights that depend on the image")
        weight = np.asarray(constants[node.input[1]], np.float32)
        with_bias = len(node.input) > 2 and node.input[2]
        bias = np.asarray(constants[node.input[2]], np.float32) if with_bias else np.zeros(len(weight), np.float32)
        if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
            raise self.graph.refused(node, "has a weight that is no finite number")
        return weight, bias

    def _of_pixels(self, weight: Floats) -> Floats:
        """A first convolution's weights for RGB in [0, 1]."""
        if self._pixels is None:
            return weight
        factors, order = self._pixels
        return weight[:, order] * factors[None, :, None, None]

    def _attention(self, source: int, options: str, weight: Floats, bias: Floats, found: AttentionFound) -> None:
        parts = [
            self.cfg.add_convolution(source, options, weight[filters], bias[filters], "linear")
            for filters in (found.queries, found.keys, found.values)
        ]
        heads = f"from={','.join(map(str, parts))}\nheads={found.heads}\nscale={found.scale:.9g}\n"
        self._layers[found.means] = self.cfg.add("attention", heads)
        if found.passed_on is not None:
            self._layers[found.passed_on] = parts[2]
        self._done |= found.inside

    def _sum(self, node: NodeProto) -> None:
        layers = [self._layer(node, place) for place in (0, 1)]
        shapes = [self.graph.shape(name) for name in node.input]
        if shapes[0] != shapes[1] or IMAGE in layers:
            raise self.graph.refused(node, f"adds shapes {shapes[0]} and {shapes[1]}")
        first, second = layers if layers[0] == self.cfg.previous else layers[::-1]
        self.cfg.read(first)
        behind = activation_behind(self.graph, node.output[0], normalised=False)
        self._gives(node, self.cfg.add("shortcut", f"from={second}\nactivation={behind.activation}\n"), behind)

    def _concatenation(self, node: NodeProto) -> None:
        if _attributes(node).get("axis") not in (1, -3):
            raise self.graph.refused(node, "joins something else than channels")
        if (order := stacked_pixels(self.graph, node)) is not None:
            self._stacked[node.output[0]] = order
            return
        layers = [self._layer(node, place) for place in range(len(node.input))]
        if IMAGE in layers:
            raise self.graph.refused(node, "joins the image with something")
        self._gives(node, self.cfg.add("route", f"layers={','.join(map(str, layers))}\n"))

    def _split(self, node: NodeProto) -> None:
        graph, outputs = self.graph, [name for name in node.output if name]
        channels = graph.shape(node.input[0])[1]
        sizes = [graph.shape(name)[1] for name in outputs]
        if _attributes(node).get("axis", 0) not in (1, -3) or len(set(sizes)) != 1 or sum(sizes) != channels:
            raise graph.refused(node, f"cuts {channels} channels into {sizes}, not into equal parts")
        source = self._layer(node, 0)
        for part, name in enumerate(outputs):
            if graph.readers.get(name):
                self._part(name, source, len(outputs), part)

    def _slice(self, node: NodeProto) -> None:
        graph = self.graph
        if is_of_pixels(graph, node):
            return  # looked at by the concatenation behind it
        ends = [graph.constants.get(name) if name else None for name in node.input[1:]]
        if any(value is None or value.size != 1 for value in ends) or len(ends) < 3:
            raise graph.refused(node, "cuts something else than channels")
        start, end, axis, step = (int(value.reshape(-1)[0]) for value in (*ends, np.ones(1))[:4] if value is not None)
        channels = graph.shape(node.input[0])[1]
        start, end = (min(max(place + channels * (place < 0), 0), channels) for place in (start, end))
        size = end - start
        if axis not in (1, -3) or step != 1 or size < 1 or channels % size or start % size:
            raise graph.refused(node, f"takes channels {start} to {end} of {channels}, which is no equal part of them")
        self._part(node.output[0], self._layer(node, 0), channels // size, start // size)

    def _part(self, name: str, source: int, groups: int, part: int) -> None:
        if source == IMAGE:
            raise OnnxImportError("cuts the image into channels", self.graph.path, "give a detector of whole images")
        self._layers[name] = self.cfg.add("route", f"layers={source}\ngroups={groups}\ngroup_id={part}\n")

    def _maxpool(self, node: NodeProto) -> None:
        graph, attributes = self.graph, _attributes(node)
        sizes, strides = attributes["kernel_shape"], attributes.get("strides", [1, 1])
        pads = attributes.get("pads", [0] * 4)
        odd = attributes.get("ceil_mode", 0) or set(attributes.get("dilations", [1])) != {1}
        if odd or len(set(sizes)) != 1 or len(set(strides)) != 1 or attributes.get("auto_pad", "NOTSET") != "NOTSET":
            raise graph.refused(node, "has windows that no section has")
        total = pads[0] + pads[2]
        if pads[0] != pads[1] or pads[2] != pads[3] or pads[0] != total // 2:
            raise graph.refused(node, f"has padding {pads}")
        self.cfg.read(self._layer(node, 0))
        options = f"size={sizes[0]}\nstride={strides[0]}\npadding={total}\n"
        self._gives(node, self.cfg.add("maxpool", options))

    def _resize(self, node: NodeProto) -> None:
        graph, attributes = self.graph, _attributes(node)
        before, after = graph.shape(node.input[0]), graph.shape(node.output[0])
        stride = after[2] // before[2]
        rounding = attributes.get("nearest_mode", "round_prefer_floor")
        way = attributes.get("coordinate_transformation_mode", "half_pixel"), rounding
        # What repeats every cell: by whole factors these are the same.
        if attributes.get("mode", "nearest") != "nearest" or way not in _REPEATING:
            raise graph.refused(node, f"resizes by {attributes.get('mode', 'nearest')}, {way[0]}, {way[1]}")
        if after != (*before[:2], stride * before[2], stride * before[3]):
            raise graph.refused(node, f"makes {after} of {before}, which is no whole factor")
        self.cfg.read(self._layer(node, 0))
        self._gives(node, self.cfg.add("upsample", f"stride={stride}\n"))

    def _nothing(self, node: NodeProto) -> None:
        self._layers[node.output[0]] = self._layer(node, 0)


_REPEATING = (("asymmetric", "floor"), ("half_pixel", "round_prefer_floor"), ("half_pixel", "round_prefer_ceil"))


def _attributes(node: NodeProto) -> dict[str, Any]:
    values = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}


_WRITERS: Mapping[str, Callable[[Trunk, NodeProto], None]] = {
    "Conv": Trunk._convolution,
    "Add": Trunk._sum,
    "Concat": Trunk._concatenation,
    "Split": Trunk._split,
    "Slice": Trunk._slice,
    "MaxPool": Trunk._maxpool,
    "Resize": Trunk._resize,
    "Identity": Trunk._nothing,
    "Dropout": Trunk._nothing,
}
