"""The Darknet ``.cfg`` format: sections, options, and the layer graph that they describe.

The text is kept as it was read, so an untouched cfg is written back byte for byte and a pruned
one differs in its ``filters=`` lines only. What Darknet and OpenCV misread is left out of it when it is read: a
byte-order mark, and a comment behind an option.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from prunedeploy.models.sections import (
    NOT_IN_DARKNET,
    REFUSED,
    SECTIONS,
    Convolutional,
    Head,
    Layer,
    net,
    options_read,
    refused_options,
    training_only,
)
from prunedeploy.models.sections.activations import not_in_darknet
from prunedeploy.models.sections.reading import LayerReader, Reader, Section, Shape, short
from prunedeploy.text_files import decode_text, is_decoded
from prunedeploy_engines.errors import DarknetFormatError

_COMMENT = re.compile("[#;]")


@dataclass(frozen=True)
class IgnoredOption:
    """An option that only Darknet's own training reads.

    Attributes:
        section: Kind of its section.
        option: Its name.
        value: As it stands in the file.
        line: Where it stands, from 1.
    """

    section: str
    option: str
    value: str
    line: int


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
        """The convolutional layers that have weights of their own, in cfg order."""
        return tuple(layer for layer in self.all_convolutions if not layer.shares_weights)

    @property
    def all_convolutions(self) -> tuple[Convolutional, ...]:
        """The same and those that share their weights."""
        return tuple(layer for layer in self.layers if isinstance(layer, Convolutional))

    @property
    def shared_weights(self) -> frozenset[int]:
        """Indices of the convolutions whose weights others use as well."""
        return frozenset(layer.weights_from for layer in self.all_convolutions if layer.shares_weights)

    @property
    def weighted(self) -> tuple[Layer, ...]:
        """The layers that have weights, in cfg order, which is the order of the weight file."""
        return tuple(layer for layer in self.layers if layer.weights_in_file())

    @property
    def heads(self) -> tuple[Head, ...]:
        """The detection heads in cfg order."""
        return tuple(layer for layer in self.layers if isinstance(layer, Head))

    @property
    def ignored_options(self) -> tuple[IgnoredOption, ...]:
        """The options that only Darknet's own training reads, in the order of the file."""
        return tuple(
            IgnoredOption(section.kind, name, section.options[name], line)
            for section in (self.net, *self.sections)
            for name, line in section.option_lines.items()
            if name in training_only(section.kind)
        )

    @property
    def head_outputs(self) -> frozenset[int]:
        """Indices of the convolutions whose output reaches a head without another convolution.

        One that shares its weights counts as the one that they are of.
        """
        found: set[int] = set()
        pending = [source for head in self.heads for source in head.inputs]
        while pending:
            index = pending.pop()
            if index < 0:  # the image itself
                continue
            layer = self.layers[index]
            if isinstance(layer, Convolutional):
                found.add(layer.weights_from)
            else:
                pending.extend(layer.inputs)
        return frozenset(found)

    @property
    def not_for_darknet(self) -> str | None:
        """What to say of a cfg with sections or activations that no Darknet has; None if it has none."""
        own = [f"[{kind}]" for kind in sorted({layer.kind for layer in self.layers} & NOT_IN_DARKNET)]
        activations = {not_in_darknet(getattr(layer, "activation", "linear")) for layer in self.layers}
        own += sorted(name for name in activations if name is not None)
        return f"the cfg is not for Darknet, which has no {', '.join(own)}" if own else None

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
        return sum(layer.macs for layer in self.all_convolutions)

    def with_filters(self, filters: Mapping[int, int], groups: Mapping[int, int] | None = None) -> DarknetCfg:
        """The same network with other widths.

        Args:
            filters: New number of filters by layer index; layers not named keep theirs, but those that share the
                weights of one that is named.
            groups: New ``groups=`` likewise, where a grouped convolution changed it.

        Returns:
            A new cfg whose text differs in the ``filters=`` (and ``groups=``) lines only.
        """
        changes: dict[int, dict[str, int]] = {}
        for option, values in (("filters", filters), ("groups", groups or {})):
            for layer in self.all_convolutions:
                if layer.weights_from in values:
                    changes.setdefault(layer.index, {})[option] = values[layer.weights_from]
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
    text = "\n".join(_without_comment_behind(line) for line in text.replace("\ufeff", "").split("\n"))
    sections = _parse_sections(text, where)
    if not sections or sections[0].kind not in ("net", "network"):
        raise DarknetFormatError("does not start with [net]", f"{where}:1", "give a Darknet .cfg file")
    reader = Reader(sections[0], where)
    input_shape = (reader.integer("channels", 3), reader.integer("height"), reader.integer("width"))
    letterbox = bool(reader.integer("letter_box", 1, 0))
    layers: list[Layer] = []
    for section in sections[1:]:
        layer_reader = LayerReader(section, where, layers, input_shape)
        if section.kind not in SECTIONS:
            raise layer_reader.error(f"a second [{section.kind}] section")
        layers.append(SECTIONS[section.kind].read(layer_reader))
    cfg = DarknetCfg(text, where, input_shape, letterbox, sections[0], tuple(sections[1:]), tuple(layers))
    _check_heads(cfg)
    return cfg


