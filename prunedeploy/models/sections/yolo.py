"""Section ``yolo``: the head of YOLOv3 and YOLOv4, with independent logistics for objectness and classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from prunedeploy.models.boxes import best_iou, complete_iou, cxcywh_to_xyxy
from prunedeploy.models.sections.head import Head, Reduce, Truth
from prunedeploy.models.sections.reading import LayerReader

# exp(8) anchors is far beyond any image and exp(-16) far below a pixel; keeps CIoU finite for wild predictions.
_MIN_LOG_SIZE, _MAX_LOG_SIZE = -16.0, 8.0


@dataclass(frozen=True)
class Yolo(Head):
    """Detection head: ``out_shape[0] == len(anchor_indices) * (5 + classes)``.

    Attributes:
        ignore_thresh: No objectness loss where an unassigned prediction overlaps a box by more (IoU).
        iou_thresh: Anchors whose shape overlaps a box by more (IoU) are assigned to it beside the best one.
        iou_loss: Box term, ``mse`` (YOLOv3) or ``ciou``.
        iou_normalizer: Weight of the box term; ``obj_normalizer`` and ``cls_normalizer`` of the other two.
        scale_x_y: Stretch of the centre's logistic around 0.5 (YOLOv4); 1 is YOLOv3.
    """

    options: ClassVar[frozenset[str]] = frozenset(
        "mask anchors classes num ignore_thresh iou_thresh iou_loss iou_normalizer obj_normalizer cls_normalizer "
        "scale_x_y".split()
    )
    training_only: ClassVar[frozenset[str]] = frozenset(
        "truth_thresh jitter random nms_kind beta_nms max_delta resize max objectness_smooth counters_per_class".split()
    )

    ignore_thresh: float
    iou_thresh: float
    iou_loss: str
    iou_normalizer: float
    obj_normalizer: float
    cls_normalizer: float
    scale_x_y: float

    @classmethod
    def read(cls, reader: LayerReader) -> Yolo:
        """See `Layer.read`."""
        values = reader.numbers("anchors")
        anchors = tuple(zip(values[0::2], values[1::2], strict=False))
        if len(values) % 2 or not anchors or min(values) <= 0:
            raise reader.error("anchors= needs positive width,height pairs", "anchors")
        classes = reader.integer("classes", 20)
        num = reader.integer("num", len(anchors))
        if num != len(anchors):
            raise reader.error(f"num={num}, but there are {len(anchors)} anchors", "num")
        mask = tuple(reader.whole_numbers("mask")) if "mask" in reader.section.options else tuple(range(num))
        if not mask or any(not 0 <= index < num for index in mask):
            raise reader.error(f"mask= names an anchor outside 0 to {num - 1}", "mask")
        head = cls(
            *reader.wiring(reader.shape),
            mask,
            anchors,
            classes,
            ignore_thresh=reader.number("ignore_thresh", 0.5),
            iou_thresh=reader.number("iou_thresh", 1.0),
            iou_loss=reader.choice("iou_loss", "mse", ("mse", "ciou")),
            iou_normalizer=reader.number("iou_normalizer", 1.0),
            obj_normalizer=reader.number("obj_normalizer", 1.0),
            cls_normalizer=reader.number("cls_normalizer", 1.0),
            scale_x_y=reader.number("scale_x_y", 1.0),
        )
        expected = head.channels_for(classes)
        if reader.shape[0] != expected:
            raise reader.error(
                f"reads {reader.shape[0]} channels, but {len(mask)} anchors and {classes} classes need {expected}",
                fix=f"set filters={expected} in the convolution before it",
            )
        return head

    def decode_boxes(self, predictions: Tensor, input_size: tuple[int, int]) -> Tensor:
        """See `Head.decode_boxes`: bx = (sigmoid(tx) + cx) / W and bw = pw * exp(tw), in pixels of the input.

        Reference: Redmon and Farhadi, YOLOv3, 2018, section 2.1.
        """
        _, _, height, width, _ = predictions.shape
        device, dtype = predictions.device, predictions.dtype
        cell_y, cell_x = torch.meshgrid(
            torch.arange(height, device=device, dtype=dtype),
            torch.arange(width, device=device, dtype=dtype),
            indexing="ij",
        )
        anchors = torch.tensor(self.head_anchors_wh, device=device, dtype=dtype).view(1, -1, 1, 1, 2)
        stretch = self.scale_x_y
        centre = torch.sigmoid(predictions[..., :2]) * stretch - (stretch - 1) / 2
        stride = torch.tensor([input_size[1] / width, input_size[0] / height], device=device, dtype=dtype)
        centre = (centre + torch.stack((cell_x, cell_y), dim=-1)) * stride
        return torch.cat((centre, anchors * torch.exp(predictions[..., 2:4])), dim=-1)

    def scores(self, raw: Tensor) -> Tensor:
        """See `Head.scores`."""
        probabilities = torch.sigmoid(self.split(raw)[..., 4:])
        return (probabilities[..., :1] * probabilities[..., 1:]).flatten(1, 3)

    def log_scores(self, raw: Tensor) -> Tensor:
        """See `Head.log_scores`."""
        logs = F.logsigmoid(self.split(raw)[..., 4:])
        return (logs[..., :1] + logs[..., 1:]).flatten(1, 3)

    def class_probabilities(self, raw: Tensor) -> Tensor:
        """See `Head.class_probabilities`."""
        return torch.sigmoid(self.split(raw)[..., 5:]).flatten(1, 3)

    def loss_terms(self, raw: Tensor, truth: Truth, reduce: Reduce) -> tuple[Tensor, Tensor, Tensor]:
        """See `Head.loss_terms`; assignment and terms are described in `prunedeploy.models.loss`."""
        predictions = self.split(raw)
        batch, _, rows, columns, _ = predictions.shape
        height, width = truth.input_size
        targets = truth.targets
        target_index, anchor = self._matches(truth.boxes_cxcywh[:, 2:]).nonzero(as_tuple=True)  # (P,) each
        image_index = truth.image[target_index]
        position = targets[target_index, 2:4] * targets.new_tensor([columns, rows])
        column = position[:, 0].long().clamp(0, columns - 1)
        row = position[:, 1].long().clamp(0, rows - 1)
        cell = (image_index, anchor, row, column)

        objectness_logits = predictions[..., 4]
        wanted = torch.zeros_like(objectness_logits)
        wanted[cell] = 1.0
        with torch.no_grad():
            predicted = cxcywh_to_xyxy(self.decode_boxes(predictions, truth.input_size)).flatten(1, 3)
            overlap = best_iou(predicted, truth.padded_xyxy).view_as(wanted)
            counted = (overlap <= self.ignore_thresh) | wanted.bool()
        objectness = F.binary_cross_entropy_with_logits(objectness_logits, wanted, reduction="none")
        every_image = torch.arange(batch, device=truth.image.device)
        objectness = reduce(objectness * counted, every_image, None) * self.obj_normalizer

        chosen = predictions[cell]  # (P, 5 + C)
        labels = F.one_hot(targets[target_index, 1].long(), self.classes).to(chosen.dtype)
        classes = F.binary_cross_entropy_with_logits(chosen[:, 5:], labels, reduction="none")
        classes = reduce(classes, image_index, target_index) * self.cls_normalizer

        boxes = truth.boxes_cxcywh[target_index]
        anchors = boxes.new_tensor(self.head_anchors_wh)[anchor]
        stretch = self.scale_x_y
        if self.iou_loss == "mse":
            # Darknet scales by 2 - w * h, so that small boxes are not forgotten; its delta on x and y is the
            # gradient of the logistic cross-entropy, on w and h that of half the squared error.
            weight = (2 - boxes[:, 2:].prod(-1) / (width * height))[:, None]
            offset = position - torch.stack((column, row), dim=1)
            # The logistic that `decode_boxes` would stretch to this offset; for YOLOv3 the offset itself.
            logistic = (offset + (stretch - 1) / 2) / stretch
            xy = F.binary_cross_entropy_with_logits(chosen[:, :2], logistic, reduction="none")
            wh = (chosen[:, 2:4] - (boxes[:, 2:] / anchors).log()) ** 2 / 2
            box = (xy + wh) * weight
        else:
            centre = torch.sigmoid(chosen[:, :2]) * stretch - (stretch - 1) / 2 + torch.stack((column, row), dim=1)
            centre = centre * boxes.new_tensor([width / columns, height / rows])
            size = anchors * chosen[:, 2:4].clamp(_MIN_LOG_SIZE, _MAX_LOG_SIZE).exp()
            box = 1 - complete_iou(torch.cat((centre, size), dim=1), boxes)[:, None]
        return reduce(box, image_index, target_index) * self.iou_normalizer, objectness, classes

    def _matches(self, sizes_wh: Tensor) -> Tensor:
        """Which anchors of this head each box belongs to: ``(T, A)`` bool."""
        anchors = sizes_wh.new_tensor(self.anchors_wh)  # (anchors of the network, 2)
        overlap = torch.minimum(sizes_wh[:, None], anchors[None]).prod(-1)
        iou = overlap / (sizes_wh.prod(-1)[:, None] + anchors.prod(-1)[None] - overlap)
        nothing = torch.zeros_like(iou, dtype=torch.bool)
        best = F.one_hot(iou.argmax(1), len(anchors)).bool() if len(sizes_wh) else nothing
        return (best | (iou > self.iou_thresh))[:, list(self.anchor_indices)]
