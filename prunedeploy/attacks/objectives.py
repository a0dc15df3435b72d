"""What an attack drives up: functions of a network's heads and of an image's objects to one number per image.

Terms of the training loss (L_box, L_obj, L_cls as in `prunedeploy.models.loss`, sums over an image's predictions)::

    total       L_box + L_obj + L_cls, which the paper attacks
    box         L_box
    objectness  L_obj
    classes     L_cls
    class-wise  mean over the classes c that an image has, of the mean over objects of c of L_box + L_cls
                (after Chen, Kung and Chen, Class-Aware Robust Adversarial Training, CVPR 2021, equation 9)

TOG's (Chow et al., Adversarial Objectness Gradient Attacks in Real-time Object Detection Systems, TPS 2020, section
III). Its targets are the detections of the clean image, O, with scores above `TOG_SCORE`::

    untargeted            L(O), all terms
    vanish                - L_obj(no objects)
    fabricate             - sum over all predictions of the cross-entropy of their objectness with 1
    mislabel-most         - L(O with the class of each replaced by its most likely other one)
    mislabel-least        - L(O with the class of each replaced by its least likely one)

Ours, which aims at average precision itself::

    rank        sum over objects g of  max_{p matches nothing of g's class} log s_p  -  max_{p matches g} log s_p

where s_p is the score of prediction p for g's class, a prediction matches an object it overlaps by an IoU of at least
`MATCH_IOU`, and an object none of whose matches scores above `LOST_SCORE` counts as lost: -log `LOST_SCORE`, which is
more than any object that is still found. Where a wrong prediction outranks the right one, precision falls.

Ours, which aim at time: how many pairs of box and class suppression has to look at::

    flood       sum over predictions p and classes c of  s_pc^2 / (s_pc^2 + t^2) (1 - A_p / 2),  t = `FLOOD_SCORE`
    flood-low   the same with t = `LOW_FLOOD_SCORE`

where s_pc is p's score for c and A_p the part of the image that p's box covers, at most 1. The quotient counts smoothly
what is above t, and its gradient by log s_pc is largest at t: what is far below or above is left alone. Small boxes
count more, since they do not suppress one another. After Wang et al., Daedalus: Breaking Non-Maximum Suppression in
Object Detection, IEEE Transactions on Cybernetics 2022 (small boxes); Shapira et al., Phantom Sponges: Exploiting
Non-Maximum Suppression to Attack Deep Object Detectors, WACV 2023 (scores up to the threshold, no further); and Chen et
al., Overload: Latency Attacks on Object Detection for Edge Devices, CVPR 2024 (that scores alone do it).

``A + B`` is the sum of two. Every objective is a sum over one image's own predictions and objects: in a batch, an
image's gradient is its own.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from prunedeploy.models.boxes import best_iou, cxcywh_to_xyxy
from prunedeploy.models.darknet_cfg import DarknetCfg
from prunedeploy.models.loss import image_terms, target_terms
from prunedeploy_engines.detection.nms import detections_from
from prunedeploy_engines.errors import ConfigError

Objective = Callable[[list[Tensor]], Tensor]
"""``objective(heads) -> (B,)``, bound to the objects of a batch; an attack maximises it."""

MATCH_IOU = 0.5
LOST_SCORE = 0.001
TOG_SCORE, TOG_IOU = 0.5, 0.45
FLOOD_SCORE, LOW_FLOOD_SCORE = 0.25, 0.001
"""About where detectors are deployed, and where mAP is measured."""

CleanHeads = Callable[[], list[Tensor]]
Maker = Callable[[CleanHeads, Tensor, DarknetCfg], Objective]

_FAR = 1e9
NEVER = -1e4
"""Stands for the log score of a prediction that is not there; finite, so that a gradient beside it is too."""


def objective_for(name: str, clean_heads: CleanHeads, targets: Tensor, cfg: DarknetCfg) -> Objective:
    """Bind an objective to a batch.

    Args:
        name: One of `OBJECTIVES`, or several joined by ``+``.
        clean_heads: Gives the heads of the clean images, each ``(B, A * V, H, W)``; called by TOG's objectives
            alone, which take their targets from them.
        targets: Ground truth ``(T, 6)`` as `yolo_loss` takes it.
        cfg: The network's cfg.

    Raises:
        ConfigError: No such objective; the nearest is named.
    """
    parts = [OBJECTIVES[part](clean_heads, targets, cfg) for part in objective_parts(name)]
    return parts[0] if len(parts) == 1 else lambda heads: torch.stack([part(heads) for part in parts]).sum(0)


def objective_parts(name: str) -> list[str]:
    """The single objectives of ``A + B``.

    Raises:
        ConfigError: One of them is unknown; the nearest is named.
    """
    parts = [part.strip() for part in name.split("+")]
    for part in parts:
        if part not in OBJECTIVES:
            nearest = difflib.get_close_matches(part, OBJECTIVES, 1, 0.0)[0]
            raise ConfigError(
                f"there is no objective {part!r}; the nearest is {nearest}",
                "attack.objective",
                f"choose from {', '.join(OBJECTIVES)}, or a sum of them",
            )
    return parts


def may_be_flat(name: str) -> bool:
    """Whether an objective has nothing left to gain where it has reached its highest value: all objects are lost."""
    return "rank" in objective_parts(name)


def _total(_: CleanHeads, targets: Tensor, cfg: DarknetCfg) -> Objective:
    return lambda heads: image_terms(heads, targets, cfg).total


def _box(_: CleanHeads, targets: Tensor, cfg: DarknetCfg) -> Objective:
    return lambda heads: image_terms(heads, targets, cfg).box


def _objectness(_: CleanHeads, targets: Tensor, cfg: DarknetCfg) -> Objective:
    return lambda heads: image_terms(heads, targets, cfg).objectness


def _classes(_: CleanHeads, targets: Tensor, cfg: DarknetCfg) -> Objective:
    return lambda heads: image_terms(heads, targets, cfg).classes


def _class_wise(_: CleanHeads, targets: Tensor, cfg: DarknetCfg) -> Objective:
    image, class_id = targets[:, 0].long(), targets[:, 1].long()
    same_image = image[:, None] == image
    alike = (same_image & (class_id[:, None] == class_id)).sum(1)  # (T,), objects of that class in that image
    weight = 1 / alike.to(targets.dtype)
    classes = same_image.to(targets.dtype) @ weight  # (T,), classes in that image: each adds 1
    weight = weight / classes

    def value(heads: list[Tensor]) -> Tensor:
        box, class_terms = target_terms(heads, targets, cfg)
        return box.new_zeros(len(heads[0])).index_add(0, image, (box + class_terms) * weight)

    return value


def _vanish(_: CleanHeads, targets: Tensor, cfg: DarknetCfg) -> Objective:
    return lambda heads: -image_terms(heads, targets[:0], cfg).objectness


def _fabricate(_: CleanHeads, targets: Tensor, cfg: DarknetCfg) -> Objective:
    def value(heads: list[Tensor]) -> Tensor:
        logits = [head.objectness_logits(raw) for raw, head in zip(heads, cfg.heads, strict=True)]
        return F.logsigmoid(torch.cat(logits, dim=1)).sum(1)

    return value


def _untargeted(clean_heads: CleanHeads, _: Tensor, cfg: DarknetCfg) -> Objective:
    found, _probabilities = _detections(clean_heads(), cfg)
    return lambda heads: image_terms(heads, found, cfg).total


def _mislabel(most: bool) -> Maker:
    def make(clean_heads: CleanHeads, _: Tensor, cfg: DarknetCfg) -> Objective:
        found, probabilities = _detections(clean_heads(), cfg)
        if cfg.classes == 1:
            raise ConfigError(
                "a network with one class cannot mislabel", "attack.objective", "choose another objective"
            )
        others = probabilities.scatter(1, found[:, 1:2].long(), -1.0 if most else 2.0)
        wrong = others.argmax(1) if most else others.argmin(1)
        relabelled = torch.cat((found[:, :1], wrong[:, None].to(found.dtype), found[:, 2:]), dim=1)
        return lambda heads: -image_terms(heads, relabelled, cfg).total

    return make


def _detections(heads: list[Tensor], cfg: DarknetCfg) -> tuple[Tensor, Tensor]:
    """Detections as targets ``(T, 6)``, and the class probabilities of each, ``(T, C)``."""
    with torch.no_grad():
        boxes, log_scores, probabilities = predictions_of(heads, cfg)
        boxes = boxes.nan_to_num(nan=_FAR, posinf=_FAR, neginf=-_FAR)
    height, width = cfg.input_size
    targets, found_probabilities = [boxes.new_zeros((0, 6))], [boxes.new_zeros((0, cfg.classes))]
    for image in range(len(boxes)):
        found_boxes, _, class_ids = detections_from(
            boxes[image].float().cpu().numpy(),
            log_scores[image].exp().float().cpu().numpy(),
            score_threshold=TOG_SCORE,
            iou_threshold=TOG_IOU,
        )
        corners = boxes.new_tensor(found_boxes).view(-1, 4) / boxes.new_tensor([width, height, width, height])
        classes = torch.as_tensor(class_ids, device=boxes.device).to(boxes.dtype)[:, None]
        centres = torch.cat(((corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]), dim=1)
        targets.append(torch.cat((torch.full_like(classes, image), classes, centres), dim=1))
        # The prediction that a detection came from is the one with its very box.
        nearest = torch.cdist(boxes.new_tensor(found_boxes).view(-1, 4), boxes[image]).argmin(1)
        found_probabilities.append(probabilities[image, nearest])
    return torch.cat(targets), torch.cat(found_probabilities)


def predictions_of(heads: list[Tensor], cfg: DarknetCfg) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes ``(B, N, 4)`` as corners in input pixels, log scores ``(B, N, C)`` and class probabilities, likewise."""
    pairs = list(zip(heads, cfg.heads, strict=True))
    boxes = torch.cat([head.boxes_xyxy(raw, cfg.input_size) for raw, head in pairs], dim=1)
    log_scores = torch.cat([head.log_scores(raw) for raw, head in pairs], dim=1)
    return boxes, log_scores, torch.cat([head.class_probabilities(raw) for raw, head in pairs], dim=1)


