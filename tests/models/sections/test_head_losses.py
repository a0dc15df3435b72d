"""Losses of region and Gaussian_yolo heads against plain loops; what Darknet's deltas say is in another file."""

from __future__ import annotations

import math

import pytest
import torch

from head_networks import COLUMNS, HEIGHT, ROWS, WIDTH, head_cfg, random_head
from models.test_loss import OVERLAPS, cross_entropy, iou, logistic
from prunedeploy.models import LossTerms, yolo_loss

OBJECTS = [(0, 0.30, 0.40, 0.26, 0.50), (1, 0.72, 0.61, 0.16, 0.17), (0, 0.61, 0.18, 0.14, 0.15)]
"""Class, centre and size in units of the input; no two share a cell."""
TARGETS = torch.tensor([(0, *one) for one in OBJECTS], dtype=torch.float64)


def pixels(one: tuple[float, ...]) -> tuple[float, ...]:
    return one[1] * WIDTH, one[2] * HEIGHT, one[3] * WIDTH, one[4] * HEIGHT


def cell_of(one: tuple[float, ...]) -> tuple[int, int]:
    return int(one[2] * ROWS), int(one[1] * COLUMNS)


def check(terms: LossTerms, box: float, objectness: float, classes: float) -> None:
    assert float(terms.box) == pytest.approx(box, rel=1e-9)
    assert float(terms.objectness) == pytest.approx(objectness, rel=1e-9)
    assert float(terms.classes) == pytest.approx(classes, rel=1e-9)


REGION = {
    "plain": {},
    "scaled": {"coord_scale": 2, "object_scale": 5, "noobject_scale": 0.5, "class_scale": 1.5, "thresh": 0.3},
    "matched": {"bias_match": 1, "rescore": 1},
    "focal": {"focal_loss": 1},
}


@pytest.mark.parametrize("name", REGION)
def test_region_is_a_plain_loop(name: str) -> None:
    """forward_region_layer: every prediction as background first, then every object in its cell."""
    options = {"coord_scale": 1, "object_scale": 1, "noobject_scale": 1, "class_scale": 1, "thresh": 0.5} | REGION[name]
    raw = random_head("region", 1, seed=2, certainty=1.0)
    anchors = [(12.0, 18.0), (7.2, 4.8)]
    values = raw[0].view(2, 8, ROWS, COLUMNS).permute(0, 2, 3, 1).tolist()

    def box_at(a: int, j: int, i: int) -> tuple[float, ...]:
        x, y, w, h = values[a][j][i][:4]
        return 8 * (i + logistic(x)), 8 * (j + logistic(y)), anchors[a][0] * math.exp(w), anchors[a][1] * math.exp(h)

    box = objectness = classes = 0.0
    wanted: dict[tuple[int, int, int], float] = {}
    for one in OBJECTS:
        truth, (j, i) = pixels(one), cell_of(one)
        shapes = [anchors[a] if options.get("bias_match") else box_at(a, j, i)[2:] for a in range(2)]
        fits = [iou((0, 0, *shape), (0, 0, *truth[2:])) for shape in shapes]
        a = fits.index(max(fits))
        wanted[a, j, i] = iou(box_at(a, j, i), truth) if options.get("rescore") else 1.0
        x, y, w, h, _, *logits = values[a][j][i]
        offsets = (logistic(x) - (truth[0] / 8 - i), logistic(y) - (truth[1] / 8 - j))
        sizes = (w - math.log(truth[2] / anchors[a][0]), h - math.log(truth[3] / anchors[a][1]))
        box += options["coord_scale"] * sum(difference**2 for difference in (*offsets, *sizes)) / 2
        p = math.exp(logits[one[0]]) / sum(math.exp(logit) for logit in logits)
        focal = -0.5 * (1 - p) * (2 * p * math.log(p) + p - 1) if options.get("focal_loss") else 1
        classes += options["class_scale"] * focal * -math.log(p)
    for a in range(2):
        for j in range(ROWS):
            for i in range(COLUMNS):
                p = logistic(values[a][j][i][4])
                if (a, j, i) in wanted:
                    objectness += options["object_scale"] * (p - wanted[a, j, i]) ** 2 / 2
                elif max(iou(box_at(a, j, i), pixels(one)) for one in OBJECTS) <= options["thresh"]:
                    objectness += options["noobject_scale"] * p**2 / 2
    check(yolo_loss([raw], TARGETS, head_cfg("region", **options)), box, objectness, classes)


