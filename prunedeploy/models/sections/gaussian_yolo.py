"""Section ``Gaussian_yolo``: a yolo head that says how sure it is of each number of a box.

Per anchor and cell it has the mean and the deviation of x, of y, of the width and of the height, then objectness and
classes. Deviations are logistics; their mean lowers the score.

Reference: Choi, Chun, Kim and Lee, Gaussian YOLOv3: An Accurate and Fast Object Detector Using Localization Uncertainty
for Autonomous Driving, ICCV 2019.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from prunedeploy.models.sections.reading import LayerReader
from prunedeploy.models.sections.yolo import Matched, Yolo

_LEAST_DEVIATION = 1e-4  # keeps the gradient finite where the logistic underflows
_WIDER, _FLOOR = 0.3, 1e-9  # of Darknet: added to the deviation before the density, and to the density


@dataclass(frozen=True)
class GaussianYolo(Yolo):
    """Detection head: ``out_shape[0] == len(anchor_indices) * (9 + classes)``.

    Attributes:
        uc_normalizer: Weight of the gradient that deviations get, as ``iou_normalizer`` is of that of the means.
    """

    box_values: ClassVar[int] = 8
    options: ClassVar[Mapping[str, str]] = {
        **{name: meaning for name, meaning in Yolo.options.items() if name not in ("new_coords", "focal_loss")},
        "uc_normalizer": "training: weight of the deviations' share of the boxes' loss",
        "yolo_point": "which point of a box x and y are: center",
    }
    training_only: ClassVar[frozenset[str]] = frozenset(
        "truth_thresh jitter random nms_kind beta_nms max_delta delta_normalizer resize max".split()
    )

    uc_normalizer: float

    @classmethod
    def settings(cls, reader: LayerReader, classes: int) -> dict[str, Any]:
        """See `Yolo.settings`."""
        point = reader.text("yolo_point", "center")
        if point != "center":
            what = f"yolo_point={point} is not supported: x and y must be those of the centre"
            raise reader.error(what, "yolo_point", "use a network with yolo_point=center")
        if reader.flag("objectness_smooth"):
            what = "objectness_smooth=1 of [Gaussian_yolo] is not supported: Darknet means something else by it here"
            raise reader.error(what, "objectness_smooth", "set objectness_smooth=0")
        return super().settings(reader, classes) | {"uc_normalizer": reader.number("uc_normalizer", 1.0)}

    def decode_boxes(self, predictions: Tensor, input_size: tuple[int, int]) -> Tensor:
        """See `Head.decode_boxes`: those of the means."""
        return super().decode_boxes(predictions[..., 0:8:2], input_size)

    def scores(self, raw: Tensor) -> Tensor:
        """See `Head.scores`: objectness times class probability times 1 - mean deviation."""
        certainty = 1 - torch.sigmoid(self.split(raw)[..., 1:8:2]).mean(-1, keepdim=True)
        return super().scores(raw) * certainty.flatten(1, 3)

    def log_scores(self, raw: Tensor) -> Tensor:
        """See `Head.log_scores`."""
        # 1 - sigmoid(d) = sigmoid(-d), whose logarithm does not underflow
        certainty = F.logsigmoid(-self.split(raw)[..., 1:8:2]).logsumexp(-1, keepdim=True) - math.log(4)
        return super().log_scores(raw) + certainty.flatten(1, 3)

    def box_terms(self, matched: Matched) -> Tensor:
        """See `Yolo.box_terms`: with ``iou_loss=mse`` the `_unlikeliness` of the means, else that overlap of theirs."""
        if self.iou_loss == "mse":
            means, deviations = self._box(matched)
            return self._unlikeliness(matched, means, deviations.detach())
        return super().box_terms(replace(matched, predictions=matched.predictions[:, 0:8:2]))

    def uncertainty_terms(self, matched: Matched) -> Tensor:
        """See `Yolo.uncertainty_terms`: the `_unlikeliness` of the deviations.

        As in Darknet, ``iou_normalizer`` weighs the gradient of the means and ``uc_normalizer`` that of the deviations,
        so either is a constant to the other. Where both are of one value, that counts once.
        """
        means, deviations = self._box(matched)
        terms = self._unlikeliness(matched, means.detach(), deviations) * self.uc_normalizer
        return terms - terms.detach() if self.iou_loss == "mse" else terms

    def _box(self, matched: Matched) -> tuple[Tensor, Tensor]:
        """Means of x and y in a cell and of the logarithms of width and height in anchors, and the deviations."""
        means = matched.predictions[:, 0:8:2]
        deviations = torch.sigmoid(matched.predictions[:, 1:8:2]).clamp(min=_LEAST_DEVIATION)
        return torch.cat((self.offsets(means), means[:, 2:]), dim=1), deviations

    @staticmethod
    def _unlikeliness(matched: Matched, means: Tensor, deviations: Tensor) -> Tensor:
        """Minus the logarithm of the object's likelihood, halved, of x, y, width and height: ``(P, 4)``.

        Reference: Choi et al. 2019, equations 5 to 7.
        """
        wanted = torch.cat((matched.offsets, (matched.boxes[:, 2:] / matched.anchors).log()), dim=1)
        density = torch.exp(-(((wanted - means) / deviations) ** 2) / 2)
        density = density / (math.sqrt(2 * math.pi) * (deviations + _WIDER))
        return -torch.log(density + _FLOOR) / 2 * matched.weight
