"""The options of one section as typed values; errors name the line."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from prunedeploy_engines.errors import DarknetFormatError

T = TypeVar("T")
Shape = tuple[int, int, int]
"""``(channels, height, width)``."""


@dataclass(frozen=True)
class Section:
    """One ``[kind]`` block: its options as text, and the line (from 1) each stands on.

    Of an option that stands there twice the last line counts; the lines before it are in ``overruled``.
    """

    kind: str
    line: int
    options: Mapping[str, str]
    option_lines: Mapping[str, int]
    overruled: Mapping[str, Sequence[int]] = field(default_factory=dict)


class Reader:
    """Typed access to the options of one section; errors name the line."""

    def __init__(self, section: Section, where: str) -> None:
        self.section = section
        self.where = where

    def error(self, what: str, option: str | None = None, fix: str = "correct the line") -> DarknetFormatError:
        """An error at an option's line, or at the section's own."""
        line = self.section.option_lines.get(option or "", self.section.line)
        return DarknetFormatError(what, f"{self.where}:{line}", fix)

    def text(self, option: str, default: str | None = None) -> str:
        """The option as it stands; without a default it must be there."""
        value = self.section.options.get(option, default)
        if value is None:
            raise self.error(f"[{self.section.kind}] needs {option}=", fix="add the option")
        return value

    def integer(self, option: str, default: int | None = None, minimum: int = 1) -> int:
        """A whole number of at least ``minimum``."""
        value = self._parsed(option, None if default is None else str(default), int, "a whole number")
        if value < minimum:
            raise self.error(f"{option}={value} is below {minimum}", option)
        return value

    def number(self, option: str, default: float) -> float:
        """A finite number."""
        return self._parsed(option, str(default), _finite, "a number")

    def flag(self, option: str) -> bool:
        """Whether the option is there and not 0."""
        return self.integer(option, 0, 0) != 0

    def numbers(self, option: str) -> list[float]:
        """Finite numbers between commas."""
        return self._parsed(option, None, _finite_list, "a list of numbers")

    def whole_numbers(self, option: str) -> list[int]:
        """Whole numbers between commas."""
        values = self.numbers(option)
        if any(value != int(value) for value in values):
            raise self.error(f"{option}={short(self.text(option))} is not a list of whole numbers", option)
        return [int(value) for value in values]

    def choice(self, option: str, default: str, choices: tuple[str, ...]) -> str:
        """One of some words."""
        value = self.text(option, default)
        if value not in choices:
            raise self.error(f"unknown {option} {short(value)!r}", option, f"supported are {', '.join(choices)}")
        return value

    def _parsed(self, option: str, default: str | None, parse: Callable[[str], T], what: str) -> T:
        text = self.text(option, default)
        try:
            return parse(text)
        except ValueError:
            raise self.error(f"{option}={short(text)} is not {what}", option) from None


class Wired(Protocol):
    """What a section's reader asks of the layers before it."""

    @property
    def kind(self) -> str:
        """Section name."""

    @property
    def inputs(self) -> tuple[int, ...]:
        """Indices of the layers that feed it; -1 is the image."""

    @property
    def out_shape(self) -> Shape:
        """``(channels, height, width)``."""

    @property
    def is_head(self) -> bool:
        """Whether it is a detection head, which no layer reads."""


class LayerReader(Reader):
    """The options of a layer's section, and what comes before it.

    Attributes:
        layers: The layers before it.
        index: Of the layer.
        previous: Index of the layer that it reads unless it names others; -1 is the image.
        shape: ``(channels, height, width)`` of that layer's output.
        input_size: ``(height, width)`` of the network's input.
    """

    def __init__(self, section: Section, where: str, layers: Sequence[Wired], input_shape: Shape) -> None:
        super().__init__(section, where)
        self.layers = layers
        self.input_size = input_shape[1:]
        self.index = len(layers)
        self.previous = self.index - 1
        # A layer that follows a head without a route reads what the head read.
        while self.previous >= 0 and layers[self.previous].is_head:
            self.previous = layers[self.previous].inputs[0]
        self.shape = input_shape if self.previous < 0 else layers[self.previous].out_shape

    def references(self, option: str) -> tuple[int, ...]:
        """Layer references, negative ones relative to this layer, as absolute indices."""
        found = []
        for number in self.whole_numbers(option):
            target = number if number >= 0 else self.index + number
            if not 0 <= target < self.index:
                before = (
                    f"only layers 0 to {self.index - 1} come before it" if self.index else "this is the first layer"
                )
                raise self.error(f"{option} points at layer {number}, but {before}", option)
            if self.layers[target].is_head:
                raise self.error(f"{option} points at layer {target}, a [{self.layers[target].kind}] section", option)
            found.append(target)
        if not found:
            raise self.error(f"{option}= names no layer", option)
        return tuple(found)

    def anchors(self) -> tuple[tuple[float, float], ...]:
        """``anchors=`` as (width, height), at least as many as ``num=`` says where it stands.

        Of more, Darknet takes the first ``num``, and reads beyond its memory where a ``mask`` names others.
        """
        values = self.numbers("anchors")
        if len(values) % 2 or not values or min(values) <= 0:
            raise self.error("anchors= needs positive width,height pairs", "anchors")
        anchors = tuple(zip(values[0::2], values[1::2], strict=True))
        num = self.integer("num", len(anchors))
        if num > len(anchors):
            raise self.error(f"num={num}, but there are {len(anchors)} anchors", "num")
        return anchors

    def windows(self, channels: int, size: int, stride: int | tuple[int, int], padding: int) -> Shape:
        """Shape of ``channels`` maps with one cell per window of ``size``.

        Args:
            channels: Of the output.
            size: Side of a window.
            stride: Its step, or its steps down and across.
            padding: That of both sides together.
        """
        strides = (stride, stride) if isinstance(stride, int) else stride
        height, width = (
            (side + padding - size) // step + 1 for side, step in zip(self.shape[1:], strides, strict=True)
        )
        return self.not_empty((channels, height, width))

    def not_empty(self, out: Shape) -> Shape:
        """A shape, refused where it has no cell."""
        if min(out) < 1:
            raise self.error(f"has an empty output {out}", fix="raise the input size or drop the layer")
        return out

    def wiring(
        self, out_shape: Shape, inputs: tuple[int, ...] | None = None, in_channels: tuple[int, ...] | None = None
    ) -> tuple[int, str, int, tuple[int, ...], tuple[int, ...], Shape]:
        """What every layer has, in the order of `Layer`; without ``inputs`` it reads the previous one."""
        inputs, in_channels = inputs or (self.previous,), in_channels or self.shape[:1]
        return self.index, self.section.kind, self.section.line, inputs, in_channels, out_shape


def short(text: str) -> str:
    """Text from a file that may not be a cfg at all, fit for a message."""
    return text if len(text) <= 60 else f"{text[:60]}..."


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"not finite: {text}")
    return value


def _finite_list(text: str) -> list[float]:
    return [_finite(part) for part in text.split(",") if part.strip()]
