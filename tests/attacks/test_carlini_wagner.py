"""The attack of Carlini and Wagner: a problem with a known answer, pycocotools as judge, finite differences."""

from __future__ import annotations

import contextlib
import io
import math

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from prunedeploy.attacks import CarliniWagner
from prunedeploy.attacks.carlini_wagner import Lost, smallest_change
from prunedeploy.attacks.found_objects import Counting, Objects
from prunedeploy.evaluation.detecting import IOU_THRESHOLD, Thresholds
from prunedeploy.models import Darknet, FoldedDarknet, decode
from prunedeploy_engines.detection.letterbox import LetterboxGeometry
from prunedeploy_engines.detection.nms import detections_from
from prunedeploy_engines.errors import ConfigError

SCORE = 0.53


def detections(heads: list[Tensor], model: Darknet, image: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    boxes, scores = (one[image].detach().numpy() for one in decode(heads, model))
    return detections_from(boxes, scores, score_threshold=SCORE, iou_threshold=0.45)


@pytest.fixture(scope="module")
def targets(model, images) -> Tensor:
    """The best detection of images 0, 1 and 3, and something that is not there in image 2."""
    heads = FoldedDarknet(model)(images)
    rows = [[2.0, 0.0, 0.5, 0.5, 0.01, 0.01]]
    for image in (0, 1, 3):
        boxes, _, classes = detections(heads, model, image)
        x0, y0, x1, y1 = boxes[0].clip(0, 16) / 16
        rows.append([image, classes[0], (x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0])
    return torch.tensor(rows, dtype=torch.float32)


def coco_finds(heads: list[Tensor], targets: Tensor, model: Darknet) -> list[bool]:
    """Which objects pycocotools matches a detection with, at an IoU of .5; boxes are clipped to 16 x 16 pixels."""
    annotations, found = [], []
    for number, (image, class_id, x, y, width, height) in enumerate(targets.double().tolist()):
        box = [16 * (x - width / 2), 16 * (y - height / 2), 16 * width, 16 * height]
        annotations.append(
            {"id": number + 1, "image_id": int(image), "category_id": int(class_id), "bbox": box}
            | {"area": box[2] * box[3], "iscrowd": 0}
        )
    for image in range(len(heads[0])):
        for box, score, class_id in zip(*detections(heads, model, image), strict=True):
            x0, y0, x1, y1 = box.clip(0, 16).astype(float)
            found.append([image, x0, y0, x1 - x0, y1 - y0, score, class_id])
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": [{"id": image} for image in range(len(heads[0]))],
            "categories": [{"id": class_id} for class_id in range(model.cfg.classes)],
            "annotations": annotations,
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(np.array(found).reshape(-1, 7)), "bbox")
        evaluation.params.iouThrs = np.array([0.5])
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.evaluate()
    matched = set()
    for entry in evaluation.evalImgs:
        if entry is not None:
            matched |= {int(one) for one, by in zip(entry["gtIds"], entry["gtMatches"][0], strict=True) if by > 0}
    return [number + 1 in matched for number in range(len(targets))]


def test_a_linear_margin_is_undone_at_the_distance_of_its_plane():
    generator = torch.Generator().manual_seed(4)
    images = 0.35 + 0.3 * torch.rand(3, 3, 4, 4, generator=generator)
    normals = torch.randn(3, 3, 4, 4, generator=generator)
    margins = torch.tensor([0.2, 3.0, 0.6])
    offsets = (normals * images).flatten(1).sum(1) - margins

    def aim(x: Tensor) -> tuple[Tensor, Tensor]:
        values = (normals * x).flatten(1).sum(1) - offsets
        return values, values < 0

    found, reached = smallest_change(images, aim, steps=150, searches=7, learning_rate=0.01, first_c=0.01)
    assert reached.tolist() == [True] * 3
    change = found - images
    nearest = margins / normals.flatten(1).norm(dim=1)
    assert torch.allclose(change.flatten(1).norm(dim=1), nearest, rtol=0.02)
    # The nearest point of a plane lies along its normal.
    along = torch.nn.functional.cosine_similarity(-change.flatten(1), normals.flatten(1))
    assert float(along.min()) > 0.98


def test_what_cannot_be_reached_leaves_the_image_and_its_neighbours_as_they_are():
    images = torch.full((2, 3, 2, 2), 0.5)

    def aim(x: Tensor) -> tuple[Tensor, Tensor]:
        values = x.flatten(1).sum(1) - torch.tensor([-1.0, 5.4])  # no pixel goes below 0
        return values, values < 0

    settings = {"steps": 80, "searches": 4, "learning_rate": 0.01, "first_c": 0.1}
    found, reached = smallest_change(images, aim, **settings)
    assert reached.tolist() == [False, True]
    assert torch.equal(found[0], images[0])
    assert float((found[1] - images[1]).norm()) == pytest.approx(0.6 / 12**0.5, rel=0.05)


def test_black_and_white_pixels_can_move():
    images = torch.tensor([0.0, 1.0]).repeat(6).view(1, 3, 2, 2)
    sign = 1 - 2 * images

    def aim(x: Tensor) -> tuple[Tensor, Tensor]:
        values = 0.5 - (sign * (x - images)).flatten(1).sum(1)
        return values, values < 0

    found, reached = smallest_change(images, aim, steps=150, searches=3, learning_rate=0.1, first_c=1.0)
    assert reached.tolist() == [True]
    assert float((sign * (found - images)).sum()) >= 0.5


def test_objects_are_found_as_pycocotools_finds_them(model):
    generator = torch.Generator().manual_seed(2)
    scale = torch.tensor([1, 1, 0.2, 0.2, 3, 3, 3]).view(1, 1, 7, 1, 1)
    heads = [(torch.randn(6, 2, 7, 4, 4, generator=generator) * scale).flatten(1, 2)]
    rows = []
    for image in range(6):
        for box, _, class_id in zip(*detections(heads, model, image), strict=True):
            x0, y0, x1, y1 = (box / 16).clip(0, 1)
            # Two objects near one detection: only one of them is found by it.
            for shift in (0.0, 0.06):
                rows.append([image, class_id, (x0 + x1) / 2 + shift, (y0 + y1) / 2, x1 - x0, y1 - y0])
            rows.append([image, 1 - class_id, (x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0])
    targets = torch.tensor(rows, dtype=torch.float32)
    expected = coco_finds(heads, targets, model)
    objects = Objects.of(model.cfg, targets, None, 6, Counting(SCORE))
    assert objects.found(heads).tolist() == expected
    assert expected[::3] != expected[1::3]
    assert len(expected) > 40
    assert {True, False} == set(expected)


def test_margins_are_the_best_matching_score_of_the_object_nearest_to_its_loss(model, images, targets):
    heads = FoldedDarknet(model)(images[[0, 1, 3]])
    several = torch.cat([targets[1:], targets[1:2] * torch.tensor([1, 1, 1, 1, 0.7, 1])])
    several[:, 0] = torch.tensor([0, 1, 2, 0])
    objects = Objects.of(model.cfg, several, None, 3, Counting(SCORE))
    margins, _ = objects.margins_and_lost(heads, torch.ones(4, dtype=torch.bool))
    boxes, scores = decode(heads, model)
    expected = [math.inf] * 3
    for image, class_id, x, y, width, height in several.double().tolist():
        object_ = [16 * (x - width / 2), 16 * (y - height / 2), 16 * (x + width / 2), 16 * (y + height / 2)]
        best = 0.0
        for box, score in zip(boxes[int(image)].tolist(), scores[int(image), :, int(class_id)].tolist(), strict=True):
            a = [min(max(value, 0.0), 16.0) for value in box]
            shared = max(min(a[2], object_[2]) - max(a[0], object_[0]), 0.0)
            shared *= max(min(a[3], object_[3]) - max(a[1], object_[1]), 0.0)
            area = (a[2] - a[0]) * (a[3] - a[1]) + (object_[2] - object_[0]) * (object_[3] - object_[1])
            if shared >= 0.5 * (area - shared):
                best = max(best, score)
        expected[int(image)] = min(expected[int(image)], math.log(best / SCORE))
    assert margins.tolist() == pytest.approx(expected, abs=1e-5)


def test_margins_gradients_are_finite_differences(model, images, targets):
    network_ = FoldedDarknet(model, torch.float64)
    at = [head.detach().requires_grad_(True) for head in network_(images[:2].double())]
    objects = Objects.of(model.cfg, targets[1:3].double(), None, 2, Counting(SCORE))
    wanted = torch.ones(2, dtype=torch.bool)
    (gradient,) = torch.autograd.grad(objects.margins_and_lost(at, wanted)[0].sum(), at)
    assert bool((gradient.flatten(1).abs().sum(1) > 0).all())
    direction = torch.randn(gradient.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        ahead, behind = (
            objects.margins_and_lost([at[0] + step * direction], wanted)[0].sum() for step in (1e-6, -1e-6)
        )
    assert float((ahead - behind) / 2e-6) == pytest.approx(float((gradient * direction).sum()), rel=1e-5)


def test_predictions_are_clipped_to_the_photo_as_the_evaluation_clips_them(model, images):
    heads = FoldedDarknet(model)(images[:1])
    boxes, _, classes = detections(heads, model, 0)
    x0, y0, x1, y1 = (float(value) for value in boxes[0].clip(0, 16))
    bottom = math.floor(y0 + 0.45 * (y1 - y0))  # the photo ends above the middle of the box, and so does the object
    assert bottom > y0
    row = [0, classes[0], (x0 + x1) / 32, (y0 + bottom) / 32, (x1 - x0) / 16, (bottom - y0) / 16]
    target = torch.tensor([row], dtype=torch.float32)
    photo = LetterboxGeometry(1.0, 0, 0, (bottom, 16), (bottom, 16), (16, 16))
    whole, clipped = (Objects.of(model.cfg, target, geometries, 1, Counting(0.535)) for geometries in (None, [photo]))
    assert whole.found(heads).tolist() == [False]
    assert clipped.found(heads).tolist() == [True]
    assert whole.frames.tolist() == [[0, 0, 16, 16]]
    assert clipped.frames.tolist() == [[0, 0, 16, bottom]]


@pytest.fixture(scope="module")
def lost(model, images, targets) -> Lost:
    return CarliniWagner(model, FoldedDarknet(model), steps=60, searches=4, score_threshold=SCORE)(images, targets)


def test_an_attacked_image_loses_an_object_by_pycocotools(model, images, targets, lost):
    network_ = FoldedDarknet(model)
    assert lost.attackable.tolist() == [True, True, False, True]
    assert coco_finds(network_(images), targets, model) == [False, True, True, True]
    assert coco_finds(network_(lost.images), targets, model) == [False] * 4
    change = (lost.images - images).flatten(1).double()
    for image in (0, 1, 3):
        assert float(lost.l2[image]) == pytest.approx(float(change[image].norm()), rel=1e-5)
        assert float(lost.linf[image]) == pytest.approx(float(change[image].abs().max()))
    assert 0 <= float(lost.images.min()) <= float(lost.images.max()) <= 1
    # It is no farther than it must be: with four fifths of the change nothing is lost.
    assert coco_finds(network_(images + 0.8 * (lost.images - images)), targets, model) == [False, True, True, True]


def test_an_image_in_which_nothing_is_found_stays_as_it_is(images, lost):
    assert torch.equal(lost.images[2], images[2])
    assert math.isnan(float(lost.l2[2]))
    assert math.isnan(float(lost.linf[2]))


def test_images_of_a_batch_do_not_influence_each_other(model, images, targets, lost):
    own = targets[2:3].clone()
    own[:, 0] = 0
    alone = CarliniWagner(model, FoldedDarknet(model), steps=60, searches=4, score_threshold=SCORE)(images[1:2], own)
    assert float(alone.l2[0]) == pytest.approx(float(lost.l2[1]), rel=1e-3)
    assert float((alone.images[0] - lost.images[1]).abs().max()) < 1e-4


def test_detections_are_by_default_those_of_the_evaluation(model):
    assert Counting(SCORE) == Counting(**vars(Thresholds(score=SCORE)))
    assert CarliniWagner(model, FoldedDarknet(model)).iou_threshold == IOU_THRESHOLD


@pytest.mark.parametrize(
    ("wrong", "says"),
    [({"score_threshold": 1.0}, "score_threshold: 1.0 is not between 0 and 1"), ({"steps": 0}, "steps: 0 is not")],
)
def test_settings_that_cannot_be_searched_with_are_refused(model, wrong, says):
    with pytest.raises(ConfigError, match=says):
        CarliniWagner(model, FoldedDarknet(model), **wrong)
