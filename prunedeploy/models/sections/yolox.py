"""Section ``yolox``: a head without anchors, with objectness, whose sizes are exponentials. Darknet has none such.

Reference: Ge et al., YOLOX: Exceeding YOLO Series in 2021, sections 2.1 and 2.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from prunedeploy.models.reduction import Reduce
from prunedeploy.models.sections.anchor_free import AnchorFree
from prunedeploy.models.sections.head import Head, Truth
from prunedeploy.models.yolox_loss import yolox_terms


@dataclass(frozen=True)
class Yolox(AnchorFree):
    """Detection head: ``out_shape[0] == 5 + classes``: x, y, w, h, objectness, classes."""

    def decode_boxes(self, predictions: Tensor, input_size: tuple[int, int]) -> Tensor:
        """See `Head.decode_boxes`: bx = cx + tx and bw = exp(tw), in cells."""
        centre = self.cells(predictions) + predictions[..., :2]
        return torch.cat((centre, torch.exp(predictions[..., 2:4])), dim=-1) * self.stride(
            predictions, input_size
        ).repeat(2)

    def scores(self, raw: Tensor) -> Tensor:
        """See `Head.scores`."""
        return torch.sigmoid(self.objectness_logits(raw))[..., None] * self.class_probabilities(raw)

    def log_scores(self, raw: Tensor) -> Tensor:
        """See `Head.log_scores`."""
        return F.logsigmoid(self.objectness_logits(raw))[..., None] + F.logsigmoid(self.class_logits(raw))

    def class_probabilities(self, raw: Tensor) -> Tensor:
        """See `Head.class_probabilities`."""
        return torch.sigmoid(self.class_logits(raw))

    @classmethod
    def terms_of_all(
        cls, raws: Sequence[Tensor], heads: Sequence[Head], truth: Truth, reduce: Reduce
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `Head.terms_of_all`: objects choose among the cells of all heads, see `yolox_loss`."""
        strides = [truth.input_size[0] / raw.shape[2] for raw in raws]
        return yolox_terms(raws, strides, truth.targets, reduce=reduce)
