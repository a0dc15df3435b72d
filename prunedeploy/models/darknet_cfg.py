"""The Darknet ``.cfg`` format: sections, options, and the layer graph that they describe.

The text is kept as it was read, so an untouched cfg is written back byte for byte and a pruned
one differs in its ``filters=`` lines only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from prunedeploy_engines.errors import DarknetFormatError

ACTIVATIONS = ("linear", "leaky", "relu", "mish", "swish", "logistic")

_TRAINING_ONLY_NET = frozenset(
    "batch subdivisions momentum decay angle saturation exposure hue learning_rate burn_in max_batches "
    "policy steps scales mosaic mixup cutmix flip power letter_box max_crop min_crop aspect "
    "time_steps".split()
)
_OPTIONS: Mapping[str, frozenset[str]] = {
    "net": frozenset("width height channels".split()) | _TRAINING_ONLY_NET,
    "convolutional": frozenset("batch_normalize filters size stride pad padding groups activation dilation".split()),
    "maxpool": frozenset("size stride padding".split()),
    "upsample": frozenset({"stride"}),
    "route": frozenset("layers groups group_id".split()),
    "shortcut": frozenset("from activation".split()),
    "yolo": frozenset(
        "mask anchors classes num ignore_thresh truth_thresh iou_thresh iou_loss iou_normalizer "
        "obj_normalizer cls_normalizer scale_x_y jitter random nms_kind beta_nms max_delta resize max".split()
    ),
}
_OPTIONS_OF = {**_OPTIONS, "network": _OPTIONS["net"]}


@dataclass(frozen=True)
class Section:
    """One ``[kind]`` block: its options as text, and the line (from 1) each stands on."""

    kind: str
    line: int
    options: Mapping[str, str]
    option_lines: Mapping[str, int]


@dataclass(frozen=True)
class Layer:
    """One layer of the graph, its wiring and shapes resolved.

    Attributes:
        index: Position in the cfg, counted from 0 after ``[net]``, as ``layers=`` of a route counts.
        kind: Section name.
        line: Line of the section header in the cfg.
        inputs: Indices of the layers that feed it; -1 is the image.
        in_channels: Channels per input, in the order of ``inputs``.
        out_shape: ``(channels, height, width)`` at the cfg's input size.
    """

    index: int
    kind: str
    line: int
    inputs: tuple[int, ...]
    in_channels: tuple[int, ...]
    out_shape: tuple[int, int, int]

    @property
    def out_channels(self) -> int:
        """Channels of the output."""
        return self.out_shape[0]


@dataclass(frozen=True)
class Convolutional(Layer):
    """Convolution, optional batch normalisation, activation."""

    size: int
    stride: int
    padding: int
    groups: int
    dilation: int
    batch_normalize: bool
    activation: str

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """``(filters, input channels per group, size, size)``."""
        return (self.out_channels, self.in_channels[0] // self.groups, self.size, self.size)

    @property
    def macs(self) -> int:
        """Multiply-accumulate operations for one image at the cfg's input size."""
        filters, per_group, height, width = self.weight_shape
        return filters * per_group * height * width * self.out_shape[1] * self.out_shape[2]


@dataclass(frozen=True)
class Maxpool(Layer):
    """Max pooling; ``padding`` cells in all, ``padding // 2`` of them left and top, filled with -inf."""

    size: int
    stride: int
    padding: int


@dataclass(frozen=True)
class Upsample(Layer):
    """Nearest-neighbour upsampling by ``stride``."""

    stride: int


@dataclass(frozen=True)
class Route(Layer):
    """Concatenation of the inputs, or of part ``group_id`` of ``groups`` of each."""

    groups: int
    group_id: int


@dataclass(frozen=True)
class Shortcut(Layer):
    """Sum of two inputs, then an activation."""

    activation: str


