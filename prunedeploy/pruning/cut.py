"""What a choice of filters and weights leaves of a network: the same for every granularity."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from prunedeploy.models.darknet import Darknet
from prunedeploy.pruning.masks import apply_unstructured, live_channels, silence_dead
from prunedeploy.pruning.shrink import shrink_weights, without_dead


class Masks(NamedTuple):
    """What lives: 1.0 and 0.0 with gradients that go to scores, or as bool. What is not named lives.

    Attributes:
        filters: By layer index ``(filters,)``.
        weights: By layer index, weight-shaped.
    """

    filters: dict[int, Tensor]
    weights: dict[int, Tensor]

    def as_bool(self) -> Masks:
        """The same without gradients."""
        with torch.no_grad():
            return Masks(*({index: mask > 0 for index, mask in part.items()} for part in self))


Selection = Callable[[Mapping[int, Tensor]], Masks]
"""From scores, by layer index and weight-shaped, to what lives."""


@dataclass(frozen=True, eq=False)
class Cut:
    """A pruned network.

    Attributes:
        network: Shrunk where filters left, with zeros where weights did.
        masked: What it computes in the shapes of the unpruned network; ``network`` itself if no filter could leave.
        filters: For every convolution, by layer index: ``(filters,)`` bool, those of the unpruned network that live.
        weights: By layer index: bool, in the shapes of ``network``, the weights that were not zeroed; empty
            where none could be.
    """

    network: Darknet
    masked: Darknet
    filters: dict[int, Tensor]
    weights: dict[int, Tensor]


def make_cut(model: Darknet, masks: Masks) -> Cut:
    """Remove what masks say.

    Args:
        model: The unpruned network; not modified.
        masks: From a `Selection`, as bool.
    """
    filters = {layer.index: torch.ones(layer.out_channels, dtype=torch.bool) for layer in model.cfg.convolutions}
    filters |= masks.filters
    masked = apply_unstructured(model, masks.weights)
    if not masks.filters:
        return Cut(masked, masked, filters, masks.weights)
    live = live_channels(model.cfg, filters)
    masked = silence_dead(masked, live)
    return Cut(without_dead(masked, live), masked, filters, shrink_weights(model.cfg, live, masks.weights))
