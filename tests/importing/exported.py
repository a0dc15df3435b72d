"""Detectors as other programs export them: the real files with other weights or sizes, and small ones made here.

What they compute is said by ONNX Runtime, never by the package.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

REAL = ("yolov5nu", "yolov8n", "yolo11n")
STRIDES = (8, 16, 32)
ANCHORS = np.array([[[10, 13], [16, 30]], [[30.5, 61], [62, 45]]], np.float32)
"""Of the small detector, (width, height) in pixels by scale."""
SMALL_STRIDES = (4, 8)


def real(folder: Path, name: str) -> ModelProto:
    """One of the shared files with lively weights."""
    return lively(onnx.load(folder / "real" / "onnx" / f"{name}-160.onnx"))


def lively(model: ModelProto, seed: int = 0) -> ModelProto:
    """Give every convolution weights of its own that neither die out nor grow, so that outputs depend on the image."""
    generator = np.random.default_rng(seed)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    for number, node in enumerate(model.graph.node):
        if node.op_type == "Conv" and len(node.input) == 3:  # DFL's has no bias
            shape = shapes[node.input[1]]
            weight = generator.standard_normal(shape) * np.sqrt(2.2 / np.prod(shape[1:]))
            for place, values in ((1, weight), (2, generator.standard_normal(shape[0]) * 0.3)):
                node.input[place] = f"lively{number}/{place}"
                model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), node.input[place]))
    used = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return model


def resized(model: ModelProto, height: int, width: int) -> ModelProto:
    """One of the real files for another size: what it knows of 160 x 160 is written anew, by hand."""
    maps = [(height // stride, width // stride) for stride in STRIDES]
    count = sum(rows * columns for rows, columns in maps)
    points = [np.stack(np.meshgrid(np.arange(c) + 0.5, np.arange(r) + 0.5)).reshape(2, -1) for r, c in maps]
    strides = np.repeat(STRIDES, [rows * columns for rows, columns in maps])
    rows, columns = maps[-1]
    for node in model.graph.node:
        if node.op_type != "Constant":
            continue
        value = numpy_helper.to_array(node.attribute[0].t)
        if value.shape == (1, 2, 525):
            value = np.concatenate(points, axis=1)[None].astype(np.float32)
        elif value.shape == (1, 525):
            value = strides[None].astype(np.float32)
        elif value.dtype == np.int64 and value.ndim == 1 and 525 in value:
            value = np.where(value == 525, count, value)
        elif value.tolist()[-2:] == [5, 5] if value.ndim == 1 else False:
            value = np.array([*value[:2], rows, columns], np.int64)
        elif value.ndim == 1 and value.size == 4 and value[-1] == 25:
            value = np.array([*value[:3], rows * columns], np.int64)
        else:
            continue
        node.attribute[0].t.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value)))
    for place, side in ((2, height), (3, width)):
        model.graph.input[0].type.tensor_type.shape.dim[place].dim_value = side
    model.graph.output[0].type.tensor_type.shape.dim[2].dim_value = count
    return model


def computed(model: ModelProto, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """What ONNX Runtime computes of images: the only output, or the first."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: NDArray[np.float32] = session.run(None, {session.get_inputs()[0].name: images})[0]
    return found