def _rank(_: CleanHeads, targets: Tensor, cfg: DarknetCfg) -> Objective:
    height, width = cfg.input_size
    image, class_id = targets[:, 0].long(), targets[:, 1].long()
    truth = cxcywh_to_xyxy(targets[:, 2:] * targets.new_tensor([width, height, width, height]))
    same_class = (image[:, None] == image) & (class_id[:, None] == class_id)  # (T, T)
    lost_at = math.log(LOST_SCORE)

    def value(heads: list[Tensor]) -> Tensor:
        boxes, log_scores, _ = predictions_of(heads, cfg)
        with torch.no_grad():
            matches = best_iou(boxes[image], truth[:, None]) >= MATCH_IOU  # (T, N), each with one object
            # A prediction matches nothing of the class if it matches no object of that class in that image.
            of_class = (same_class.to(torch.float32) @ matches.to(torch.float32)) > 0
        scores = log_scores[image, :, class_id]  # (T, N)
        right = scores.masked_fill(~matches, NEVER).amax(1)
        wrong = scores.masked_fill(of_class, NEVER).amax(1)
        margin = torch.where(right > lost_at, wrong - right, -lost_at)
        return margin.new_zeros(len(heads[0])).index_add(0, image, margin)

    return value


def _flood(threshold: float) -> Maker:
    def make(_: CleanHeads, __: Tensor, cfg: DarknetCfg) -> Objective:
        height, width = cfg.input_size

        def value(heads: list[Tensor]) -> Tensor:
            boxes, log_scores, _ = predictions_of(heads, cfg)
            sides = boxes[..., 2:] - boxes[..., :2]  # (B, N, 2)
            covered = (sides[..., 0] * sides[..., 1] / (height * width)).clamp(0, 1)
            # s^2 / (s^2 + t^2) = sigmoid(2 (log s - log t)), which no score underflows in.
            counted = torch.sigmoid(2 * (log_scores - math.log(threshold))).sum(2)
            return (counted * (1 - covered / 2)).sum(1)

        return value

    return make


OBJECTIVES: dict[str, Maker] = {
    "total": _total,
    "box": _box,
    "objectness": _objectness,
    "classes": _classes,
    "class-wise": _class_wise,
    "rank": _rank,
    "untargeted": _untargeted,
    "vanish": _vanish,
    "fabricate": _fabricate,
    "mislabel-most": _mislabel(most=True),
    "mislabel-least": _mislabel(most=False),
    "flood": _flood(FLOOD_SCORE),
    "flood-low": _flood(LOW_FLOOD_SCORE),
}
