"""Section ``attention``: every cell's mean of all cells' values, weighted by how queries and keys agree.

Darknet has no such section. It is what YOLO11 has between its backbone and its neck.

Reference: Vaswani et al., Attention Is All You Need, 2017, section 3.2.
"""

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
class Attention(Layer):
    """Multi-head self-attention over the cells of a map, without projections, which are convolutions around it.

    Of head h of ``heads``, with q, k ``(D, cells)`` and v ``(E, cells)`` its share of the three inputs' channels, the
    output is ``v softmax(scale * q' k)'``, the softmax over the cells that k is of.

    Attributes:
        heads: Into how many parts the channels are cut, each with weights of its own.
        scale: Factor of the products; as a rule 1 / sqrt(D) of the network as it was trained, which does not change
            when channels leave.
    """

    options: ClassVar[Mapping[str, str]] = {
        "from": "three layers: queries, keys and values; negative: counted back from here",
        "heads": "parts that channels are split into, each of which attends by itself",
        "scale": "factor of the products of queries and keys",
    }

    heads: int
    scale: float

    @classmethod
    def read(cls, reader: LayerReader) -> Attention:
        """See `Layer.read`."""
        sources, heads = reader.references("from"), reader.integer("heads", 1)
        shapes = [reader.layers[source].out_shape for source in sources]
        if len(shapes) != 3 or shapes[0] != shapes[1] or shapes[1][1:] != shapes[2][1:]:
            what = f"attends by maps of {', '.join(map(str, shapes))}"
            fix = "name three layers: queries and keys of one shape, and values of the same height and width"
            raise reader.error(what, "from", fix)
        in_channels = tuple(shape[0] for shape in shapes)
        if any(channels % heads for channels in in_channels):
            raise reader.error(f"heads={heads} does not divide channels {in_channels}", "heads")
        return cls(*reader.wiring(shapes[2], sources, in_channels), heads, reader.number("scale", 1.0))

    def run(self, inputs: list[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        """See `Layer.run`."""
        query, key, value = (x.flatten(2).unflatten(1, (self.heads, -1)) for x in inputs)  # (B, heads, D, cells)
        shares = torch.softmax(query.transpose(-1, -2) @ key * self.scale, dim=-1)  # (B, heads, cells, cells)
        return (value @ shares.transpose(-1, -2)).reshape(inputs[2].shape)

    def sources(self) -> Sources:
        """The values' channels, each a mean of itself: heads stay equal by losing the same offsets.

        Queries and keys are multiplied channel by channel and summed within a head, so a channel leaves both, of all
        heads; their sum is then what it was without it.
        """
        queries = np.arange(self.in_channels[0]).reshape(self.heads, -1)
        keys = self.in_channels[0] + queries
        values = 2 * self.in_channels[0] + np.arange(self.out_channels)
        both = np.concatenate((queries, keys))
        return Sources((values,), (both, values.reshape(self.heads, -1)), mixed=both.reshape(-1))

    def smaller(self, inputs: Sequence[Tensor], output: Tensor) -> dict[str, object]:
        """See `Layer.smaller`."""
        for live in inputs:
            parts = live.view(self.heads, -1).sum(1).tolist()
            if len(set(parts)) > 1:
                raise ValueError(f"layer {self.index}: the heads of the attention would keep {parts} channels")
        return {}