@dataclass(frozen=True)
class Yolo(Layer):
    """Detection head: ``out_shape[0] == len(anchor_indices) * (5 + classes)``.

    Attributes:
        anchor_indices: Darknet's ``mask``: which of ``anchors_wh`` this head predicts.
        anchors_wh: All anchors of the network, (width, height) in input pixels.
        classes: Number of classes, independent logistics.
        ignore_thresh: No objectness loss where an unassigned prediction overlaps a box by more (IoU).
        iou_thresh: Anchors whose shape overlaps a box by more (IoU) are assigned to it beside the best one.
        iou_loss: Box term, ``mse`` (YOLOv3) or ``ciou``.
        iou_normalizer: Weight of the box term; ``obj_normalizer`` and ``cls_normalizer`` of the other two.
        scale_x_y: Stretch of the centre's logistic around 0.5 (YOLOv4); 1 is YOLOv3.
    """

    anchor_indices: tuple[int, ...]
    anchors_wh: tuple[tuple[float, float], ...]
    classes: int
    ignore_thresh: float
    iou_thresh: float
    iou_loss: str
    iou_normalizer: float
    obj_normalizer: float
    cls_normalizer: float
    scale_x_y: float

    @property
    def head_anchors_wh(self) -> tuple[tuple[float, float], ...]:
        """Anchors of this head, in the order of its channels."""
        return tuple(self.anchors_wh[i] for i in self.anchor_indices)


@dataclass(frozen=True)
class DarknetCfg:
    """A parsed cfg.

    Attributes:
        text: The file's text, byte for byte.
        where: Name for error messages.
        input_shape: ``(channels, height, width)`` of ``[net]``.
        sections: All sections but ``[net]``; ``sections[i]`` describes ``layers[i]``.
        layers: The resolved graph.
    """

    text: str
    where: str
    input_shape: tuple[int, int, int]
    sections: tuple[Section, ...] = field(repr=False)
    layers: tuple[Layer, ...] = field(repr=False)

    @property
    def convolutions(self) -> tuple[Convolutional, ...]:
        """The convolutional layers in cfg order, which is the order of the weight file."""
        return tuple(layer for layer in self.layers if isinstance(layer, Convolutional))

    @property
    def heads(self) -> tuple[Yolo, ...]:
        """The yolo layers in cfg order."""
        return tuple(layer for layer in self.layers if isinstance(layer, Yolo))

    @property
    def head_outputs(self) -> frozenset[int]:
        """Indices of the convolutions whose output reaches a yolo layer without another convolution."""
        found: set[int] = set()
        pending = [source for head in self.heads for source in head.inputs]
        while pending:
            index = pending.pop()
            if index < 0:  # the image itself
                continue
            if isinstance(self.layers[index], Convolutional):
                found.add(index)
            else:
                pending.extend(self.layers[index].inputs)
        return frozenset(found)

    @property
    def classes(self) -> int:
        """Number of classes of the network."""
        return self.heads[0].classes

    @property
    def input_size(self) -> tuple[int, int]:
        """``(height, width)`` in pixels."""
        return self.input_shape[1:]

    @property
    def macs(self) -> int:
        """Multiply-accumulate operations of all convolutions for one image."""
        return sum(layer.macs for layer in self.convolutions)

    def consumers(self) -> dict[int, list[int]]:
        """Which layers read each layer's output; key -1 is the image."""
        readers: dict[int, list[int]] = {index: [] for index in range(-1, len(self.layers))}
        for layer in self.layers:
            for source in layer.inputs:
                readers[source].append(layer.index)
        return readers

    def with_filters(self, filters: Mapping[int, int], groups: Mapping[int, int] | None = None) -> DarknetCfg:
        """The same network with other widths.

        Args:
            filters: New number of filters by layer index; layers not named keep theirs.
            groups: New ``groups=`` by layer index, where a grouped convolution changed it.

        Returns:
            A new cfg whose text differs in the ``filters=`` (and ``groups=``) lines only.
        """
        lines = self.text.split("\n")
        insertions: list[tuple[int, str]] = []
        for option, values in (("filters", filters), ("groups", groups or {})):
            for index, value in values.items():
                section = self.sections[index]
                number = section.option_lines.get(option)
                if number is None:
                    insertions.append((section.line, f"{option}={value}"))
                elif section.options[option] != str(value):
                    before, _, after = lines[number - 1].partition("=")
                    old = after.strip()
                    lines[number - 1] = f"{before}={after.replace(old, str(value), 1)}"
        for after_line, text in sorted(insertions, reverse=True):
            ending = "\r" if lines[after_line - 1].endswith("\r") else ""
            lines.insert(after_line, text + ending)
        return parse_cfg("\n".join(lines), self.where)


