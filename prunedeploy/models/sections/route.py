"""Section ``route``: concatenation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from prunedeploy.models.sections.channels import Sources
from prunedeploy.models.sections.layer import Layer
from prunedeploy.models.sections.reading import LayerReader


@dataclass(frozen=True)
class Route(Layer):
    """Concatenation of the inputs, or of part ``group_id`` of ``groups`` of each."""

    options: ClassVar[Mapping[str, str]] = {
        "layers": "layers whose channels are put one after another; negative: counted back from here",
        "groups": "parts that channels are split into, of which one is taken",
        "group_id": "which of these parts, from 0",
    }
    training_only: ClassVar[frozenset[str]] = frozenset(("stream", "wait_stream"))  # of a GPU; they change no result
    linear: ClassVar[bool] = True

    groups: int
    group_id: int

    @classmethod
    def read(cls, reader: LayerReader) -> Route:
        """See `Layer.read`."""
        sources = reader.references("layers")
        groups, group_id = reader.integer("groups", 1), reader.integer("group_id", 0, 0)
        shapes = [reader.layers[source].out_shape for source in sources]
        sizes = {shape[1:] for shape in shapes}
        if len(sizes) > 1:
            raise reader.error(f"joins feature maps of different sizes {sorted(sizes)}", "layers")
        in_channels = tuple(shape[0] for shape in shapes)
        if group_id >= groups or any(count % groups for count in in_channels):
            raise reader.error(f"groups={groups}, group_id={group_id} do not fit channels {in_channels}", "groups")
        out = (sum(in_channels) // groups, *sizes.pop())
        return cls(*reader.wiring(out, sources, in_channels), groups, group_id)

    def run(self, inputs: list[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        """See `Layer.run`."""
        if self.groups > 1:
            inputs = [x.chunk(self.groups, dim=1)[self.group_id] for x in inputs]
        return inputs[0] if len(inputs) == 1 else torch.cat(inputs, dim=1)

    def sources(self) -> Sources:
        """The inputs' channels; parts stay equal by losing the same offsets."""
        starts = np.cumsum((0, *self.in_channels[:-1]))
        parts = [
            start + np.arange(channels).reshape(self.groups, -1)
            for start, channels in zip(starts, self.in_channels, strict=True)
        ]
        ties = tuple(parts) if self.groups > 1 else ()
        return Sources((np.concatenate([part[self.group_id] for part in parts]),), ties)

    def smaller(self, inputs: Sequence[Tensor], output: Tensor) -> dict[str, object]:
        """See `Layer.smaller`."""
        for live in inputs:
            parts = live.view(self.groups, -1).sum(1).tolist()
            if len(set(parts)) > 1:
                raise ValueError(f"layer {self.index}: the route's parts would keep {parts} channels")
        return {}
