"""Objectives against plain loops over predictions and objects, finite differences, and hand-made cases."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from prunedeploy.attacks.objectives import LOST_SCORE, OBJECTIVES, objective_for
from prunedeploy.models import Darknet, decode, yolo_loss
from prunedeploy_engines.detection.nms import detections_from
from prunedeploy_engines.errors import ConfigError
from pruning.darknets import conv, network, random_network

SECTIONS = (
    conv(8, size=3),
    conv(12, size=3) + " stride=2",
    conv(12, size=3, activation="mish"),
    "maxpool size=2 stride=2",
    conv(16, norm=False, activation="linear"),
    "yolo mask=0,1 anchors=5,6,9,8 classes=3 iou_loss=ciou",
)
TARGETS = torch.tensor(
    [
        [0, 0, 0.3, 0.4, 0.3, 0.3],
        [0, 1, 0.7, 0.6, 0.5, 0.4],
        [0, 0, 0.6, 0.2, 0.4, 0.3],
        [1, 2, 0.5, 0.5, 0.6, 0.5],
        [3, 0, 0.2, 0.8, 0.3, 0.2],
    ],
    dtype=torch.float64,
)


@pytest.fixture(scope="module")
def model() -> Darknet:
    return random_network(network(*SECTIONS), seed=1).double()


@pytest.fixture(scope="module")
def heads() -> list[Tensor]:
    """Predictions near their anchors, so that some overlap the objects, and of any score."""
    raw = torch.randn(4, 2, 8, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    scale = torch.tensor([1, 1, 0.2, 0.2, 3, 3, 3, 3], dtype=torch.float64).view(1, 1, 8, 1, 1)
    return [(raw * scale).flatten(1, 2)]


def alone(heads: list[Tensor], targets: Tensor, image: int) -> tuple[list[Tensor], Tensor]:
    """One image of a batch."""
    own = targets[targets[:, 0] == image].clone()
    own[:, 0] = 0
    return [head[image : image + 1] for head in heads], own


def iou(a: list[float], b: list[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0.0) * max(height, 0.0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def corners(target: Tensor) -> list[float]:
    x, y, width, height = (16 * float(value) for value in target[2:])
    return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]


@pytest.mark.parametrize("name", ["total", "box", "objectness", "classes"])
def test_terms_are_those_of_the_loss_of_each_image_alone(model, heads, name):
    found = objective_for(name, lambda: heads, TARGETS, model.cfg)(heads)
    for image in range(4):
        own_heads, own = alone(heads, TARGETS, image)
        assert float(found[image]) == pytest.approx(float(getattr(yolo_loss(own_heads, own, model.cfg), name)))


def test_class_wise_is_a_mean_over_classes_of_means_over_objects(model, heads):
    found = objective_for("class-wise", lambda: heads, TARGETS, model.cfg)(heads)
    for image in range(4):
        own_heads, own = alone(heads, TARGETS, image)
        means = []
        for class_id in sorted({int(target[1]) for target in own}):
            values = []
            for target in own:
                if int(target[1]) == class_id:
                    terms = yolo_loss(own_heads, target[None], model.cfg)
                    values.append(float(terms.box + terms.classes))
            means.append(sum(values) / len(values))
        assert float(found[image]) == pytest.approx(sum(means) / len(means) if means else 0.0)


def test_rank_is_the_margin_of_the_best_wrong_over_the_best_right_prediction(model, heads):
    found = objective_for("rank", lambda: heads, TARGETS, model.cfg)(heads)
    boxes, scores = decode(heads, model)
    seen = set()
    for image in range(4):
        expected = 0.0
        own = [target for target in TARGETS if int(target[0]) == image]
        for target in own:
            class_id = int(target[1])
            same = [corners(other) for other in own if int(other[1]) == class_id]
            right, wrong = 0.0, 0.0
            for box, score in zip(boxes[image].tolist(), scores[image, :, class_id].tolist(), strict=True):
                if iou(box, corners(target)) >= 0.5:
                    right = max(right, score)
                if all(iou(box, other) < 0.5 for other in same):
                    wrong = max(wrong, score)
            seen.add(right > LOST_SCORE)
            expected += math.log(wrong) - math.log(right) if right > LOST_SCORE else -math.log(LOST_SCORE)
        assert float(found[image]) == pytest.approx(expected)
    assert seen == {False, True}


def test_a_lost_object_counts_more_than_any_that_is_found(model, heads):
    objective = objective_for("rank", lambda: heads, TARGETS[3:4], model.cfg)
    lost = [head.clone() for head in heads]
    lost[0].view(4, 2, 8, *heads[0].shape[2:])[:, :, 4] = -30.0  # objectness
    assert float(objective(lost)[1]) == pytest.approx(-math.log(LOST_SCORE))
    assert float(objective(heads)[1]) < -math.log(LOST_SCORE)


def test_fabricate_and_vanish_want_objects_everywhere_and_nowhere(model, heads):
    fabricate = objective_for("fabricate", lambda: heads, TARGETS, model.cfg)
    vanish = objective_for("vanish", lambda: heads, TARGETS, model.cfg)
    objectness = heads[0].view(4, 2, 8, -1)[:, :, 4].flatten(1).tolist()
    for image, logits in enumerate(objectness):
        assert float(fabricate(heads)[image]) == pytest.approx(sum(-math.log1p(math.exp(-z)) for z in logits))
        weight = model.cfg.heads[0].obj_normalizer
        assert float(vanish(heads)[image]) == pytest.approx(-weight * sum(math.log1p(math.exp(z)) for z in logits))


@pytest.mark.parametrize("name", ["untargeted", "mislabel-most", "mislabel-least"])
def test_togs_targets_are_the_clean_detections(model, heads, name):
    boxes, scores = decode(heads, model)
    targets = []
    for image in range(4):
        found_boxes, _, class_ids = detections_from(
            boxes[image].float().numpy(), scores[image].float().numpy(), score_threshold=0.5, iou_threshold=0.45
        )
        for box, class_id in zip(found_boxes.tolist(), class_ids.tolist(), strict=True):
            near = [float((boxes[image, n] - torch.tensor(box)).abs().max()) for n in range(boxes.shape[1])]
            ranked = scores[image, near.index(min(near))].argsort(descending=True).tolist()  # objectness is shared
            others = [other for other in ranked if other != class_id]
            wanted = {"untargeted": class_id, "mislabel-most": others[0], "mislabel-least": others[-1]}[name]
            x0, y0, x1, y1 = (value / 16 for value in box)
            targets.append([image, wanted, (x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0])
    assert targets, "nothing is detected on the clean images"
    found = objective_for(name, lambda: heads, TARGETS, model.cfg)([head * 0.5 for head in heads])
    sign = 1 if name == "untargeted" else -1
    for image in range(4):
        own_heads, own = alone([head * 0.5 for head in heads], torch.tensor(targets, dtype=torch.float64), image)
        expected = float(yolo_loss(own_heads, own, model.cfg).total)
        assert float(found[image]) == pytest.approx(sign * expected, rel=1e-5)


@pytest.mark.parametrize("name", [*OBJECTIVES, "rank + box"])
def test_gradients_are_finite_differences(heads, name):
    # CIoU's authors hold its trade-off factor constant in the gradient, so that box term is not differentiated whole.
    cfg = network(*SECTIONS[:-1], SECTIONS[-1].replace("ciou", "mse"))
    objective = objective_for(name, lambda: heads, TARGETS, cfg)
    at = [(head * 0.9).requires_grad_(True) for head in heads]
    values = objective(at)
    (gradient,) = torch.autograd.grad(values.sum(), at)
    assert values.shape == (4,)
    assert int((gradient.flatten(1).abs().sum(1) > 0).sum()) >= 2
    direction = torch.randn(gradient.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    step = 1e-6
    with torch.no_grad():
        ahead, behind = (objective([at[0] + sign * step * direction]) for sign in (1, -1))
    slope = (gradient * direction).flatten(1).sum(1)
    assert torch.allclose((ahead - behind) / (2 * step), slope, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_unlike_images_of_a_batch_do_not_influence_each_other(model, heads, name):
    together = gradient_of(name, heads, TARGETS, model)
    assert bool(together[0].any())
    for image in range(4):
        own_heads, own = alone(heads, TARGETS, image)
        assert torch.allclose(together[image], gradient_of(name, own_heads, own, model)[0], rtol=1e-9, atol=1e-12)


def gradient_of(name: str, heads: list[Tensor], targets: Tensor, model: Darknet) -> Tensor:
    at = [(head * 0.9).requires_grad_(True) for head in heads]
    values = objective_for(name, lambda: heads, targets, model.cfg)(at)
    return torch.autograd.grad(values.sum(), at)[0]


def test_a_sum_is_the_sum(model, heads):
    def value(name: str) -> Tensor:
        return objective_for(name, lambda: heads, TARGETS, model.cfg)(heads)

    assert torch.allclose(value("rank + box"), value("rank") + value("box"))


def test_an_unknown_objective_names_the_nearest(model, heads):
    with pytest.raises(ConfigError, match="no objective 'objectnes'; the nearest is objectness"):
        objective_for("box + objectnes", lambda: heads, TARGETS, model.cfg)


@pytest.mark.parametrize(("name", "threshold"), [("flood", 0.25), ("flood-low", 0.001)])
def test_flood_counts_pairs_of_box_and_class_smoothly_and_small_boxes_more(model, heads, name, threshold):
    found = objective_for(name, lambda: heads, TARGETS, model.cfg)(heads)
    boxes, scores = decode(heads, model)
    for image in range(4):
        expected = 0.0
        for (x0, y0, x1, y1), row in zip(boxes[image].tolist(), scores[image].tolist(), strict=True):
            covered = min((x1 - x0) * (y1 - y0) / (16 * 16), 1.0)
            for score in row:
                expected += score**2 / (score**2 + threshold**2) * (1 - covered / 2)
        assert float(found[image]) == pytest.approx(expected, rel=1e-9)


def test_flood_is_half_of_a_point_sized_box_at_the_threshold(model):
    # One prediction has objectness and a class of 1/2 each, a score of 1/4, and no size; all others have scores of 0.
    raw = torch.full((1, 2, 8, 4, 4), -60.0, dtype=torch.float64)
    raw[0, 0, 4:6, 1, 1] = 0.0
    value = objective_for("flood", lambda: [], TARGETS[:0], model.cfg)([raw.flatten(1, 2)])
    assert float(value) == pytest.approx(0.5, abs=1e-9)