def read_cfg(path: str | Path) -> DarknetCfg:
    """Read and parse a ``.cfg`` file.

    Raises:
        DarknetFormatError: The file is missing, not text, or not a cfg that this project supports; the
            message names file and line.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise DarknetFormatError(f"cannot be read ({error.strerror})", path, "give an existing .cfg file") from None
    except UnicodeDecodeError:
        raise DarknetFormatError("is not text", path, "give a Darknet .cfg file") from None
    return parse_cfg(text, str(path))


def parse_cfg(text: str, where: str = "cfg") -> DarknetCfg:
    """Parse cfg text and resolve its layer graph.

    Args:
        text: The whole file.
        where: Name for error messages.

    Raises:
        DarknetFormatError: Names ``where:line`` and what is wrong there.
    """
    sections = _parse_sections(text, where)
    if not sections or sections[0].kind not in ("net", "network"):
        raise DarknetFormatError("does not start with [net]", f"{where}:1", "give a Darknet .cfg file")
    net = _Reader(sections[0], where)
    input_shape = (net.integer("channels", 3), net.integer("height"), net.integer("width"))
    layers: list[Layer] = []
    for section in sections[1:]:
        layers.append(_build_layer(_Reader(section, where), layers, input_shape))
    if not any(isinstance(layer, Yolo) for layer in layers):
        raise DarknetFormatError("has no [yolo] section", where, "give the cfg of a YOLO detector")
    first = next(layer for layer in layers if isinstance(layer, Yolo))
    for layer in layers:
        if isinstance(layer, Yolo) and (layer.classes, layer.anchors_wh) != (first.classes, first.anchors_wh):
            raise DarknetFormatError(
                "[yolo] sections differ in classes or anchors", f"{where}:{layer.line}", "make them agree"
            )
    return DarknetCfg(text, where, input_shape, tuple(sections[1:]), tuple(layers))


def _parse_sections(text: str, where: str) -> list[Section]:
    sections: list[Section] = []
    options: dict[str, str] = {}
    option_lines: dict[str, int] = {}
    for number, raw in enumerate(text.split("\n"), start=1):
        line = raw.strip()
        if not line or line[0] in "#;":
            continue
        at = f"{where}:{number}"
        if line.startswith("["):
            kind = line.strip("[]").strip().lower()
            if not line.endswith("]") or kind not in _OPTIONS_OF:
                raise DarknetFormatError(
                    f"unknown section {_short(line)}",
                    at,
                    f"supported are {', '.join(f'[{k}]' for k in _OPTIONS)}",
                )
            options, option_lines = {}, {}
            sections.append(Section(kind, number, options, option_lines))
            continue
        key, separator, value = (part.strip() for part in line.partition("="))
        if not separator or not sections:
            raise DarknetFormatError(f"expected key=value, got {_short(line)!r}", at, "correct the line")
        allowed = _OPTIONS_OF[sections[-1].kind]
        if key not in allowed:
            near = get_close_matches(key, allowed, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "remove it"
            raise DarknetFormatError(f"unknown option {_short(key)!r} in [{sections[-1].kind}]", at, hint)
        if key in options:
            raise DarknetFormatError(f"option {key!r} stands twice in one section", at, "remove one")
        options[key], option_lines[key] = value, number
    return sections


def _short(text: str) -> str:
    """Text from a file that may not be a cfg at all, fit for a message."""
    return text if len(text) <= 60 else f"{text[:60]}..."


class _Reader:
    """Typed access to the options of one section; errors name the line."""

    def __init__(self, section: Section, where: str) -> None:
        self.section = section
        self.where = where

    def error(self, what: str, option: str | None = None, fix: str = "correct the line") -> DarknetFormatError:
        line = self.section.option_lines.get(option or "", self.section.line)
        return DarknetFormatError(what, f"{self.where}:{line}", fix)

    def text(self, option: str, default: str | None = None) -> str:
        value = self.section.options.get(option, default)
        if value is None:
            raise self.error(f"[{self.section.kind}] needs {option}=", fix="add the option")
        return value

    def integer(self, option: str, default: int | None = None, minimum: int = 1) -> int:
        text = self.text(option, None if default is None else str(default))
        try:
            value = int(text)
        except ValueError:
            raise self.error(f"{option}={text} is not a whole number", option) from None
        if value < minimum:
            raise self.error(f"{option}={value} is below {minimum}", option)
        return value

    def number(self, option: str, default: float) -> float:
        text = self.text(option, str(default))
        try:
            return _finite(text)
        except ValueError:
            raise self.error(f"{option}={text} is not a number", option) from None

    def numbers(self, option: str) -> list[float]:
        text = self.text(option)
        try:
            return [_finite(part) for part in text.split(",") if part.strip()]
        except ValueError:
            raise self.error(f"{option}={text} is not a list of numbers", option) from None

    def whole_numbers(self, option: str) -> list[int]:
        values = self.numbers(option)
        if any(value != int(value) for value in values):
            raise self.error(f"{option}={self.text(option)} is not a list of whole numbers", option)
        return [int(value) for value in values]

    def choice(self, option: str, default: str, choices: tuple[str, ...]) -> str:
        value = self.text(option, default)
        if value not in choices:
            raise self.error(f"unknown {option} {value!r}", option, f"supported are {', '.join(choices)}")
        return value

    def references(self, option: str, index: int, layers: list[Layer]) -> list[int]:
        """Layer references, negative ones relative to this layer, as absolute indices."""
        found = []
        for number in self.whole_numbers(option):
            target = number if number >= 0 else index + number
            if not 0 <= target < index:
                raise self.error(
                    f"{option} points at layer {number}, but only layers 0 to {index - 1} come before it",
                    option,
                )
            if isinstance(layers[target], Yolo):
                raise self.error(f"{option} points at layer {target}, a [yolo] section", option)
            found.append(target)
        if not found:
            raise self.error(f"{option}= names no layer", option)
        return found


def _build_layer(reader: _Reader, layers: list[Layer], input_shape: tuple[int, int, int]) -> Layer:
    index = len(layers)
    kind, line = reader.section.kind, reader.section.line
    previous = index - 1
    # A layer that follows a head without a route reads what the head read.
    while previous >= 0 and isinstance(layers[previous], Yolo):
        previous = layers[previous].inputs[0]
    shape = input_shape if previous < 0 else layers[previous].out_shape
    channels, height, width = shape
    single = (index, kind, line, (previous,), (channels,))

    if kind == "convolutional":
        size, stride, groups = (
            reader.integer("size", 1),
            reader.integer("stride", 1),
            reader.integer("groups", 1),
        )
        dilation = reader.integer("dilation", 1)
        padding = size // 2 * dilation if reader.integer("pad", 0, 0) else reader.integer("padding", 0, 0)
        filters = reader.integer("filters", 1)
        if channels % groups or filters % groups:
            raise reader.error(
                f"groups={groups} does not divide {channels} input channels and {filters} filters", "groups"
            )
        reach = dilation * (size - 1) + 1
        out = (
            filters,
            (height + 2 * padding - reach) // stride + 1,
            (width + 2 * padding - reach) // stride + 1,
        )
        _check_size(reader, out)
        return Convolutional(
            *single,
            out,
            size,
            stride,
            padding,
            groups,
            dilation,
            bool(reader.integer("batch_normalize", 0, 0)),
            reader.choice("activation", "logistic", ACTIVATIONS),
        )
    if kind == "maxpool":
        stride = reader.integer("stride", 1)
        size = reader.integer("size", stride)
        padding = reader.integer("padding", size - 1, 0)
        out = (channels, (height + padding - size) // stride + 1, (width + padding - size) // stride + 1)
        _check_size(reader, out)
        return Maxpool(*single, out, size, stride, padding)
    if kind == "upsample":
        stride = reader.integer("stride", 2)
        return Upsample(*single, (channels, height * stride, width * stride), stride)
    if kind == "route":
        sources = reader.references("layers", index, layers)
        groups, group_id = reader.integer("groups", 1), reader.integer("group_id", 0, 0)
        sizes = {layers[source].out_shape[1:] for source in sources}
        if len(sizes) > 1:
            raise reader.error(f"joins feature maps of different sizes {sorted(sizes)}", "layers")
        in_channels = tuple(layers[source].out_channels for source in sources)
        if group_id >= groups or any(count % groups for count in in_channels):
            raise reader.error(f"groups={groups}, group_id={group_id} do not fit channels {in_channels}", "groups")
        ((height, width),) = sizes
        out = (sum(in_channels) // groups, height, width)
        return Route(index, kind, line, tuple(sources), in_channels, out, groups, group_id)
    if kind == "shortcut":
        sources = reader.references("from", index, layers)
        if len(sources) != 1:
            raise reader.error("from= names more than one layer", "from")
        other = layers[sources[0]].out_shape
        if other != shape:
            raise reader.error(f"adds shapes {shape} and {other}", "from", "point it at a layer of the same shape")
        activation = reader.choice("activation", "linear", ACTIVATIONS)
        return Shortcut(index, kind, line, (previous, sources[0]), (channels, channels), shape, activation)
    if kind == "yolo":
        return _build_yolo(reader, single, shape)
    raise reader.error(f"a second [{kind}] section")


def _build_yolo(
    reader: _Reader,
    single: tuple[int, str, int, tuple[int, ...], tuple[int, ...]],
    shape: tuple[int, int, int],
) -> Yolo:
    values = reader.numbers("anchors")
    anchors = tuple(zip(values[0::2], values[1::2], strict=False))
    if len(values) % 2 or not anchors or min(values) <= 0:
        raise reader.error("anchors= needs positive width,height pairs", "anchors")
    classes = reader.integer("classes", 20)
    num = reader.integer("num", len(anchors))
    if num != len(anchors):
        raise reader.error(f"num={num}, but there are {len(anchors)} anchors", "num")
    mask = tuple(reader.whole_numbers("mask")) if "mask" in reader.section.options else tuple(range(num))
    if not mask or any(not 0 <= index < num for index in mask):
        raise reader.error(f"mask= names an anchor outside 0 to {num - 1}", "mask")
    expected = len(mask) * (5 + classes)
    if shape[0] != expected:
        raise reader.error(
            f"reads {shape[0]} channels, but {len(mask)} anchors and {classes} classes need {expected}",
            fix=f"set filters={expected} in the convolution before it",
        )
    return Yolo(
        *single,
        shape,
        mask,
        anchors,
        classes,
        ignore_thresh=reader.number("ignore_thresh", 0.5),
        iou_thresh=reader.number("iou_thresh", 1.0),
        iou_loss=reader.choice("iou_loss", "mse", ("mse", "ciou")),
        iou_normalizer=reader.number("iou_normalizer", 1.0),
        obj_normalizer=reader.number("obj_normalizer", 1.0),
        cls_normalizer=reader.number("cls_normalizer", 1.0),
        scale_x_y=reader.number("scale_x_y", 1.0),
    )


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"not finite: {text}")
    return value


def _check_size(reader: _Reader, out: tuple[int, int, int]) -> None:
    if min(out) < 1:
        raise reader.error(f"has an empty output {out}", fix="raise the input size or drop the layer")
