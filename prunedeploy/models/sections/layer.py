"""What every section of a cfg can say of itself; each kind has a file of its own beside this one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from prunedeploy.models.sections.channels import Sources, one_to_one
from prunedeploy.models.sections.reading import LayerReader, Shape

EVERY_LAYER_TRAINING_ONLY = frozenset(
    "stopbackward onlyforward dont_update burnin_update train_only_bn clip learning_rate".split()
)
"""What any section of a layer may have and only Darknet's own training reads."""

_NOT_IN_FILE = "the weight file would lack what it keeps Darknet from reading"
EVERY_LAYER_REFUSED: Mapping[str, str] = {"dontload": _NOT_IN_FILE, "dontloadscales": _NOT_IN_FILE}
"""What any section of a layer may have in Darknet and is refused here, and why."""


@dataclass(frozen=True)
class Weight:
    """One array of a layer's in the weight file.

    Attributes:
        shape: Its shape.
        channel_axis: Which axis counts the layer's output channels; None if none does.
        initial: What a network with random weights has there.
    """

    shape: tuple[int, ...]
    channel_axis: int | None = 0
    initial: float = 0.0


@dataclass(frozen=True)
class Layer(ABC):
    """One layer of the graph, its wiring and shapes resolved.

    A new kind of section is a subclass in a file of its own, and its name in `prunedeploy.models.sections.SECTIONS`.
    What it does not override is that of a layer without weights that hands its only input's channels on, one to one.

    Attributes:
        options: What the section may have and this project reads, and what each means, in words for people.
        training_only: What it may have and only Darknet's own training reads, beside `EVERY_LAYER_TRAINING_ONLY`.
        refused: What it may have in Darknet and is refused here, and why, beside `EVERY_LAYER_REFUSED`.
        linear: Whether the output is a linear function of the inputs, so that attribution needs no rule for it.
        is_head: Whether it is a detection head; see `prunedeploy.models.sections.head.Head`.
        index: Position in the cfg, counted from 0 after ``[net]``, as ``layers=`` of a route counts.
        kind: Section name.
        line: Line of the section header in the cfg.
        inputs: Indices of the layers that feed it; -1 is the image.
        in_channels: Channels per input, in the order of ``inputs``.
        out_shape: ``(channels, height, width)`` at the cfg's input size.
    """

    options: ClassVar[Mapping[str, str]] = {}
    training_only: ClassVar[frozenset[str]] = frozenset()
    refused: ClassVar[Mapping[str, str]] = {}
    linear: ClassVar[bool] = False
    is_head: ClassVar[bool] = False

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

    @classmethod
    @abstractmethod
    def read(cls, reader: LayerReader) -> Layer:
        """Make the layer of its section.

        Raises:
            DarknetFormatError: Names the line and what is wrong there.
        """

    @abstractmethod
    def run(self, inputs: list[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        """Compute the output.

        Args:
            inputs: One ``(B, C, H, W)`` for each of the layer's inputs; not modified.
            weights: The layer's own, by the names of `weights_in_file`.

        Returns:
            ``(B, *out_shape)`` for images of the cfg's size.
        """

    def weights_in_file(self) -> dict[str, Weight]:
        """What the weight file holds for this layer, in its order."""
        return {}

    def sources(self) -> Sources:
        """Where the channels of the output come from."""
        return Sources(one_to_one(self.out_channels))

    def constants(self, values: list[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        """What the output is where inputs are the same number everywhere.

        Args:
            values: Per input ``(channels,)`` float64: the number, or NaN where there is none.
            weights: As `run`.

        Returns:
            ``(out_channels,)`` float64; NaN, which is never wrong, where the output may not be constant. Here: the one
            term's number, NaN where there are several terms.
        """
        terms = self.sources().terms
        if len(terms) != 1:
            return torch.full((self.out_channels,), torch.nan, dtype=torch.float64)
        return torch.cat(values)[torch.from_numpy(terms[0])]

    def smaller(self, inputs: Sequence[Tensor], output: Tensor) -> dict[str, object]:
        """The options that change when channels leave.

        Args:
            inputs: Per input ``(channels,)`` bool, which live.
            output: ``(out_channels,)`` bool.

        Returns:
            New values by option.

        Raises:
            ValueError: The section cannot say what is left.
        """
        return {}

    def pixels_per_cell(self, inputs: Sequence[Fraction]) -> Fraction:
        """Input pixels per cell of the output's map, given those of the inputs' maps."""
        return inputs[0]


def live_outputs(layer: Layer, inputs: Sequence[Tensor]) -> Tensor:
    """Which channels of a layer's output live.

    Args:
        layer: One whose output channels come from its inputs.
        inputs: Per input ``(channels,)`` bool, which live.

    Returns:
        ``(out_channels,)`` bool.

    Raises:
        ValueError: Only a part of what an output channel is a function of lives.
    """
    live = torch.cat(list(inputs))
    first, *others = layer.sources().terms
    output = live[torch.from_numpy(first)]
    for other in others:
        present = torch.from_numpy(other >= 0)
        if not torch.equal(live[torch.from_numpy(np.maximum(other, 0))][present], output[present]):
            raise ValueError(f"layer {layer.index}: the {layer.kind} joins channels and only one side lives")
    return output