def _check_heads(cfg: DarknetCfg) -> None:
    if not cfg.heads:
        raise DarknetFormatError(
            "has no [yolo], [Gaussian_yolo] or [region] section", cfg.where, "give the cfg of a YOLO detector"
        )
    for head in cfg.heads:
        like = next(other for other in cfg.heads if other.kind == head.kind)
        if head.classes != cfg.classes or len(head.anchors_wh) != len(like.anchors_wh):
            what = f"[{head.kind}] sections differ in classes or number of anchors"
            raise DarknetFormatError(what, f"{cfg.where}:{head.line}", "make them agree")


def _parse_sections(text: str, where: str) -> list[Section]:
    sections: list[Section] = []
    options: dict[str, str] = {}
    option_lines: dict[str, int] = {}
    overruled: dict[str, list[int]] = {}
    for number, raw in enumerate(text.split("\n"), start=1):
        line = raw.strip()
        if not line or line[0] in "#;":
            continue
        at = f"{where}:{number}"
        if not is_decoded(line):
            raise DarknetFormatError("is not text", at, "give a Darknet .cfg file, saved as UTF-8")
        if line.startswith("["):
            kind = line.strip("[]").strip().lower()
            if kind in REFUSED:
                raise DarknetFormatError(f"[{kind}] is not supported: {REFUSED[kind]}", at, "use another network")
            if not line.endswith("]") or kind not in ("net", "network", *SECTIONS):
                supported = ", ".join(f"[{name}]" for name in ("net", *SECTIONS))
                raise DarknetFormatError(f"unknown section {short(line)}", at, f"supported are {supported}")
            options, option_lines, overruled = {}, {}, {}
            sections.append(Section(kind, number, options, option_lines, overruled))
            continue
        key, separator, value = (part.strip() for part in line.partition("="))
        if not separator or not sections:
            raise DarknetFormatError(f"expected key=value, got {short(line)!r}", at, "correct the line")
        section = sections[-1].kind
        if key in (refused := refused_options(section)) and value != "0":
            what = f"{key}= of [{section}] is not supported: {refused[key]}"
            raise DarknetFormatError(what, at, "use another network")
        allowed = {*options_read(section), *training_only(section), *refused}
        if key not in allowed:
            near = get_close_matches(key, allowed, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "remove it"
            raise DarknetFormatError(f"unknown option {short(key)!r} in [{section}]", at, hint)
        if key in options:
            if key not in net.TRAINING_ONLY:  # two of batch: one for testing, one for training
                raise DarknetFormatError(f"option {key!r} stands twice in one section", at, "remove one")
            overruled.setdefault(key, []).append(option_lines[key])
        options[key], option_lines[key] = value, number
    return sections


def _without_comment_behind(line: str) -> str:
    """A line without the comment behind its text; one that is nothing but a comment stays."""
    text, *comment = _COMMENT.split(line, maxsplit=1)
    if not comment or not text.strip():
        return line
    return text.rstrip(" \t") + "\r" * line.endswith("\r")