@pytest.mark.parametrize("loss", ["mse", "giou"])
def test_gaussian_yolo_is_a_plain_loop(loss: str) -> None:
    """Choi et al. 2019, equations 5 to 7, with the constants of gaussian_yolo_layer.c."""
    options = {"iou_normalizer": 0.5, "uc_normalizer": 0.5, "ignore_thresh": 0.3, "obj_normalizer": 2}
    raw = random_head("gaussian_yolo", 1, seed=3, certainty=1.0)
    anchors = {0: (12.0, 18.0), 1: (7.0, 5.0)}
    values = raw[0].view(2, 12, ROWS, COLUMNS).permute(0, 2, 3, 1).tolist()

    def means_at(a: int, j: int, i: int) -> list[float]:
        x, _, y, _, w, _, h, _ = values[a][j][i][:8]
        return [logistic(x) * 1.1 - 0.05, logistic(y) * 1.1 - 0.05, w, h]

    def box_at(a: int, j: int, i: int) -> tuple[float, ...]:
        x, y, w, h = means_at(a, j, i)
        return 8 * (i + x), 8 * (j + y), anchors[a][0] * math.exp(w), anchors[a][1] * math.exp(h)

    box = objectness = classes = 0.0
    owned = set()
    for one in OBJECTS:
        truth, (j, i) = pixels(one), cell_of(one)
        fits = {a: iou((0, 0, *anchor), (0, 0, *truth[2:])) for a, anchor in {**anchors, 2: (40.0, 9.0)}.items()}
        a = max(fits, key=lambda n: fits[n])
        assert a in anchors
        owned.add((a, j, i))
        wanted = [truth[0] / 8 - i, truth[1] / 8 - j]
        wanted += [math.log(truth[2] / anchors[a][0]), math.log(truth[3] / anchors[a][1])]
        for number, mean in enumerate(means_at(a, j, i)):
            deviation = logistic(values[a][j][i][2 * number + 1])
            density = math.exp(-(((wanted[number] - mean) / deviation) ** 2) / 2)
            density /= math.sqrt(2 * math.pi) * (deviation + 0.3)
            box += 0.5 * -math.log(density + 1e-9) / 2 * (2 - one[3] * one[4])
        if loss != "mse":
            box += 0.5 * (1 - OVERLAPS[loss](box_at(a, j, i), truth))
        classes += sum(cross_entropy(values[a][j][i][9 + c], float(c == one[0])) for c in range(3))
    for a in range(2):
        for j in range(ROWS):
            for i in range(COLUMNS):
                if (a, j, i) in owned:
                    objectness += 2 * cross_entropy(values[a][j][i][8], 1)
                elif max(iou(box_at(a, j, i), pixels(one)) for one in OBJECTS) <= 0.3:
                    objectness += 2 * cross_entropy(values[a][j][i][8], 0)
    check(yolo_loss([raw], TARGETS, head_cfg("gaussian_yolo", iou_loss=loss, **options)), box, objectness, classes)


@pytest.mark.parametrize("kind", ["region", "gaussian_yolo"])
def test_images_without_objects_cost_objectness_alone(kind: str) -> None:
    raw = random_head(kind, 2).requires_grad_(True)
    terms = yolo_loss([raw], TARGETS[:0], head_cfg(kind))
    assert (float(terms.box.detach()), float(terms.classes.detach())) == (0, 0)
    (gradient,) = torch.autograd.grad(terms.total, raw)
    assert torch.isfinite(gradient).all()
    assert (gradient != 0).any()


@pytest.mark.parametrize("kind", ["region", "gaussian_yolo"])
@pytest.mark.parametrize("size", [40.0, 1e3])
def test_wild_predictions_have_a_finite_loss_and_gradient(kind: str, size: float) -> None:
    raw = (size * random_head(kind, 1).float()).requires_grad_(True)
    loss = yolo_loss([raw], TARGETS.float(), head_cfg(kind, rescore=1) if kind == "region" else head_cfg(kind)).total
    (gradient,) = torch.autograd.grad(loss, raw)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()
