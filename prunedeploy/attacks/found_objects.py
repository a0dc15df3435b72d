"""Which objects of a batch a network finds, as the evaluation counts them, and by what margin."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from prunedeploy.attacks.objectives import MATCH_IOU, NEVER, TOG_IOU, predictions_of
from prunedeploy.models.boxes import best_iou, cxcywh_to_xyxy
from prunedeploy.models.darknet_cfg import DarknetCfg
from prunedeploy.models.decode import decode
from prunedeploy_engines.detection.letterbox import LetterboxGeometry
from prunedeploy_engines.detection.nms import detections_from


@dataclass(frozen=True)
class Counting:
    """What becomes a detection, as in `prunedeploy.evaluation.detecting.Thresholds`.

    Attributes:
        score: Detections have a score greater than this, in (0, 1).
        iou: NMS drops a box whose IoU with a better one of its class is greater, in [0, 1].
        max_detections: Per image, the best by score.
    """

    score: float
    iou: float = TOG_IOU
    max_detections: int = 100


@dataclass(eq=False)
class Objects:
    """The objects of a batch of B images.

    Attributes:
        cfg: Cfg of the network.
        image: ``(T,)`` int64, the image of each object.
        class_id: ``(T,)`` int64.
        corners: ``(T, 4)`` in input pixels.
        frames: ``(B, 4)``, corners of each photo in its input; predictions are clipped to it.
        counting: What becomes a detection.
    """

    cfg: DarknetCfg
    image: Tensor
    class_id: Tensor
    corners: Tensor
    frames: Tensor
    counting: Counting

    @classmethod
    def of(
        cls,
        cfg: DarknetCfg,
        targets: Tensor,
        geometries: Sequence[LetterboxGeometry] | None,
        images: int,
        counting: Counting,
    ) -> Objects:
        """The objects of targets ``(T, 6)`` as `yolo_loss` takes them; without geometries photos fill their inputs."""
        height, width = cfg.input_size
        corners = cxcywh_to_xyxy(targets[:, 2:] * targets.new_tensor([width, height, width, height]))
        frames = [(0, 0, width, height)] * images
        if geometries is not None:
            frames = [
                (g.pad_left, g.pad_top, g.pad_left + g.resized_size[1], g.pad_top + g.resized_size[0])
                for g in geometries
            ]
        image, class_id = targets[:, 0].long(), targets[:, 1].long()
        return cls(cfg, image, class_id, corners, targets.new_tensor(frames), counting)

    def of_images(self, chosen: Tensor) -> Objects:
        """Those of the images ``chosen (B,)`` bool, which are numbered anew."""
        own = chosen[self.image]
        image = (chosen.cumsum(0) - 1)[self.image[own]]
        return Objects(self.cfg, image, self.class_id[own], self.corners[own], self.frames[chosen], self.counting)

    def margins_and_lost(self, heads: list[Tensor], wanted: Tensor) -> tuple[Tensor, Tensor]:
        """By what margin each image keeps the objects ``wanted (T,)`` bool, and whether it has lost one.

        Args:
            heads: Heads of the network, each ``(B, A * V, H, W)``; margins carry their gradients.
            wanted: At least one object of each image.

        Returns:
            ``(B,)``: the least over an image's wanted objects of the log score of the best prediction that matches it,
            less the log threshold. ``(B,)`` bool: one of them is not found.
        """
        image, class_id, corners = self.image[wanted], self.class_id[wanted], self.corners[wanted]
        boxes, log_scores, _ = predictions_of(heads, self.cfg)
        with torch.no_grad():
            matches = best_iou(_clipped(boxes, self.frames)[image], corners[:, None]) >= MATCH_IOU  # (T, N)
            missing = (wanted & ~self.found(heads)).to(torch.int64)
        best = log_scores[image, :, class_id].masked_fill(~matches, NEVER).amax(1)
        margins = best - math.log(self.counting.score)
        count = len(self.frames)
        least = margins.new_zeros(count).scatter_reduce(0, image, margins, "amin", include_self=False)
        return least, missing.new_zeros(count).index_add(0, self.image, missing) > 0

    @torch.no_grad()
    def found(self, heads: list[Tensor]) -> Tensor:
        """Which objects are found, ``(T,)`` bool, by the rule of ``COCOeval.evaluateImg`` at an IoU of `MATCH_IOU`.

        Going by score, a detection finds the object of its class that it overlaps most among those not found yet, of
        equals the last.
        """
        boxes, scores = (one.detach().float().cpu() for one in decode(heads, self))
        image, class_id, corners = self.image.cpu().numpy(), self.class_id.cpu().numpy(), self.corners.cpu().double()
        found = np.zeros(len(image), np.bool_)
        frames = self.frames.cpu().double()
        for number in np.unique(image):
            own = np.flatnonzero(image == number)
            detected, _, classes = detections_from(
                boxes[number].numpy(),
                scores[number].numpy(),
                score_threshold=self.counting.score,
                iou_threshold=self.counting.iou,
                max_detections=self.counting.max_detections,
            )
            clipped = _clipped(torch.from_numpy(detected).double()[None], frames[number, None])
            iou = best_iou(clipped.expand(len(own), -1, -1), corners[own, None]).numpy()  # (objects, detections)
            iou = np.where(class_id[own][:, None] == classes, iou, 0.0)
            for detection in np.flatnonzero((iou >= MATCH_IOU).any(0)):
                overlap = np.where(found[own], 0.0, iou[:, detection])
                if overlap.max() >= MATCH_IOU:
                    found[own[np.flatnonzero(overlap == overlap.max())[-1]]] = True
        return torch.from_numpy(found).to(self.image.device)


def _clipped(boxes: Tensor, frames: Tensor) -> Tensor:
    """Boxes ``(B, N, 4)`` clipped to their images' frames, ``(B, 4)``."""
    low, high = frames[:, None, :2].repeat(1, 1, 2), frames[:, None, 2:].repeat(1, 1, 2)
    return torch.minimum(torch.maximum(boxes, low), high)
