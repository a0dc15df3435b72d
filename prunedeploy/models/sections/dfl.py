"""Section ``dfl``: a head whose boxes are distributions over distances, without anchors and without objectness.

Per cell it has 16 logits for each of the four sides of a box, then the logits of the classes. Darknet has no such
section. It is what YOLOv8, YOLO11 and YOLOv5u end in.

Reference: Li et al., Generalized Focal Loss, NeurIPS 2020, section 3.2, equations 5 and 6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from prunedeploy.models.anchor_free_loss import BINS, anchor_free_terms
from prunedeploy.models.reduction import Reduce
from prunedeploy.models.sections.anchor_free import AnchorFree
from prunedeploy.models.sections.head import Head, Truth
from prunedeploy.models.sections.layer import Layer


@dataclass(frozen=True)
class Dfl(AnchorFree):
    """Detection head: ``out_shape[0] == 4 * BINS + classes``; the sides are left, top, right, bottom.

    A side's distribution is over distances of 0, 1, ... `BINS` - 1 cells.
    """

    box_values: ClassVar[int] = 4 * BINS
    has_objectness: ClassVar[bool] = False

    def prior_layers(self, layers: Sequence[Layer]) -> Sequence[tuple[Layer | None, int]]:
        """See `Head.prior_layers`: that of the classes; distributions start as they are."""
        return super().prior_layers(layers)[-1:]

    def decode_boxes(self, predictions: Tensor, input_size: tuple[int, int]) -> Tensor:
        """See `Head.decode_boxes`: a side is as far from the cell's middle as its distribution's mean, in cells."""
        logits = predictions[..., : self.box_values].unflatten(-1, (4, BINS))  # (B, 1, H, W, 4, BINS)
        bins = torch.arange(BINS, device=logits.device, dtype=logits.dtype)
        low, high = (torch.softmax(logits, dim=-1) * bins).sum(-1).chunk(2, dim=-1)  # (B, 1, H, W, 2) each
        centre = self.cells(predictions) + 0.5 + (high - low) / 2
        return torch.cat((centre, low + high), dim=-1) * self.stride(predictions, input_size).repeat(2)

    def objectness_logits(self, raw: Tensor) -> Tensor:
        """``(B, N)`` of a raw head: the logit of the likeliest class, which stands for an object of any."""
        return self.class_logits(raw).amax(-1)

    def scores(self, raw: Tensor) -> Tensor:
        """See `Head.scores`: class probability."""
        return torch.sigmoid(self.class_logits(raw))

    def log_scores(self, raw: Tensor) -> Tensor:
        """See `Head.log_scores`."""
        return F.logsigmoid(self.class_logits(raw))

    def class_probabilities(self, raw: Tensor) -> Tensor:
        """See `Head.class_probabilities`."""
        return self.scores(raw)

    @classmethod
    def terms_of_all(
        cls, raws: Sequence[Tensor], heads: Sequence[Head], truth: Truth, reduce: Reduce
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `Head.terms_of_all`: objects choose among the cells of all heads, see `anchor_free_loss`.

        The second term, objectness elsewhere, is that of the cells without an object.
        """
        strides = [truth.input_size[0] / raw.shape[2] for raw in raws]
        terms = anchor_free_terms(raws, strides, truth.targets, BINS, reduce=reduce)
        return terms.box + terms.dfl, terms.background, terms.classes
