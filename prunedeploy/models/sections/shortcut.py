"""Section ``shortcut``: the sum of layers, each with a weight if it says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from prunedeploy.models.sections.activations import activate, alive_at_zero, read_activation
from prunedeploy.models.sections.channels import Sources
from prunedeploy.models.sections.layer import Layer, Weight
from prunedeploy.models.sections.reading import LayerReader

NORMALISATION_EPS = 1e-4
"""What Darknet adds to the sum that the weights of a shortcut are divided by."""

_PER_INPUT, _PER_CHANNEL = ("per_feature", "per_layer"), ("per_channel",)
_RELU, _SOFTMAX = ("relu", "avg_relu"), ("softmax",)


@dataclass(frozen=True)
class Shortcut(Layer):
    """Sum of the previous layer and others of maps of the same size, then an activation.

    The output has the channels of the previous layer. Of a layer with more channels the first ones are added, and what
    a layer with fewer has is added to the first ones: Darknet adds what fits.

    Attributes:
        activation: Its name.
        weights_type: Whether inputs have weights: ``none``, one each (``per_feature``, also called ``per_layer``), or
            one for each output channel (``per_channel``).
        weights_normalization: What the weights w_i of an output channel are made of before they are used:
            ``none``; ``relu``: relu(w_i) / (eps + sum of relu(w_j)); ``softmax``: the same with exp(w_i - max w). The
            sum is over all inputs, also where one has no such channel; eps is `NORMALISATION_EPS`. Darknet itself
            refuses weights with ``none``.

    Reference: Darknet, ``shortcut_multilayer_cpu``; for the weights Tan et al., EfficientDet, 2020, section 3.3.
    """

    options: ClassVar[Mapping[str, str]] = {
        "from": "layers that are added to the one before; negative: counted back from here",
        "activation": "function of each value of the sum",
        "leaky_slope": "slope of activation=leaky below 0, where it is not Darknet's 0.1; not for Darknet",
        "weights_type": "per_feature or per_channel: learned weights of the summands",
        "weights_normalization": "relu or softmax: how these weights are made positive and divided by their sum",
    }

    activation: str
    weights_type: str
    weights_normalization: str

    @classmethod
    def read(cls, reader: LayerReader) -> Shortcut:
        """See `Layer.read`."""
        sources = reader.references("from")
        others = [reader.layers[source].out_shape for source in sources]
        for source, other in zip(sources, others, strict=True):
            if other[1:] != reader.shape[1:]:
                (height, width), (rows, columns) = reader.shape[1:], other[1:]
                what = f"adds maps of different sizes, {width}x{height} and {columns}x{rows} of layer {source}"
                raise reader.error(what, "from", "point it at a layer whose map has the same size")
        return cls(
            *reader.wiring(
                reader.shape, (reader.previous, *sources), (reader.shape[0], *(other[0] for other in others))
            ),
            read_activation(reader, "linear"),
            reader.choice("weights_type", "none", ("none", *_PER_INPUT, *_PER_CHANNEL)),
            reader.choice("weights_normalization", "none", ("none", *_RELU, *_SOFTMAX)),
        )

    def run(self, inputs: list[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        """See `Layer.run`."""
        return activate(self.total(inputs, weights), self.activation)

    def total(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        """The sum before the activation; as `run`."""
        first, *others = self.summands(inputs, weights)
        for other in others:
            first = first + widened(other, self.out_channels)
        return first

    def summands(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> list[Tensor]:
        """What is added, each ``(B, C, H, W)`` with at most `out_channels` channels, which stand for the first ones."""
        fitting = [x[:, : self.out_channels] for x in inputs]
        factors = self.factors(weights)
        if factors is None:
            return fitting
        return [x * factor[: x.shape[1], None, None] for x, factor in zip(fitting, factors, strict=True)]

    def factors(self, weights: Mapping[str, Tensor]) -> Tensor | None:
        """What every input's channels are multiplied by, ``(inputs, out_channels)``; None without weights."""
        if self.weights_type == "none":
            return None
        weight = weights["weights"]
        if self.weights_normalization in _RELU:
            weight = F.relu(weight)
        elif self.weights_normalization in _SOFTMAX:
            weight = torch.exp(weight - weight.amax(0))
        if self.weights_normalization != "none":
            weight = weight / (weight.sum(0) + NORMALISATION_EPS)
        return weight.view(len(self.inputs), -1).expand(-1, self.out_channels)

    def weights_in_file(self) -> dict[str, Weight]:
        """See `Layer.weights_in_file`; all weights of the previous layer come first, then those of the others."""
        if self.weights_type == "none":
            return {}
        if self.weights_type in _PER_CHANNEL:
            return {"weights": Weight((len(self.inputs), self.out_channels), channel_axis=1, initial=1.0)}
        return {"weights": Weight((len(self.inputs),), channel_axis=None, initial=1.0)}

    def sources(self) -> Sources:
        """Each channel is the sum of the inputs' channels at its place, as far as they have one there.

        Channels that are summed leave together, so the first ones of every input still are what they are added to.
        """
        channels, start, terms = np.arange(self.out_channels), 0, []
        for count in self.in_channels:
            terms.append(np.where(channels < count, start + channels, -1))
            start += count
        return Sources(tuple(terms), alive_at_zero=alive_at_zero(self.index, self.activation))

    def constants(self, values: list[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        """See `Layer.constants`: the sum of constants, NaN if one of them is none."""
        return self.run([value.view(1, -1, 1, 1) for value in values], weights).flatten()


def widened(x: Tensor, channels: int) -> Tensor:
    """``(B, C, H, W)`` with zeros behind its channels."""
    return x if x.shape[1] == channels else F.pad(x, (0, 0, 0, 0, 0, channels - x.shape[1]))
