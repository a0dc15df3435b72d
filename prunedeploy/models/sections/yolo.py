"""Section ``yolo``: the head of YOLOv3, v4 and v7, with independent probabilities of objectness and classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from prunedeploy.models.boxes import best_iou, cxcywh_to_xyxy, paired_iou
from prunedeploy.models.reduction import Reduce
from prunedeploy.models.sections.convolutional import Convolutional
from prunedeploy.models.sections.head import Head, Truth, focal_weight
from prunedeploy.models.sections.reading import LayerReader

if TYPE_CHECKING:
    from typing_extensions import Self

# exp(8) anchors is far beyond any image and exp(-16) far below a pixel; keeps CIoU finite for wild predictions.
_MIN_LOG_SIZE, _MAX_LOG_SIZE = -16.0, 8.0
_LEAST_PROBABILITY = 1e-30
"""Below it a probability has no gradient; its logit, -69, and the derivative of that are finite in float32."""

IOU_KINDS = ("iou", "giou", "diou", "ciou")


@dataclass(frozen=True, eq=False)
class Matched:
    """The predictions that belong to objects, P pairs.

    Attributes:
        predictions: ``(P, V)``, as the network gives them.
        anchors: ``(P, 2)``, width and height in input pixels.
        boxes: The objects, ``(P, 4)``: centre and size in input pixels.
        cells: ``(P, 2)``: column and row.
        offsets: ``(P, 2)``: of the objects' centres in their cells, in [0, 1].
        stride: ``(2,)``: width and height of a cell in input pixels.
        weight: ``(P, 1)``: 2 - width * height in units of the input, so that small boxes are not forgotten.
    """

    predictions: Tensor
    anchors: Tensor
    boxes: Tensor
    cells: Tensor
    offsets: Tensor
    stride: Tensor
    weight: Tensor


@dataclass(frozen=True)
class Yolo(Head):
    """Detection head: ``out_shape[0] == len(anchor_indices) * (5 + classes)``.

    Attributes:
        ignore_thresh: No objectness loss where an unassigned prediction overlaps a box by more (IoU).
        iou_thresh: Anchors whose shape overlaps a box by more are assigned to it beside the best one.
        iou_thresh_kind: What overlap is there, one of `IOU_KINDS`.
        iou_loss: Box term, ``mse`` (YOLOv3) or one of `IOU_KINDS`.
        iou_normalizer: Weight of the box term; ``obj_normalizer`` and ``cls_normalizer`` of the other two.
        scale_x_y: Stretch of the centre's logistic around 0.5 (YOLOv4); 1 is YOLOv3.
        new_coords: What the head reads are probabilities already (scaled YOLOv4, v7), of a convolution with
            ``activation=logistic``, any other is refused; sizes are ``anchor * (2 v)^2``.
        objectness_smooth: A prediction that overlaps a box by more than ``ignore_thresh`` is to have that overlap as
            its objectness.
        label_smooth_eps: Wanted class probabilities are this halved, or 1 less this halved.
        focal_loss: See `focal_weight`.
        class_multipliers: Weight of each class, from ``counters_per_class``; empty where all weigh the same.
    """

    options: ClassVar[Mapping[str, str]] = {
        "mask": "which of the anchors this head predicts",
        "anchors": "width,height pairs in pixels of the input",
        "classes": "number of classes",
        "num": "number of anchors in the list",
        "ignore_thresh": "training: no objectness loss where a prediction overlaps a box by more (IoU)",
        "iou_thresh": "training: anchors whose shape overlaps a box by more are assigned to it too",
        "iou_thresh_kind": "training: which overlap that is",
        "iou_loss": "training: how boxes are compared",
        "iou_normalizer": "training: weight of the boxes' loss",
        "obj_normalizer": "training: weight of the objectness loss",
        "cls_normalizer": "training: weight of the classes' loss",
        "scale_x_y": "how far a centre may reach beyond its cell; 1: not at all",
        "new_coords": "1: the convolution before gives probabilities, and a size is its anchor times (2 p)^2",
        "objectness_smooth": "training, 1: objectness is to be the overlap (IoU), not 1",
        "label_smooth_eps": "training: classes are to be this far from 0 and 1",
        "focal_loss": "training, 1: classes by focal loss",
        "counters_per_class": "training: boxes of each class, of which the rarer weigh more",
    }
    # `max_delta` clips deltas of Darknet's whose units are not those of a gradient, so it means nothing here. Darknet's
    # suppression reads `nms_kind` and `beta_nms`, which OpenCV ignores as well; its tracker reads `embedding_layer` and
    # what follows; the last two are slips in public cfgs that nothing reads.
    training_only: ClassVar[frozenset[str]] = frozenset(
        "truth_thresh jitter random nms_kind beta_nms max_delta delta_normalizer resize max show_details "
        "embedding_layer track_history_size sim_thresh dets_for_track dets_for_show track_ciou_norm "
        "uc_normalizer beta1".split()
    )
    refused: ClassVar[dict[str, str]] = {"map": "its classes are numbered anew by a file of Darknet's"}

    ignore_thresh: float
    iou_thresh: float
    iou_thresh_kind: str
    iou_loss: str
    iou_normalizer: float
    obj_normalizer: float
    cls_normalizer: float
    scale_x_y: float
    new_coords: bool
    objectness_smooth: bool
    label_smooth_eps: float
    focal_loss: bool
    class_multipliers: tuple[float, ...]

    @classmethod
    def read(cls, reader: LayerReader) -> Self:
        """See `Layer.read`."""
        anchors = reader.anchors()
        classes = reader.integer("classes", 20)
        mask = tuple(reader.whole_numbers("mask")) if "mask" in reader.section.options else tuple(range(len(anchors)))
        if not mask or any(not 0 <= index < len(anchors) for index in mask):
            raise reader.error(f"mask= names an anchor outside 0 to {len(anchors) - 1}", "mask")
        head = cls(*reader.wiring(reader.shape), mask, anchors, classes, **cls.settings(reader, classes))
        head.check_channels(reader)
        if head.new_coords:
            _check_probabilities(reader)
        return head

    @classmethod
    def settings(cls, reader: LayerReader, classes: int) -> dict[str, Any]:
        """What the section says beside anchors and classes, by attribute."""
        eps = reader.number("label_smooth_eps", 0.0)
        if not 0 <= eps <= 1:
            raise reader.error(f"label_smooth_eps={eps:g} is not in [0, 1]", "label_smooth_eps")
        stretch = reader.number("scale_x_y", 1.0)
        if stretch <= 0:
            raise reader.error(f"scale_x_y={stretch:g} is not above 0", "scale_x_y")
        return {
            "ignore_thresh": reader.number("ignore_thresh", 0.5),
            "iou_thresh": reader.number("iou_thresh", 1.0),
            "iou_thresh_kind": reader.choice("iou_thresh_kind", "iou", IOU_KINDS),
            "iou_loss": reader.choice("iou_loss", "mse", ("mse", *IOU_KINDS)),
            "iou_normalizer": reader.number("iou_normalizer", 1.0),
            "obj_normalizer": reader.number("obj_normalizer", 1.0),
            "cls_normalizer": reader.number("cls_normalizer", 1.0),
            "scale_x_y": stretch,
            "new_coords": reader.flag("new_coords"),
            "objectness_smooth": reader.flag("objectness_smooth"),
            "label_smooth_eps": eps,
            "focal_loss": reader.flag("focal_loss"),
            "class_multipliers": _class_multipliers(reader, classes),
        }

    @property
    def decoding(self) -> str:
        """See `Head.decoding`."""
        return f"{self.kind} new_coords" if self.new_coords else self.kind

    def options_for(self, classes: int) -> dict[str, object]:
        """See `Head.options_for`: nothing is known of how often the new classes occur."""
        counters = {"counters_per_class": ",".join(["1"] * classes)} if self.class_multipliers else {}
        return {"classes": classes, **counters}

    def decode_boxes(self, predictions: Tensor, input_size: tuple[int, int]) -> Tensor:
        """See `Head.decode_boxes`: bx = (sigmoid(tx) + cx) / W and bw = pw * exp(tw), in pixels of the input.

        With `new_coords` the logistic is not applied, and bw = pw * (2 tw)^2.

        Reference: Redmon and Farhadi, YOLOv3, 2018, section 2.1; Wang, Bochkovskiy and Liao, Scaled-YOLOv4, 2021.
        """
        _, _, height, width, _ = predictions.shape
        device, dtype = predictions.device, predictions.dtype
        anchors = torch.tensor(self.head_anchors_wh, device=device, dtype=dtype).view(1, -1, 1, 1, 2)
        stride = torch.tensor([input_size[1] / width, input_size[0] / height], device=device, dtype=dtype)
        centre = (self.offsets(predictions) + self.cells(predictions)) * stride
        sizes = predictions[..., 2:4]
        return torch.cat((centre, anchors * ((2 * sizes) ** 2 if self.new_coords else torch.exp(sizes))), dim=-1)

    def offsets(self, predictions: Tensor) -> Tensor:
        """Centres ``(..., 2)`` of ``predictions (..., V)`` in units of a cell, from its corner."""
        xy = predictions[..., :2] if self.new_coords else torch.sigmoid(predictions[..., :2])
        return xy * self.scale_x_y - (self.scale_x_y - 1) / 2

    def logits(self, raw: Tensor) -> Tensor:
        """See `Head.logits`."""
        values = self.split(raw)
        if not self.new_coords:
            return values
        probabilities = values[..., 4:].clamp(_LEAST_PROBABILITY, 1 - torch.finfo(values.dtype).eps)
        return torch.cat((values[..., :4], probabilities.log() - torch.log1p(-probabilities)), dim=-1)

    def probabilities(self, raw: Tensor) -> Tensor:
        """Objectness and classes, ``(B, A, H, W, 1 + C)`` in [0, 1]."""
        values = self.split(raw)[..., self.box_values :]
        return values if self.new_coords else torch.sigmoid(values)

    def scores(self, raw: Tensor) -> Tensor:
        """See `Head.scores`."""
        probabilities = self.probabilities(raw)
        return (probabilities[..., :1] * probabilities[..., 1:]).flatten(1, 3)

    def log_scores(self, raw: Tensor) -> Tensor:
        """See `Head.log_scores`."""
        values = self.split(raw)[..., self.box_values :]
        logs = values.clamp(min=_LEAST_PROBABILITY).log() if self.new_coords else F.logsigmoid(values)
        return (logs[..., :1] + logs[..., 1:]).flatten(1, 3)

    def class_probabilities(self, raw: Tensor) -> Tensor:
        """See `Head.class_probabilities`."""
        return self.probabilities(raw)[..., 1:].flatten(1, 3)

    def loss_terms(self, raw: Tensor, truth: Truth, reduce: Reduce) -> tuple[Tensor, Tensor, Tensor]:
        """See `Head.loss_terms`; assignment and terms are described in `prunedeploy.models.loss`."""
        predictions, logits = self.split(raw), self.logits(raw)
        batch, _, rows, columns, _ = predictions.shape
        height, width = truth.input_size
        target_index, anchor = self._matches(truth.boxes_cxcywh[:, 2:]).nonzero(as_tuple=True)  # (P,) each
        image_index = truth.image[target_index]
        class_id = truth.targets[target_index, 1].long()
        position, row, column = (values[target_index] for values in self.places(truth, predictions))
        cell = (image_index, anchor, row, column)
        importance = raw.new_tensor(self.class_multipliers)[class_id] if self.class_multipliers else None

        wanted = torch.zeros_like(logits[..., 4])
        wanted[cell] = 1.0
        with torch.no_grad():
            predicted = cxcywh_to_xyxy(self.decode_boxes(predictions, truth.input_size)).flatten(1, 3)
            overlap = best_iou(predicted, truth.padded_xyxy).view_as(wanted)
            weights = ((overlap <= self.ignore_thresh) | wanted.bool() | self.objectness_smooth).to(wanted.dtype)
            if self.objectness_smooth:
                wanted = torch.where(overlap > self.ignore_thresh, overlap, wanted)
            if importance is not None:
                place = ((image_index * wanted.shape[1] + anchor) * rows + row) * columns + column
                most = torch.zeros_like(weights).flatten().scatter_reduce(0, place, importance, "amax").view_as(weights)
                weights = torch.where(most > 0, most, weights)
        objectness = F.binary_cross_entropy_with_logits(logits[..., self.box_values], wanted, reduction="none")
        every_image = torch.arange(batch, device=truth.image.device)
        objectness = reduce(objectness * weights, every_image, None) * self.obj_normalizer

        classes = self._class_terms(logits[cell][:, self.box_values + 1 :], class_id, importance)
        classes = reduce(classes, image_index, target_index) * self.cls_normalizer

        boxes = truth.boxes_cxcywh[target_index]
        cells = torch.stack((column, row), dim=1)
        matched = Matched(
            predictions=predictions[cell],
            anchors=boxes.new_tensor(self.head_anchors_wh)[anchor],
            boxes=boxes,
            cells=cells,
            offsets=position - cells,
            stride=boxes.new_tensor([width / columns, height / rows]),
            weight=(2 - boxes[:, 2:].prod(-1) / (width * height))[:, None],
        )
        box = self.box_terms(matched)
        if importance is not None:
            box = box * importance[:, None]
        box = reduce(box, image_index, target_index) * self.iou_normalizer
        more = self.uncertainty_terms(matched)
        return box if more is None else box + reduce(more, image_index, target_index), objectness, classes

    def uncertainty_terms(self, matched: Matched) -> Tensor | None:
        """What a head has of the box term beside `box_terms`, ``(P, any)``; ``iou_normalizer`` does not weigh it."""
        return None

    def box_terms(self, matched: Matched) -> Tensor:
        """Box terms ``(P, any)`` of matched predictions, before ``iou_normalizer``."""
        chosen, stretch = matched.predictions, self.scale_x_y
        if self.iou_loss != "mse":
            centre = (self.offsets(chosen) + matched.cells) * matched.stride
            low, high = exp(_MIN_LOG_SIZE / 2) / 2, exp(_MAX_LOG_SIZE / 2) / 2
            size = matched.anchors * (
                (2 * chosen[:, 2:4].clamp(low, high)) ** 2
                if self.new_coords
                else chosen[:, 2:4].clamp(_MIN_LOG_SIZE, _MAX_LOG_SIZE).exp()
            )
            return 1 - paired_iou(torch.cat((centre, size), dim=1), matched.boxes, self.iou_loss)[:, None]
        ratio = matched.boxes[:, 2:] / matched.anchors
        if self.new_coords:
            # Darknet's delta on the stretched x and y is the difference: the gradient of this.
            xy = (self.offsets(chosen) - matched.offsets) ** 2 / (2 * stretch)
            return (xy + (chosen[:, 2:4] - ratio.sqrt() / 2) ** 2 / 2) * matched.weight
        # Darknet's delta on x and y is the gradient of the logistic cross-entropy, on w and h that of half the squared
        # error. The logistic that `offsets` would stretch to the offset of the object; for YOLOv3 that offset itself:
        logistic = (matched.offsets + (stretch - 1) / 2) / stretch
        xy = F.binary_cross_entropy_with_logits(chosen[:, :2], logistic, reduction="none")
        wh = (chosen[:, 2:4] - ratio.log()) ** 2 / 2
        return (xy + wh) * matched.weight

    def _class_terms(self, logits: Tensor, class_id: Tensor, importance: Tensor | None) -> Tensor:
        """``(P, C)``, before ``cls_normalizer``."""
        own = F.one_hot(class_id, self.classes).to(logits.dtype)
        labels = own
        if self.label_smooth_eps and not self.focal_loss:
            labels = own * (1 - self.label_smooth_eps) + self.label_smooth_eps / 2
        terms = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        if self.focal_loss:  # Darknet's knows neither smoothing nor counters
            return terms * focal_weight(torch.sigmoid((logits * own).sum(1)))[:, None]
        return terms if importance is None else terms * (1 + own * (importance[:, None] - 1))

    def _matches(self, sizes_wh: Tensor) -> Tensor:
        """Which anchors of this head each box belongs to: ``(T, A)`` bool."""
        anchors = sizes_wh.new_tensor(self.anchors_wh)  # (anchors of the network, 2)
        overlap = torch.minimum(sizes_wh[:, None], anchors[None]).prod(-1)
        iou = overlap / (sizes_wh.prod(-1)[:, None] + anchors.prod(-1)[None] - overlap)
        nothing = torch.zeros_like(iou, dtype=torch.bool)
        best = F.one_hot(iou.argmax(1), len(anchors)).bool() if len(sizes_wh) else nothing
        if self.iou_thresh_kind != "iou":
            pairs = torch.broadcast_tensors(anchors[None], sizes_wh[:, None])  # (T, anchors, 2) each
            around_one_centre = [F.pad(sizes.flatten(0, 1), (2, 0)) for sizes in pairs]
            iou = paired_iou(around_one_centre[0], around_one_centre[1], self.iou_thresh_kind).view_as(iou)
        return (best | (iou > self.iou_thresh))[:, list(self.anchor_indices)]


def _check_probabilities(reader: LayerReader) -> None:
    """Refuse ``new_coords`` behind a convolution of an older network, whose values are no probabilities."""
    source = reader.layers[reader.previous] if reader.previous >= 0 else None
    if isinstance(source, Convolutional) and source.activation != "logistic":
        what = f"new_coords=1 takes probabilities, but layer {source.index} has activation={source.activation}"
        raise reader.error(what, "new_coords", "remove new_coords=1, or set activation=logistic there")


def _class_multipliers(reader: LayerReader, classes: int) -> tuple[float, ...]:
    """Of ``counters_per_class``: how much rarer each class is than the most frequent, at most ``max_delta`` times."""
    if "counters_per_class" not in reader.section.options:
        return ()
    counters = [max(count, 1) for count in reader.whole_numbers("counters_per_class")]
    if len(counters) != classes:
        what = f"counters_per_class= has {len(counters)} numbers for {classes} classes"
        raise reader.error(what, "counters_per_class")
    most = reader.number("max_delta", 1e30)
    return tuple(min(max(counters) / count, most) for count in counters)
