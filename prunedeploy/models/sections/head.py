"""What every detection head answers; decoding, the loss, attacks and the rewriting of cfgs ask nothing else."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prunedeploy.models.boxes import cxcywh_to_xyxy
from prunedeploy.models.reduction import Reduce
from prunedeploy.models.sections.channels import Sources, one_to_one
from prunedeploy.models.sections.layer import Layer
from prunedeploy.models.sections.reading import LayerReader


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
        has_objectness: Whether there is an objectness logit; without one V is `box_values` + C.
        has_anchors: Whether boxes are predicted as multiples of anchors; without them A is 1.
        anchor_indices: Which of ``anchors_wh`` this head predicts; Darknet's ``mask``.
        anchors_wh: All anchors of the network, (width, height) in input pixels.
        classes: C, the number of classes.
    """

    is_head: ClassVar[bool] = True
    box_values: ClassVar[int] = 4
    has_objectness: ClassVar[bool] = True
    has_anchors: ClassVar[bool] = True

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

    @property
    def decoding(self) -> str:
        """How it is decoded; heads that have it in common, one behind the other, are decoded together in the export."""
        return self.kind

    @property
    def exclusive_classes(self) -> bool:
        """Whether class probabilities sum to 1, by a softmax of the logits, instead of being independent logistics."""
        return False

    def check_channels(self, reader: LayerReader) -> None:
        """Refuse a section that reads another number of channels than it needs.

        Raises:
            DarknetFormatError: Names the section's line and the number that is needed.
        """
        expected = self.channels_for(self.classes)
        if reader.shape[0] != expected:
            needs = f"{len(self.anchor_indices)} anchors and {self.classes} classes need"
            if not self.has_anchors:
                needs = f"{self.class_start} numbers of the box and {self.classes} classes are"
            fix = f"set filters={expected} in the convolution before it"
            if not self.has_anchors:
                fix = "join the convolution of the boxes and that of the classes by a route, in this order"
            raise reader.error(f"reads {reader.shape[0]} channels, but {needs} {expected}", fix=fix)

    def channels_for(self, classes: int) -> int:
        """Channels that the head would read if it had so many classes."""
        return len(self.anchor_indices) * (self.class_start + classes)

    @property
    def class_start(self) -> int:
        """Where the class logits begin among the numbers of a prediction."""
        return self.box_values + self.has_objectness

    def class_layer(self, layers: Sequence[Layer]) -> Layer | None:
        """The layer whose last channels are the classes; None if that is the image."""
        return layers[self.inputs[0]] if self.inputs[0] >= 0 else None

    def prior_layers(self, layers: Sequence[Layer]) -> Sequence[tuple[Layer | None, int]]:
        """The layers that `set_prior` is for, and which number of a prediction the first filter of each gives."""
        return [(self.class_layer(layers), 0)]

    def options_for(self, classes: int) -> dict[str, object]:
        """The section's options that change with the number of classes."""
        return {"classes": classes}

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

    def logits(self, raw: Tensor) -> Tensor:
        """As `split`, with logits where the network gives probabilities of objectness and classes."""
        return self.split(raw)

    def objectness_logits(self, raw: Tensor) -> Tensor:
        """``(B, N)`` of a raw head."""
        return self.logits(raw)[..., self.box_values].flatten(1)

    def class_logits(self, raw: Tensor) -> Tensor:
        """``(B, N, C)`` of a raw head."""
        return self.logits(raw)[..., self.class_start :].flatten(1, 3)

    def cells(self, predictions: Tensor) -> Tensor:
        """``(H, W, 2)``: column and row of each cell of ``predictions (B, A, H, W, V)``, in their dtype."""
        _, _, height, width, _ = predictions.shape
        columns, rows = (torch.arange(n, device=predictions.device, dtype=predictions.dtype) for n in (width, height))
        row, column = torch.meshgrid(rows, columns, indexing="ij")
        return torch.stack((column, row), dim=-1)

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

    @classmethod
    def terms_of_all(
        cls, raws: Sequence[Tensor], heads: Sequence[Head], truth: Truth, reduce: Reduce
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The terms of all of a network's heads of this kind: sums of `loss_terms`, unless they are matched jointly.

        Args:
            raws: What they read, each as of `loss_terms`.
            heads: The heads.
            truth: The batch's objects.
            reduce: What sums predictions.
        """
        box = objectness = classes = raws[0].new_zeros(())
        for raw, head in zip(raws, heads, strict=True):
            terms = head.loss_terms(raw, truth, reduce)
            box, objectness, classes = box + terms[0], objectness + terms[1], classes + terms[2]
        return box, objectness, classes

    @staticmethod
    def places(truth: Truth, predictions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Where the objects lie on the map of ``predictions (B, A, H, W, V)``.

        Returns:
            Their centres ``(T, 2)`` in cells, x and y, and the row and the column ``(T,)`` int64 of the cell of each.
        """
        _, _, rows, columns, _ = predictions.shape
        position = truth.targets[:, 2:4] * truth.targets.new_tensor([columns, rows])
        return position, position[:, 1].long().clamp(0, rows - 1), position[:, 0].long().clamp(0, columns - 1)

    def set_prior(self, weight: Tensor, bias: Tensor, first: int) -> None:
        """Start a convolution of `prior_layers` at a low prior of objects and classes, in place.

        Args:
            weight: ``(filters, in, size, size)``.
            bias: ``(filters,)``.
            first: Which number of a prediction its first filter gives.

        Reference: Lin et al., Focal Loss for Dense Object Detection, 2017, section 4.1.
        """
        with torch.no_grad():
            weight.mul_(0.1)
            per_anchor = bias.view(len(self.anchor_indices), -1)
            per_anchor[:, self.box_values] = -4.0
            per_anchor[:, self.box_values + 1 :] = -2.0


def focal_weight(probability: Tensor) -> Tensor:
    """Weight of the class term under ``focal_loss=1``, a constant to the gradient.

    With it the gradient of the cross-entropy is Darknet's: that of 0.5 times the focal loss for the right class, and as
    much less for the others.

    Args:
        probability: Of the right class, ``(P,)`` in [0, 1].

    Returns:
        ``(P,)``.

    Reference: Lin et al., Focal Loss for Dense Object Detection, 2017, equation 4 with gamma 2.
    """
    p = probability.detach().clamp(min=1e-15)
    return -0.5 * (1 - p) * (2 * p * p.log() + p - 1)
