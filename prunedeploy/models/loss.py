"""The detection loss, batched over images, boxes and anchors.

Each head has its own terms. Those of a yolo section, and what they are taken of, follow Darknet's
``forward_yolo_layer`` and Redmon and Farhadi, YOLOv3, 2018, section 2: every box belongs to the anchor of the whole
network whose shape fits best (and, with ``iou_thresh`` below 1, to every other anchor that fits better than that), in
the cell of its centre; objectness is pushed to 1 there, and to 0 everywhere else but where the prediction overlaps a
box by more than ``ignore_thresh``. ``iou_loss=mse`` is Darknet's original box term, ``giou`` that of Rezatofighi et
al., Generalized Intersection over Union, 2019, ``diou`` and ``ciou`` those of Zheng et al., Distance-IoU Loss, 2020,
equations 7 and 10. Where this is not Darknet's own training, on purpose:

- objectness and classes have a cross-entropy under ``new_coords`` too, where Darknet has half the squared error of the
  probabilities, whose gradient vanishes at the surest mistakes;
- with ``objectness_smooth`` the prediction of a box is pushed to 1 until it overlaps by ``ignore_thresh``, where
  Darknet pushes it to 0, and from then on to its overlap, as Darknet does;
- which predictions are not counted is a matter of overlap alone; Darknet also asks for a class probability of 0.25;
- boxes that share a prediction all count, where Darknet takes means or the last one.

A ``Gaussian_yolo`` section has the same, but for the box term: the likelihood of Choi et al., Gaussian YOLOv3, 2019,
equations 5 to 7, with Darknet's constants. A ``region`` section has ``forward_region_layer``'s: every box belongs to
one anchor (the best shape with ``bias_match``, otherwise the best prediction) in the cell of its centre; box and
objectness have half the squared error of what is decoded, classes the cross-entropy of their softmax. Darknet's
warm-up, in which for 12,800 images every prediction is drawn to its anchor, is left out.

All ``dfl`` sections of a network have one loss, that of `anchor_free_loss`: its terms of boxes and of their
distributions are the box term here, and its background is the objectness term. All ``yolox`` sections have that of
`yolox_loss`.

Every term is a sum over one image's predictions. `yolo_loss` is the mean over images; `yolo_losses` and `image_terms`
give them one by one, and the gradient of their sum is each image's own, whatever else is in the batch, as an attack
needs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prunedeploy.models.boxes import cxcywh_to_xyxy
from prunedeploy.models.darknet_cfg import DarknetCfg
from prunedeploy.models.reduction import Reduce, sums_by_image
from prunedeploy.models.sections.head import Truth


@dataclass(frozen=True)
class LossTerms:
    """The detection loss and its parts, sums over predictions: of each image ``(B,)``, or their mean ``()``."""

    box: Tensor
    objectness: Tensor
    classes: Tensor

    @property
    def total(self) -> Tensor:
        """What is minimised, and what an attack maximises."""
        return self.box + self.objectness + self.classes


def yolo_loss(heads: list[Tensor], targets: Tensor, cfg: DarknetCfg) -> LossTerms:
    """Detection loss of raw heads against ground truth, mean over images.

    Args:
        heads: Raw heads in cfg order, each ``(B, A * V, H, W)``.
        targets: ``(T, 6)`` float: image index in the batch, class index, then centre x, centre y, width and
            height normalised to [0, 1] by the input size. T may be 0.
        cfg: The network's cfg.

    Raises:
        ValueError: A shape does not fit; both shapes are printed.
    """
    box, objectness, classes = _terms(heads, targets, cfg, lambda values, *_: values.sum())
    batch = heads[0].shape[0]
    return LossTerms(box / batch, objectness / batch, classes / batch)


def yolo_losses(heads: list[Tensor], targets: Tensor, cfg: DarknetCfg) -> Tensor:
    """Detection loss of every image of a batch by itself: `image_terms`, summed to ``(B,)``."""
    return image_terms(heads, targets, cfg).total


def image_terms(heads: list[Tensor], targets: Tensor, cfg: DarknetCfg) -> LossTerms:
    """The terms of the detection loss, of every image of a batch by itself.

    Args:
        heads: As `yolo_loss` takes them.
        targets: Likewise, ``(T, 6)``.
        cfg: The network's cfg.

    Returns:
        Terms of shape ``(B,)``.

    Raises:
        ValueError: A shape does not fit; both shapes are printed.
    """
    return LossTerms(*_terms(heads, targets, cfg, sums_by_image(heads[0].shape[0])))


def target_terms(heads: list[Tensor], targets: Tensor, cfg: DarknetCfg) -> tuple[Tensor, Tensor]:
    """Box and class terms of every target by itself, each ``(T,)``; arguments and errors of `yolo_loss`."""

    def per_target(values: Tensor, _: Tensor, target: Tensor | None) -> Tensor:
        if target is None:  # objectness belongs to no target
            return values.new_zeros(len(targets))
        return values.new_zeros(len(targets)).index_add(0, target, values.flatten(1).sum(1))

    box, _, classes = _terms(heads, targets, cfg, per_target)
    return box, classes


def _terms(heads: list[Tensor], targets: Tensor, cfg: DarknetCfg, reduce: Reduce) -> tuple[Tensor, Tensor, Tensor]:
    """Box, objectness and class terms over all heads."""
    if targets.ndim != 2 or targets.shape[1] != 6:
        raise ValueError(f"expected targets (T, 6), got {tuple(targets.shape)}")
    if len(heads) != len(cfg.heads):
        raise ValueError(f"expected {len(cfg.heads)} heads, got {len(heads)}")
    height, width = cfg.input_size
    boxes = targets[:, 2:] * targets.new_tensor([width, height, width, height])
    image = targets[:, 0].long()
    truth = Truth(targets, image, boxes, _pad_per_image(boxes, image, heads[0].shape[0]), cfg.input_size)
    box = objectness = classes = heads[0].new_zeros(())
    raws = [raw if raw.dtype == torch.float64 else raw.float() for raw in heads]
    for kind in dict.fromkeys(type(head) for head in cfg.heads):
        own = [at for at, head in enumerate(cfg.heads) if type(head) is kind]
        terms = kind.terms_of_all([raws[at] for at in own], [cfg.heads[at] for at in own], truth, reduce)
        box, objectness, classes = box + terms[0], objectness + terms[1], classes + terms[2]
    return box, objectness, classes


def _pad_per_image(boxes_cxcywh: Tensor, image: Tensor, batch: int) -> Tensor:
    """Boxes as ``(B, most boxes of one image, 4)`` xyxy; unused places hold empty boxes far outside."""
    counts = torch.bincount(image, minlength=batch)
    most = int(counts.max()) if len(image) else 0
    padded = boxes_cxcywh.new_full((batch, most, 4), -1e4)
    if most:
        order = torch.argsort(image, stable=True)
        starts = counts.cumsum(0) - counts
        place = torch.arange(len(image), device=image.device) - starts[image[order]]
        padded[image[order], place] = cxcywh_to_xyxy(boxes_cxcywh[order])
    return padded