@dataclass
class Writer:
    """Nodes and constants of a small detector."""

    nodes: list[NodeProto] = field(default_factory=list)
    constants: dict[str, NDArray[Any]] = field(default_factory=dict)
    generator: np.random.Generator = field(default_factory=lambda: np.random.default_rng(3))

    def node(self, op: str, inputs: list[str], outputs: int = 1, **attributes: Any) -> Any:
        """Append a node and return its output, or outputs."""
        name = f"{op}_{len(self.nodes)}"
        names = [f"{name}_out{place}" for place in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, name=name, **attributes))
        return names[0] if outputs == 1 else names

    def constant(self, values: Any, kind: Any = np.float32) -> str:
        """Add a constant."""
        name = f"constant_{len(self.constants)}"
        self.constants[name] = np.asarray(values, kind)
        return name

    def conv(
        self,
        source: str,
        channels: int,
        filters: int,
        size: int = 3,
        stride: int = 1,
        act: str = "SiLU",
        of: float = 1.0,
    ) -> str:
        """A convolution of values up to ``of``, and its activation."""
        shape = (filters, channels, size, size)
        weight = self.constant(self.generator.standard_normal(shape) * np.sqrt(2 / (channels * size * size)) / of)
        bias = self.constant(self.generator.standard_normal(filters) * 0.3)
        sides = {"kernel_shape": [size] * 2, "strides": [stride] * 2, "pads": [size // 2] * 4}
        x = self.node("Conv", [source, weight, bias], **sides)
        return str(self.activation(x, act))

    def activation(self, x: str, act: str) -> Any:
        """An activation by its operator, ``LeakyRelu:0.2`` with a slope, or written out."""
        operator, _, slope = act.partition(":")
        if operator == "LeakyRelu":
            return self.node(operator, [x], alpha=float(slope or 0.1))
        if act == "SiLU":
            return self.node("Mul", [x, self.node("Sigmoid", [x])])
        if act == "HardSigmoid":
            return self.node("Mul", [x, self.node("HardSigmoid", [x], alpha=1 / 6, beta=0.5)])
        if act.startswith("x "):
            bounds = self.constant(0.0), self.constant(6.0)
            gate = self.node("Clip", [self.node("Add", [x, self.constant(3.0)]), *bounds])
            if act == "x relu6 / 6":
                return self.node("Div", [self.node("Mul", [x, gate]), self.constant(6.0)])
            return self.node("Mul", [x, self.node("Div", [gate, self.constant(6.0)])])
        return x if act == "" else self.node(act, [x])

    def model(self, output: str, size: tuple[int | str, int | str], opset: int = 17, **metadata: str) -> ModelProto:
        """The finished file, images ``(1, 3, *size)``."""
        graph = helper.make_graph(
            self.nodes,
            "exported",
            [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, *size])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
            [numpy_helper.from_array(values, name) for name, values in self.constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        helper.set_model_props(model, metadata)
        return model


def small_trunk(writer: Writer, focus: bool = False, act: str = "SiLU", of: float = 1.0) -> list[tuple[str, int]]:
    """Two maps of 4 and 8 pixels a cell, and their channels, by way of a split, a sum, a pooling and an upsampling."""
    if focus:
        parts = []
        for row, column in ((0, 0), (1, 0), (0, 1), (1, 1)):
            ends, step = writer.constant([2**31 - 1], np.int64), writer.constant([2], np.int64)
            part = "images"
            for axis, start in ((2, row), (3, column)):
                place = writer.constant([start], np.int64), ends, writer.constant([axis], np.int64), step
                part = writer.node("Slice", [part, *place])
            parts.append(part)
        x = writer.conv(writer.node("Concat", parts, axis=1), 12, 8, act=act, of=of)
    else:
        x = writer.conv("images", 3, 8, stride=2, act=act, of=of)
    x = writer.conv(x, 8, 16, stride=2, act=act)
    first, second = writer.node("Split", [x, writer.constant([8, 8], np.int64)], 2, axis=1)
    added = writer.node("Add", [second, writer.conv(second, 8, 8, act=act)])
    fine = writer.conv(writer.node("Concat", [first, second, added], axis=1), 24, 16, size=1, act=act)
    coarse = writer.conv(fine, 16, 16, stride=2, act=act)
    pooled = writer.node("MaxPool", [coarse], kernel_shape=[5, 5], strides=[1, 1], pads=[2, 2, 2, 2])
    coarse = writer.conv(writer.node("Concat", [coarse, pooled], axis=1), 32, 12, size=1, act=act)
    scales = writer.constant([1, 1, 2, 2])
    region = writer.constant([])
    attributes = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    up = writer.node("Resize", [coarse, region, scales], **attributes)
    return [(writer.node("Concat", [fine, up], axis=1), 28), (coarse, 12)]


def anchored(
    size: tuple[int, int] = (64, 96),
    classes: int = 3,
    v3: bool = False,
    opset: int = 17,
    act: str = "LeakyRelu",
) -> ModelProto:
    """A detector with anchors, decoded as YOLOv5 and v7 do, or with ``v3`` as YOLOv3: ``(1, predictions, 5 + C)``."""
    writer, parts, numbers = Writer(), [], 5 + classes
    for (source, channels), stride, anchors in zip(small_trunk(writer, act=act), SMALL_STRIDES, ANCHORS, strict=True):
        rows, columns = (side // stride for side in size)
        raw = writer.conv(source, channels, 2 * numbers, size=1, act="")
        raw = writer.node("Reshape", [raw, writer.constant([1, 2, numbers, rows, columns], np.int64)])
        raw = writer.node("Transpose", [raw], perm=[0, 1, 3, 4, 2])
        cells = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1)[None, None]
        sizes = np.broadcast_to(anchors[None, :, None, None], (1, 2, rows, columns, 2))
        if v3:
            xy, wh, rest = writer.node("Split", [raw, writer.constant([2, 2, 1 + classes], np.int64)], 3, axis=4)
            xy = writer.node("Add", [writer.node("Sigmoid", [xy]), writer.constant(cells)])
            wh = writer.node("Mul", [writer.node("Exp", [wh]), writer.constant(sizes)])
            rest = writer.node("Sigmoid", [rest])
        else:
            raw = writer.node("Sigmoid", [raw])
            xy, wh, rest = writer.node("Split", [raw, writer.constant([2, 2, 1 + classes], np.int64)], 3, axis=4)
            xy = writer.node("Add", [writer.node("Mul", [xy, writer.constant(2)]), writer.constant(cells - 0.5)])
            wh = writer.node("Pow", [writer.node("Mul", [wh, writer.constant(2)]), writer.constant(2)])
            wh = writer.node("Mul", [wh, writer.constant(sizes)])
        xy = writer.node("Mul", [xy, writer.constant(stride)])
        flat = writer.constant([1, -1, numbers], np.int64)
        parts.append(writer.node("Reshape", [writer.node("Concat", [xy, wh, rest], axis=4), flat]))
    names = json_names(classes)
    return writer.model(writer.node("Concat", parts, axis=1), size, opset, names=names)


def json_names(classes: int) -> str:
    """A table by number, as exporters print it."""
    return str({number: f"class {number}" for number in range(classes)})


def yolox(size: tuple[int, int] = (64, 96), classes: int = 3, focus: bool = True, decoded: bool = True) -> ModelProto:
    """YOLOX: three convolutions per map, ``(1, predictions, 5 + C)``, for BGR from 0 to 255."""
    writer, parts, cells, strides = Writer(), [], [], []
    for (source, channels), stride in zip(small_trunk(writer, focus=focus, of=255.0), SMALL_STRIDES, strict=True):
        rows, columns = (side // stride for side in size)
        stem = writer.conv(source, channels, 8, size=1)
        towers = [writer.conv(stem, 8, 8) for _ in range(2)]
        box, known = writer.conv(towers[0], 8, 4, 1, act=""), writer.conv(towers[0], 8, 1, 1, act="Sigmoid")
        kind = writer.conv(towers[1], 8, classes, 1, act="Sigmoid")
        joined = writer.node("Concat", [box, known, kind], axis=1)
        parts.append(writer.node("Reshape", [joined, writer.constant([1, 5 + classes, -1], np.int64)]))
        cells.append(np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1).reshape(1, -1, 2))
        strides.append(np.full((1, rows * columns, 1), stride))
    output = writer.node("Transpose", [writer.node("Concat", parts, axis=2)], perm=[0, 2, 1])
    if decoded:
        split = writer.constant([2, 2, 1 + classes], np.int64)
        xy, wh, rest = writer.node("Split", [output, split], 3, axis=2)
        step = writer.constant(np.concatenate(strides, axis=1))
        xy = writer.node("Mul", [writer.node("Add", [xy, writer.constant(np.concatenate(cells, axis=1))]), step])
        wh = writer.node("Mul", [writer.node("Exp", [wh]), step])
        output = writer.node("Concat", [xy, wh, rest], axis=2)
    return writer.model(output, size, names=json_names(classes))
