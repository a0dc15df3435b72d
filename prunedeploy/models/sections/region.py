"""Section ``region``: the head of YOLOv2, with anchors in cells and exclusive classes.

Reference: Redmon and Farhadi, YOLO9000: Better, Faster, Stronger, 2017, section 2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from prunedeploy.models.boxes import best_iou, cxcywh_to_xyxy, paired_iou
from prunedeploy.models.reduction import Reduce
from prunedeploy.models.sections.head import Head, Truth, focal_weight
from prunedeploy.models.sections.reading import LayerReader


@dataclass(frozen=True)
class Region(Head):
    """Detection head: ``out_shape[0] == len(anchor_indices) * (5 + classes)``.

    Attributes:
        cell_wh: Width and height of a cell, in input pixels.
        softmax: Class probabilities are a softmax; otherwise logistics.
        bias_match: A box belongs to the anchor whose shape fits best; otherwise to the best prediction in its cell.
        rescore: Objectness of a box's prediction is to be its overlap with the box; otherwise 1.
        thresh: No objectness loss where an unassigned prediction overlaps a box by more (IoU).
        coord_scale: Weight of the box term; ``object_scale``, ``noobject_scale`` and ``class_scale`` of the others.
        focal_loss: See `focal_weight`.
    """

    options: ClassVar[Mapping[str, str]] = {
        "anchors": "width,height pairs in cells of the head's map",
        "classes": "number of classes",
        "num": "number of anchors",
        "coords": "numbers of a box: 4",
        "softmax": "1: one class for each object; 0: each class by itself",
        "bias_match": "training, 1: sizes of an object are compared with the anchors' own",
        "rescore": "training, 1: objectness is to be the overlap (IoU), not 1",
        "thresh": "training: no objectness loss where a prediction overlaps a box by more (IoU)",
        "coord_scale": "training: weight of the boxes' loss",
        "object_scale": "training: weight of the objectness loss of objects",
        "noobject_scale": "training: weight of the objectness loss of everything else",
        "class_scale": "training: weight of the classes' loss",
        "focal_loss": "training, 1: classes by focal loss",
    }
    # Sizes are always exponentials: Darknet reads `absolute`, `log` and `sqrt` and does nothing with them.
    training_only: ClassVar[frozenset[str]] = frozenset("absolute log sqrt jitter resize random max mask_scale".split())
    refused: ClassVar[Mapping[str, str]] = {
        "tree": "the classes of YOLO9000 are a tree of softmaxes",
        "map": "its classes are numbered anew by a file of Darknet's",
        "background": "objectness would be one of the classes",
        "classfix": "scores would depend on a threshold of their own",
    }

    cell_wh: tuple[float, float]
    softmax: bool
    bias_match: bool
    rescore: bool
    thresh: float
    coord_scale: float
    object_scale: float
    noobject_scale: float
    class_scale: float
    focal_loss: bool

    @classmethod
    def read(cls, reader: LayerReader) -> Region:
        """See `Layer.read`."""
        if reader.integer("coords", 4) != 4:
            raise reader.error("coords= must be 4: x, y, width and height", "coords")
        cell_wh = (reader.input_size[1] / reader.shape[2], reader.input_size[0] / reader.shape[1])
        anchors = tuple((width * cell_wh[0], height * cell_wh[1]) for width, height in reader.anchors())
        head = cls(
            *reader.wiring(reader.shape),
            tuple(range(len(anchors))),
            anchors,
            reader.integer("classes", 20),
            cell_wh=cell_wh,
            softmax=reader.flag("softmax"),
            bias_match=reader.flag("bias_match"),
            rescore=reader.flag("rescore"),
            thresh=reader.number("thresh", 0.5),
            coord_scale=reader.number("coord_scale", 1.0),
            object_scale=reader.number("object_scale", 1.0),
            noobject_scale=reader.number("noobject_scale", 1.0),
            class_scale=reader.number("class_scale", 1.0),
            focal_loss=reader.flag("focal_loss"),
        )
        head.check_channels(reader)
        return head

    @property
    def exclusive_classes(self) -> bool:
        """See `Head.exclusive_classes`."""
        return self.softmax

    def anchors_option(self, anchors_wh: Sequence[tuple[float, float]]) -> str:
        """See `Head.anchors_option`: in cells."""
        return super().anchors_option([(w / self.cell_wh[0], h / self.cell_wh[1]) for w, h in anchors_wh])

    def decode_boxes(self, predictions: Tensor, input_size: tuple[int, int]) -> Tensor:
        """See `Head.decode_boxes`: bx = (sigmoid(tx) + cx) / W and bw = pw * exp(tw) / W, in pixels of the input."""
        _, _, height, width, _ = predictions.shape
        stride = predictions.new_tensor([input_size[1] / width, input_size[0] / height])
        anchors = predictions.new_tensor(self.anchors_wh).view(1, -1, 1, 1, 2)
        centre = (torch.sigmoid(predictions[..., :2]) + self.cells(predictions)) * stride
        return torch.cat((centre, anchors * torch.exp(predictions[..., 2:4])), dim=-1)

    def scores(self, raw: Tensor) -> Tensor:
        """See `Head.scores`."""
        return torch.sigmoid(self.objectness_logits(raw))[..., None] * self.class_probabilities(raw)

    def log_scores(self, raw: Tensor) -> Tensor:
        """See `Head.log_scores`."""
        logits = self.class_logits(raw)
        classes = F.log_softmax(logits, dim=-1) if self.softmax else F.logsigmoid(logits)
        return F.logsigmoid(self.objectness_logits(raw))[..., None] + classes

    def class_probabilities(self, raw: Tensor) -> Tensor:
        """See `Head.class_probabilities`."""
        logits = self.class_logits(raw)
        return torch.softmax(logits, dim=-1) if self.softmax else torch.sigmoid(logits)

    def loss_terms(self, raw: Tensor, truth: Truth, reduce: Reduce) -> tuple[Tensor, Tensor, Tensor]:
        """See `Head.loss_terms`; the terms are described in `prunedeploy.models.loss`."""
        predictions = self.split(raw)
        position, row, column = self.places(truth, predictions)
        boxes = truth.boxes_cxcywh
        anchors = boxes.new_tensor(self.anchors_wh)
        with torch.no_grad():
            predicted = self.decode_boxes(predictions, truth.input_size)  # (B, A, H, W, 4)
            there = predicted[truth.image, :, row, column]  # (T, A, 4)
            anchor = self._best(boxes[:, 2:], anchors.expand(len(boxes), -1, -1) if self.bias_match else there[..., 2:])
            overlap = best_iou(cxcywh_to_xyxy(predicted).flatten(1, 3), truth.padded_xyxy).view(predicted.shape[:-1])
            objects = torch.arange(len(boxes), device=boxes.device)
            own = paired_iou(there[objects, anchor], boxes, "iou") if self.rescore else torch.ones_like(boxes[:, 0])
            # Of objects that share a prediction, the one that it overlaps most says what its objectness should be.
            count, rows, columns = predictions.shape[1:4]
            place = ((truth.image * count + anchor) * rows + row) * columns + column
            wanted = torch.zeros_like(overlap).flatten().scatter_reduce(0, place, own, "amax").view_as(overlap)
            assigned = torch.zeros_like(wanted, dtype=torch.bool)
            assigned[truth.image, anchor, row, column] = True
            background = (overlap <= self.thresh).to(wanted.dtype) * self.noobject_scale
            weights = torch.where(assigned, self.object_scale, background)
        objectness = weights * (torch.sigmoid(predictions[..., 4]) - wanted) ** 2 / 2
        objectness = reduce(objectness, torch.arange(len(raw), device=raw.device), None)

        chosen = predictions[truth.image, anchor, row, column]  # (T, 5 + C)
        xy = torch.sigmoid(chosen[:, :2]) - (position - torch.stack((column, row), dim=1))
        wh = chosen[:, 2:4] - (boxes[:, 2:] / anchors[anchor]).log()
        box = reduce((xy**2 + wh**2) / 2, truth.image, objects) * self.coord_scale

        classes = self._class_terms(chosen[:, 5:], truth.targets[:, 1].long())
        return box, objectness, reduce(classes, truth.image, objects) * self.class_scale

    def _class_terms(self, logits: Tensor, class_id: Tensor) -> Tensor:
        """``(T, any)``, before ``class_scale``."""
        labels = F.one_hot(class_id, self.classes).to(logits.dtype)
        if self.softmax:
            terms = F.cross_entropy(logits, class_id, reduction="none")[:, None]
            probabilities = torch.softmax(logits, dim=-1)
        else:
            terms = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
            probabilities = torch.sigmoid(logits)
        return terms * focal_weight((probabilities * labels).sum(1))[:, None] if self.focal_loss else terms

    @staticmethod
    def _best(sizes_wh: Tensor, candidates_wh: Tensor) -> Tensor:
        """Which of ``candidates_wh (T, A, 2)`` has most of the shape of ``sizes_wh (T, 2)``: ``(T,)`` int64."""
        overlap = torch.minimum(sizes_wh[:, None], candidates_wh).prod(-1)
        return (overlap / (sizes_wh.prod(-1)[:, None] + candidates_wh.prod(-1) - overlap)).argmax(1)
