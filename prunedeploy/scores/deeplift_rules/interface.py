"""What DeepLIFT's rules for layers share: what the way forth leaves for the way back, and a rule's two halves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from prunedeploy.models.sections import Convolutional, Layer

L = TypeVar("L", bound=Layer)


@dataclass(frozen=True, eq=False)
class Slopes:
    """Multipliers of an activation, from its input's difference to its output's.

    Attributes:
        positive: ``(B, C, H, W)``, for the positive part of the input's difference.
        negative: For the negative part; the same tensor under the Rescale rule.
    """

    positive: Tensor
    negative: Tensor

    @property
    def equal(self) -> bool:
        """Whether both parts have one multiplier."""
        return self.positive is self.negative


@dataclass(eq=False)
class Trace:
    """What one batch and its references did to a network.

    Attributes:
        weights: Folded weights of convolutions by layer index.
        biases: Their folded biases.
        others: The weights of other layers by layer index and name.
        images: B, the number of images; in a layer's output the references stand behind them.
        deltas: Output on the images minus output on the references by layer index, -1 the images themselves; only
            of layers that some rule asks for.
        slopes: Slopes of activations that are not linear, by layer index.
        kept: What else a layer's rule keeps for its way back, by layer index.
        heads: Raw heads of the images.
        reference_heads: Raw heads of the references.
    """

    weights: dict[int, Tensor]
    biases: dict[int, Tensor]
    others: Mapping[int, Mapping[str, Tensor]]
    images: int
    deltas: dict[int, Tensor] = field(default_factory=dict)
    slopes: dict[int, Slopes] = field(default_factory=dict)
    kept: dict[int, Any] = field(default_factory=dict)
    heads: list[Tensor] = field(default_factory=list)
    reference_heads: list[Tensor] = field(default_factory=list)

    def weights_of(self, layer: Layer) -> Mapping[str, Tensor]:
        """The weights of a layer that is no convolution, by name."""
        return self.others.get(layer.index, {})


@dataclass(frozen=True, eq=False)
class Multipliers:
    """Of a folded convolution's output before its activation.

    Attributes:
        layer: The convolution.
        positive: ``(B, filters, H', W')``, for contributions that raise the output.
        negative: For those that lower it; the same tensor where the two do not differ.
        at_output: ``(B, filters, H', W')``, of the output behind the activation, and behind a blur.
    """

    layer: Convolutional
    positive: Tensor
    negative: Tensor
    at_output: Tensor

    @property
    def equal(self) -> bool:
        """Whether the two parts are one."""
        return self.positive is self.negative


Visit = Callable[[Multipliers], None]


class LayerRule(ABC, Generic[L]):
    """How differences from the reference pass through one kind of layer."""

    def lacking(self, layer: L) -> str | None:
        """What of the layer the rule does not cover; None if it covers all."""
        return None

    def deltas(self, layer: L, rule: str) -> Iterable[int]:
        """Layers whose `Trace.deltas` this one needs under ``rule``, ``rescale`` or ``reveal-cancel``."""
        return ()

    @abstractmethod
    def forward(self, found: Trace, layer: L, inputs: list[Tensor], rule: str) -> Tensor:
        """Compute the layer and keep what the way back needs.

        Args:
            found: Where to keep it.
            layer: The layer.
            inputs: Each ``(B + references, C, H, W)``.
            rule: ``rescale`` or ``reveal-cancel``.
        """

    @abstractmethod
    def backward(self, found: Trace, layer: L, output: Tensor, visit: Visit) -> Iterable[tuple[int, Tensor]]:
        """Hand multipliers back.

        Args:
            found: What the way forth kept, released as it is used.
            layer: The layer.
            output: ``(B, C', H', W')``, multipliers of the output.
            visit: Called by a convolution with its own.

        Returns:
            For each input its layer's index and its multipliers.
        """


def by_sign(delta: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """Choose by the sign of a difference; the mean of the two where it is 0 (section 3.5.1, last equation)."""
    chosen = torch.where(delta > 0, positive, negative)
    return torch.where(delta == 0, (positive + negative) / 2, chosen)
