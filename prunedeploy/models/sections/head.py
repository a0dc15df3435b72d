"""What every detection head answers; decoding, the loss, attacks and the rewriting of cfgs ask nothing else."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prunedeploy.models.boxes import cxcywh_to_xyxy
from prunedeploy.models.sections.channels import Sources, one_to_one
from prunedeploy.models.sections.layer import Layer

Reduce = Callable[[Tensor, Tensor, "Tensor | None"], Tensor]
"""Sums ``(N, ...)`` values by the image of each, ``(N,)``, or by the target of each; None where they belong to none."""


@dataclass(frozen=True, eq=False)
class Truth:
    """The objects of a batch, as losses ask for them.

    Attributes:
        targets: ``(T, 6)`` float: image index in the batch, class index, then centre x, centre y, width and height
            normalised to [0, 1] by the input size.
        image: ``(T,)`` int64, the first of those columns.
        boxes_cxcywh: ``(T, 4)`` in input pixels.
        padded_xyxy: ``(B, most boxes of one image, 4)`` in input pixels; unused places hold empty boxes far outside.
        input_size: ``(height, width)`` in pixels.
    """

    targets: Tensor
    image: Tensor
    boxes_cxcywh: Tensor
    padded_xyxy: Tensor
    input_size: tuple[int, int]


@dataclass(frozen=True)
class Head(Layer):
    """A detection head. Its raw output is what it reads, ``(B, A * V, H, W)``.

    Of each of the A anchors there are V = `box_values` + 1 + C numbers per cell: those of the box, the objectness logit
    and the class logits. Predictions are counted by anchor, then row, then column: N = A * H * W.

    Attributes:
        box_values: How many numbers describe a box.
        anchor_indices: Which of ``anchors_wh`` this head predicts; Darknet's ``mask``.
        anchors_wh: All anchors of the network, (width, height) in input pixels.
        classes: C, the number of classes.
    """

    is_head: ClassVar[bool] = True
    box_values: ClassVar[int] = 4

    anchor_indices: tuple[int, ...]
    anchors_wh: tuple[tuple[float, float], ...]
    classes: int

    @property
    def head_anchors_wh(self) -> tuple[tuple[float, float], ...]:
        """Anchors of this head, in the order of its channels."""
        return tuple(self.anchors_wh[i] for i in self.anchor_indices)

    @property
    def prediction_count(self) -> int:
        """N at the cfg's input size."""
        return len(self.anchor_indices) * math.prod(self.out_shape[1:])

    def channels_for(self, classes: int) -> int:
        """Channels that the head would read if it had so many classes."""
        return len(self.anchor_indices) * (self.box_values + 1 + classes)

    def anchors_option(self, anchors_wh: Sequence[tuple[float, float]]) -> str:
        """The section's ``anchors=`` for anchors in input pixels."""
        return ", ".join(f"{width:g},{height:g}" for width, height in anchors_wh)

    def run(self, inputs: list[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        """See `Layer.run`: the raw head."""
        return inputs[0]

    def sources(self) -> Sources:
        """What a head reads stays."""
        reason = f"reaches the {self.kind} section at layer {self.index}"
        return Sources(one_to_one(self.out_channels), frozen=reason)

    def split(self, raw: Tensor) -> Tensor:
        """View a raw head per prediction.

        Args:
            raw: ``(B, A * V, H, W)``.

        Returns:
            ``(B, A, H, W, V)``: numbers of the box, objectness logit, class logits.

        Raises:
            ValueError: The channel count is not ``A * V``.
        """
        batch, channels, height, width = raw.shape
        expected = self.channels_for(self.classes)
        if channels != expected:
            raise ValueError(f"head at layer {self.index}: expected {expected} channels, got {tuple(raw.shape)}")
        return raw.view(batch, len(self.anchor_indices), -1, height, width).permute(0, 1, 3, 4, 2)

    def objectness_logits(self, raw: Tensor) -> Tensor:
        """``(B, N)`` of a raw head."""
        return self.split(raw)[..., self.box_values].flatten(1)

    def class_logits(self, raw: Tensor) -> Tensor:
        """``(B, N, C)`` of a raw head."""
        return self.split(raw)[..., self.box_values + 1 :].flatten(1, 3)

    def boxes_xyxy(self, raw: Tensor, input_size: tuple[int, int]) -> Tensor:
        """``(B, N, 4)`` in input pixels of a raw head; ``input_size`` is ``(height, width)`` of the network's input."""
        return cxcywh_to_xyxy(self.decode_boxes(self.split(raw), input_size)).flatten(1, 3)

    @abstractmethod
    def decode_boxes(self, predictions: Tensor, input_size: tuple[int, int]) -> Tensor:
        """Decode boxes.

        Args:
            predictions: ``(B, A, H, W, V)`` of `split`.
            input_size: ``(height, width)`` of the network's input.

        Returns:
            ``(B, A, H, W, 4)`` as centre x, centre y, width, height in input pixels.
        """

    @abstractmethod
    def scores(self, raw: Tensor) -> Tensor:
        """``(B, N, C)`` in [0, 1] of a raw head: objectness times class probability."""

    @abstractmethod
    def log_scores(self, raw: Tensor) -> Tensor:
        """``(B, N, C)``: the logarithm of `scores`, with gradients where those underflow."""

    @abstractmethod
    def class_probabilities(self, raw: Tensor) -> Tensor:
        """``(B, N, C)`` in [0, 1] of a raw head, given an object."""

    @abstractmethod
    def loss_terms(self, raw: Tensor, truth: Truth, reduce: Reduce) -> tuple[Tensor, Tensor, Tensor]:
        """Box, objectness and class terms of the loss of this head.

        Args:
            raw: ``(B, A * V, H, W)``, float32 or float64.
            truth: The batch's objects.
            reduce: What sums predictions; every term is its result.
        """

    def set_prior(self, weight: Tensor, bias: Tensor) -> None:
        """Start the convolution that the head reads at a low prior of objects and classes, in place.

        Args:
            weight: ``(A * V, in, size, size)``.
            bias: ``(A * V,)``.

        Reference: Lin et al., Focal Loss for Dense Object Detection, 2017, section 4.1.
        """
        with torch.no_grad():
            weight.mul_(0.1)
            per_anchor = bias.view(len(self.anchor_indices), -1)
            per_anchor[:, self.box_values] = -4.0
            per_anchor[:, self.box_values + 1 :] = -2.0
