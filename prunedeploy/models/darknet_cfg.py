"""The Darknet ``.cfg`` format: sections, options, and the layer graph that they describe.

The text is kept as it was read, so an untouched cfg is written back byte for byte and a pruned
one differs in its ``filters=`` lines only. What Darknet and OpenCV misread is left out of it when it is read: a
byte-order mark, and a comment behind an option.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import TypeVar

from prunedeploy.text_files import decode_text, is_decoded
from prunedeploy_engines.errors import DarknetFormatError

ACTIVATIONS = ("linear", "leaky", "relu", "mish", "swish", "logistic")

_COMMENT_BEHIND = re.compile(r"(?m)^([^#;\n]*[^#;\s][^#;\n]*?)[ \t]*[#;][^\n]*?(\r?)$")
"""What stands behind something else in its line; a comment that has a line of its own stays."""


T = TypeVar("T")
Shape = tuple[int, int, int]
"""``(channels, height, width)``."""

_TRAINING_ONLY_NET = frozenset(
    "batch subdivisions momentum decay angle saturation exposure hue learning_rate burn_in max_batches "
    "policy steps scales mosaic mixup cutmix flip power max_crop min_crop aspect time_steps ema_alpha label_smooth_eps "
    "max_epochs sgdr_cycle sgdr_mult augment_speed adversarial_lr attention blur gamma gaussian_noise "
    "learning_rate_min loss_scale mosaic_bound optimized_memory resize_step seq_scales step scale try_fix_nan "
    "workspace_size_limit_MB dynamic_minibatch adam B1 B2 eps".split()
)
_OPTIONS: Mapping[str, frozenset[str]] = {
    "net": frozenset("width height channels letter_box".split()) | _TRAINING_ONLY_NET,
    "convolutional": frozenset(
        "batch_normalize filters size stride pad padding groups activation dilation stopbackward".split()
    ),
    "maxpool": frozenset("size stride padding".split()),
    "upsample": frozenset({"stride"}),
    "route": frozenset("layers groups group_id".split()),
    "shortcut": frozenset("from activation".split()),
    "yolo": frozenset(
        "mask anchors classes num ignore_thresh truth_thresh iou_thresh iou_loss iou_normalizer "
        "obj_normalizer cls_normalizer scale_x_y jitter random nms_kind beta_nms max_delta resize max "
        "objectness_smooth counters_per_class".split()
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
    out_shape: Shape

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
    def weight_count(self) -> int:
        """Number of weights."""
        return math.prod(self.weight_shape)

    @property
    def macs(self) -> int:
        """Multiply-accumulate operations for one image at the cfg's input size."""
        return self.weight_count * math.prod(self.out_shape[1:])


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
        text: The file's text, without what other programs misread.
        where: Name for error messages.
        input_shape: ``(channels, height, width)`` of ``[net]``.
        letterbox: Whether images are letterboxed to the input size, as the original Darknet does, or stretched to
            it: ``letter_box=`` of ``[net]``, which a widespread fork reads; without it they are letterboxed.
        net: The section ``[net]``.
        sections: All sections but ``[net]``; ``sections[i]`` describes ``layers[i]``.
        layers: The resolved graph.
    """

    text: str
    where: str
    input_shape: Shape
    letterbox: bool
    net: Section = field(repr=False)
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

    def check_channels(self) -> None:
        """Refuse a network for images that are neither RGB nor grey.

        Raises:
            DarknetFormatError: ``channels=`` is neither 3 nor 1.
        """
        if self.input_shape[0] not in (1, 3):
            at = f"{self.where}:{self.net.option_lines['channels']}"
            what = f"channels={self.input_shape[0]}: images have three channels, or one for a grey network"
            raise DarknetFormatError(what, at, "use a network with channels=3 or channels=1")

    @property
    def macs(self) -> int:
        """Multiply-accumulate operations of all convolutions for one image."""
        return sum(layer.macs for layer in self.convolutions)

    def with_filters(self, filters: Mapping[int, int], groups: Mapping[int, int] | None = None) -> DarknetCfg:
        """The same network with other widths.

        Args:
            filters: New number of filters by layer index; layers not named keep theirs.
            groups: New ``groups=`` by layer index, where a grouped convolution changed it.

        Returns:
            A new cfg whose text differs in the ``filters=`` (and ``groups=``) lines only.
        """
        changes: dict[int, dict[str, int]] = {}
        for option, values in (("filters", filters), ("groups", groups or {})):
            for index, value in values.items():
                changes.setdefault(index, {})[option] = value
        return self.with_options(changes)

    def with_options(self, changes: Mapping[int, Mapping[str, object]]) -> DarknetCfg:
        """The same cfg with other values of some options.

        Args:
            changes: New values by layer index and option; -1 is ``[net]``.

        Returns:
            A new cfg whose text differs in the lines of these options only; options that a section lacked are
            inserted below its header.

        Raises:
            DarknetFormatError: The result is not a network.
        """
        lines = self.text.split("\n")
        insertions: list[tuple[int, str]] = []
        for index, options in changes.items():
            section = self.net if index < 0 else self.sections[index]
            for option, value in options.items():
                number = section.option_lines.get(option)
                if number is None:
                    insertions.append((section.line, f"{option}={value}"))
                elif section.options[option] != str(value):
                    before, _, after = lines[number - 1].partition("=")
                    old = section.options[option]
                    after = after.replace(old, str(value), 1) if old else f"{value}{after}"
                    lines[number - 1] = f"{before}={after}"
        for after_line, text in sorted(insertions, reverse=True):
            ending = "\r" if lines[after_line - 1].endswith("\r") else ""
            lines.insert(after_line, text + ending)
        return parse_cfg("\n".join(lines), self.where)

    def to_bytes(self) -> bytes:
        """The text as a file; bytes that are not UTF-8, in comments, are those that were read."""
        return self.text.encode("utf-8", "surrogateescape")


def read_cfg(path: str | Path) -> DarknetCfg:
    """Read and parse a ``.cfg`` file.

    Raises:
        DarknetFormatError: The file is missing, not text, or not a cfg that this project supports; the
            message names file and line.
    """
    path = Path(path)
    try:
        text = decode_text(path.read_bytes())
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
    text = _COMMENT_BEHIND.sub(r"\1\2", text.replace("\ufeff", ""))
    sections = _parse_sections(text, where)
    if not sections or sections[0].kind not in ("net", "network"):
        raise DarknetFormatError("does not start with [net]", f"{where}:1", "give a Darknet .cfg file")
    net = _Reader(sections[0], where)
    input_shape = (net.integer("channels", 3), net.integer("height"), net.integer("width"))
    letterbox = bool(net.integer("letter_box", 1, 0))
    layers: list[Layer] = []
    for section in sections[1:]:
        reader = _LayerReader(section, where, layers, input_shape)
        if section.kind not in _BUILDERS:
            raise reader.error(f"a second [{section.kind}] section")
        layers.append(_BUILDERS[section.kind](reader))
    heads = [layer for layer in layers if isinstance(layer, Yolo)]
    if not heads:
        raise DarknetFormatError("has no [yolo] section", where, "give the cfg of a YOLO detector")
    for head in heads:
        if (head.classes, head.anchors_wh) != (heads[0].classes, heads[0].anchors_wh):
            what = "[yolo] sections differ in classes or anchors"
            raise DarknetFormatError(what, f"{where}:{head.line}", "make them agree")
    return DarknetCfg(text, where, input_shape, letterbox, sections[0], tuple(sections[1:]), tuple(layers))


def _parse_sections(text: str, where: str) -> list[Section]:
    sections: list[Section] = []
    options: dict[str, str] = {}
    option_lines: dict[str, int] = {}
    for number, raw in enumerate(text.split("\n"), start=1):
        line = raw.strip()
        if not line or line[0] in "#;":
            continue
        at = f"{where}:{number}"
        if not is_decoded(line):
            raise DarknetFormatError("is not text", at, "give a Darknet .cfg file, saved as UTF-8")
        if line.startswith("["):
            kind = line.strip("[]").strip().lower()
            if not line.endswith("]") or kind not in _OPTIONS_OF:
                supported = ", ".join(f"[{name}]" for name in _OPTIONS)
                raise DarknetFormatError(f"unknown section {_short(line)}", at, f"supported are {supported}")
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
        if key in options and key not in _TRAINING_ONLY_NET:  # two of batch: one for testing, one for training
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

    def parsed(self, option: str, default: str | None, parse: Callable[[str], T], what: str) -> T:
        text = self.text(option, default)
        try:
            return parse(text)
        except ValueError:
            raise self.error(f"{option}={text} is not {what}", option) from None

    def integer(self, option: str, default: int | None = None, minimum: int = 1) -> int:
        value = self.parsed(option, None if default is None else str(default), int, "a whole number")
        if value < minimum:
            raise self.error(f"{option}={value} is below {minimum}", option)
        return value

    def number(self, option: str, default: float) -> float:
        return self.parsed(option, str(default), _finite, "a number")

    def numbers(self, option: str) -> list[float]:
        return self.parsed(option, None, _finite_list, "a list of numbers")

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


class _LayerReader(_Reader):
    """The options of a layer's section, and what comes before it.

    Attributes:
        index: Of the layer.
        previous: Index of the layer that it reads unless it names others; -1 is the image.
        shape: ``(channels, height, width)`` of that layer's output.
    """

    def __init__(self, section: Section, where: str, layers: list[Layer], input_shape: Shape) -> None:
        super().__init__(section, where)
        self.layers = layers
        self.index = len(layers)
        self.previous = self.index - 1
        # A layer that follows a head without a route reads what the head read.
        while self.previous >= 0 and isinstance(layers[self.previous], Yolo):
            self.previous = layers[self.previous].inputs[0]
        self.shape = input_shape if self.previous < 0 else layers[self.previous].out_shape

    def references(self, option: str) -> tuple[int, ...]:
        """Layer references, negative ones relative to this layer, as absolute indices."""
        found = []
        for number in self.whole_numbers(option):
            target = number if number >= 0 else self.index + number
            if not 0 <= target < self.index:
                before = f"only layers 0 to {self.index - 1} come before it"
                raise self.error(f"{option} points at layer {number}, but {before}", option)
            if isinstance(self.layers[target], Yolo):
                raise self.error(f"{option} points at layer {target}, a [yolo] section", option)
            found.append(target)
        if not found:
            raise self.error(f"{option}= names no layer", option)
        return tuple(found)

    def windows(self, channels: int, size: int, stride: int, padding: int) -> Shape:
        """Shape of ``channels`` maps with one cell per window of ``size``; ``padding`` is that of both sides."""
        height, width = ((side + padding - size) // stride + 1 for side in self.shape[1:])
        out = channels, height, width
        if min(out) < 1:
            raise self.error(f"has an empty output {out}", fix="raise the input size or drop the layer")
        return out

    def wiring(
        self, out_shape: Shape, inputs: tuple[int, ...] | None = None, in_channels: tuple[int, ...] | None = None
    ) -> tuple[int, str, int, tuple[int, ...], tuple[int, ...], Shape]:
        """What every layer has, in the order of `Layer`; without ``inputs`` it reads the previous one."""
        inputs, in_channels = inputs or (self.previous,), in_channels or self.shape[:1]
        return self.index, self.section.kind, self.section.line, inputs, in_channels, out_shape


def _convolutional(reader: _LayerReader) -> Convolutional:
    size, stride, groups = reader.integer("size", 1), reader.integer("stride", 1), reader.integer("groups", 1)
    dilation = reader.integer("dilation", 1)
    padding = size // 2 * dilation if reader.integer("pad", 0, 0) else reader.integer("padding", 0, 0)
    channels, filters = reader.shape[0], reader.integer("filters", 1)
    if channels % groups or filters % groups:
        what = f"groups={groups} does not divide {channels} input channels and {filters} filters"
        raise reader.error(what, "groups")
    out = reader.windows(filters, dilation * (size - 1) + 1, stride, 2 * padding)
    normalised = bool(reader.integer("batch_normalize", 0, 0))
    activation = reader.choice("activation", "logistic", ACTIVATIONS)
    return Convolutional(*reader.wiring(out), size, stride, padding, groups, dilation, normalised, activation)


def _maxpool(reader: _LayerReader) -> Maxpool:
    stride = reader.integer("stride", 1)
    size = reader.integer("size", stride)
    padding = reader.integer("padding", size - 1, 0)
    out = reader.windows(reader.shape[0], size, stride, padding)
    return Maxpool(*reader.wiring(out), size, stride, padding)


def _upsample(reader: _LayerReader) -> Upsample:
    stride = reader.integer("stride", 2)
    channels, height, width = reader.shape
    return Upsample(*reader.wiring((channels, height * stride, width * stride)), stride)


def _route(reader: _LayerReader) -> Route:
    sources = reader.references("layers")
    groups, group_id = reader.integer("groups", 1), reader.integer("group_id", 0, 0)
    sizes = {reader.layers[source].out_shape[1:] for source in sources}
    if len(sizes) > 1:
        raise reader.error(f"joins feature maps of different sizes {sorted(sizes)}", "layers")
    in_channels = tuple(reader.layers[source].out_channels for source in sources)
    if group_id >= groups or any(count % groups for count in in_channels):
        raise reader.error(f"groups={groups}, group_id={group_id} do not fit channels {in_channels}", "groups")
    out = (sum(in_channels) // groups, *sizes.pop())
    return Route(*reader.wiring(out, sources, in_channels), groups, group_id)


def _shortcut(reader: _LayerReader) -> Shortcut:
    sources = reader.references("from")
    if len(sources) != 1:
        raise reader.error("from= names more than one layer", "from")
    shape, other = reader.shape, reader.layers[sources[0]].out_shape
    if other != shape:
        raise reader.error(f"adds shapes {shape} and {other}", "from", "point it at a layer of the same shape")
    activation = reader.choice("activation", "linear", ACTIVATIONS)
    return Shortcut(*reader.wiring(shape, (reader.previous, *sources), shape[:1] * 2), activation)


def _yolo(reader: _LayerReader) -> Yolo:
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
    if reader.shape[0] != expected:
        raise reader.error(
            f"reads {reader.shape[0]} channels, but {len(mask)} anchors and {classes} classes need {expected}",
            fix=f"set filters={expected} in the convolution before it",
        )
    return Yolo(
        *reader.wiring(reader.shape),
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


_BUILDERS: Mapping[str, Callable[[_LayerReader], Layer]] = {
    "convolutional": _convolutional,
    "maxpool": _maxpool,
    "upsample": _upsample,
    "route": _route,
    "shortcut": _shortcut,
    "yolo": _yolo,
}
"""How a layer is made of its section, by the section's name."""


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"not finite: {text}")
    return value


def _finite_list(text: str) -> list[float]:
    return [_finite(part) for part in text.split(",") if part.strip()]
