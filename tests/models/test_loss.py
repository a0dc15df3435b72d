"""The detection loss against a plain loop in Darknet's order, hand-worked numbers and its own symmetries."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from effort import examples
from prunedeploy.models import DarknetCfg, LossTerms, decode, parse_cfg, yolo_loss, yolo_losses
from prunedeploy.models.boxes import paired_iou
from prunedeploy.models.sections import Yolo

ANCHORS = ((4, 6), (9, 7), (14, 20), (30, 16))
MASKS = ((2, 3), (0, 1))
CLASSES = 3
WIDTH, HEIGHT = 48, 32


def cfg_of(**options: object) -> DarknetCfg:
    """Two heads: 16-pixel cells with anchors 2 and 3, 8-pixel cells with anchors 0 and 1."""
    extra = "\n".join(f"{key}={value}" for key, value in options.items())
    anchors = ",".join(f"{w},{h}" for w, h in ANCHORS)
    text = f"[net]\nwidth={WIDTH}\nheight={HEIGHT}\n[convolutional]\nfilters=4\nsize=8\nstride=8\n"
    for number, mask in enumerate(MASKS):
        text += "[maxpool]\nsize=2\nstride=2\n" if number == 0 else "[route]\nlayers=0\n"
        text += f"[convolutional]\nfilters={2 * (5 + CLASSES)}\n"
        text += f"[yolo]\nmask={mask[0]},{mask[1]}\nanchors={anchors}\nclasses={CLASSES}\n{extra}\n"
    return parse_cfg(text)


def random_heads(batch: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, 2 * (5 + CLASSES), 2, 3), (batch, 2 * (5 + CLASSES), 4, 6)]
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


def read_by(cfg: DarknetCfg, heads: list[Tensor]) -> list[Tensor]:
    """What the heads read: probabilities if they have new_coords."""
    head = cfg.heads[0]
    return [torch.sigmoid(raw) for raw in heads] if isinstance(head, Yolo) and head.new_coords else heads


def random_targets(counts: list[int], seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for image, count in enumerate(counts):
        for _ in range(count):
            x, y, w, h = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
            class_id = int(torch.randint(CLASSES, (1,), generator=generator))
            rows.append([image, class_id, x, y, 0.05 + 0.6 * w, 0.05 + 0.6 * h])
    return torch.tensor(rows, dtype=torch.float64).view(-1, 6)


# --- the reference: one prediction, one box, one class at a time, in plain floats ---


def logistic(t: float) -> float:
    return 1 / (1 + math.exp(-t))


def bounds(a: tuple[float, ...], b: tuple[float, ...]) -> tuple[float, float]:
    """Width and height of the box around two."""
    left, right = min(a[0] - a[2] / 2, b[0] - b[2] / 2), max(a[0] + a[2] / 2, b[0] + b[2] / 2)
    top, bottom = min(a[1] - a[3] / 2, b[1] - b[3] / 2), max(a[1] + a[3] / 2, b[1] + b[3] / 2)
    return right - left, bottom - top


def giou(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    wide, high = bounds(a, b)
    overlap = iou(a, b)
    union = (a[2] * a[3] + b[2] * b[3]) / (1 + overlap)
    return overlap - (wide * high - union) / (wide * high)


def diou(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    wide, high = bounds(a, b)
    return iou(a, b) - ((a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2) / (wide**2 + high**2)


def cross_entropy(t: float, wanted: float) -> float:
    return -(wanted * math.log(logistic(t)) + (1 - wanted) * math.log(1 - logistic(t)))


def iou(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """IoU of two (centre x, centre y, width, height)."""
    wide = min(a[0] + a[2] / 2, b[0] + b[2] / 2) - max(a[0] - a[2] / 2, b[0] - b[2] / 2)
    high = min(a[1] + a[3] / 2, b[1] + b[3] / 2) - max(a[1] - a[3] / 2, b[1] - b[3] / 2)
    overlap = max(wide, 0) * max(high, 0)
    return overlap / (a[2] * a[3] + b[2] * b[3] - overlap)


def ciou(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    v = 4 / math.pi**2 * (math.atan(b[2] / b[3]) - math.atan(a[2] / a[3])) ** 2
    return diou(a, b) - (v / (1 - iou(a, b) + v) * v if v > 0 else 0.0)


OVERLAPS = {"iou": iou, "giou": giou, "diou": diou, "ciou": ciou}


def reference_loss(heads: list[Tensor], targets: Tensor, cfg: DarknetCfg) -> dict[str, float]:
    """forward_yolo_layer's steps: first every prediction as background, then every box in its cell."""
    sums = {"box": 0.0, "objectness": 0.0, "classes": 0.0}
    for image in range(len(heads[0])):
        truths = [
            (int(t[1]), (t[2] * WIDTH, t[3] * HEIGHT, t[4] * WIDTH, t[5] * HEIGHT))
            for t in targets.tolist()
            if t[0] == image
        ]
        for raw, head in zip(heads, cfg.heads, strict=True):
            values = raw[image].tolist()
            rows, columns = raw.shape[2:]
            stretch = head.scale_x_y

            def value(a: int, v: int, j: int, i: int, values: list = values, head=head) -> float:
                """A logit, but for the numbers of a box under new_coords."""
                found = values[a * (5 + CLASSES) + v][j][i]
                return math.log(found / (1 - found)) if head.new_coords and v > 3 else found

            def box_at(a: int, j: int, i: int, head=head, columns=columns, rows=rows, value=value, stretch=stretch):
                xy, wh = ([value(a, v, j, i) for v in pair] for pair in ((0, 1), (2, 3)))
                x, y = ((p if head.new_coords else logistic(p)) * stretch - (stretch - 1) / 2 for p in xy)
                anchor = ANCHORS[head.anchor_indices[a]]
                w, h = ((2 * t) ** 2 if head.new_coords else math.exp(t) for t in wh)
                return ((x + i) / columns * WIDTH, (y + j) / rows * HEIGHT, anchor[0] * w, anchor[1] * h)

            owners: dict[tuple[int, int, int], list] = {}
            for class_id, truth in truths:
                fits = [iou((0, 0, truth[2], truth[3]), (0, 0, *anchor)) for anchor in ANCHORS]
                best = fits.index(max(fits))
                for a, n in enumerate(head.anchor_indices):
                    around_one_centre = ((0, 0, *ANCHORS[n]), (0, 0, truth[2], truth[3]))
                    if n == best or OVERLAPS[head.iou_thresh_kind](*around_one_centre) > head.iou_thresh:
                        i = min(int(truth[0] / WIDTH * columns), columns - 1)
                        j = min(int(truth[1] / HEIGHT * rows), rows - 1)
                        owners.setdefault((a, j, i), []).append((class_id, truth))
            for a in range(len(head.anchor_indices)):
                for j in range(rows):
                    for i in range(columns):
                        mine = owners.get((a, j, i), [])
                        overlap = max((iou(box_at(a, j, i), truth) for _, truth in truths), default=0.0)
                        t = value(a, 4, j, i)
                        weights = [head.class_multipliers[c] if head.class_multipliers else 1 for c, _ in mine]
                        if head.objectness_smooth and overlap > head.ignore_thresh:
                            wanted = max(weights, default=1) * cross_entropy(t, overlap)
                            sums["objectness"] += head.obj_normalizer * wanted
                        elif mine:
                            sums["objectness"] += max(weights) * head.obj_normalizer * cross_entropy(t, 1)
                        elif overlap <= head.ignore_thresh:
                            sums["objectness"] += head.obj_normalizer * cross_entropy(t, 0)
                        for (class_id, truth), multiplier in zip(mine, weights, strict=True):
                            p = logistic(value(a, 5 + class_id, j, i))
                            for c in range(CLASSES):
                                label = float(c == class_id)
                                smooth = label * (1 - head.label_smooth_eps) + head.label_smooth_eps / 2
                                term = cross_entropy(value(a, 5 + c, j, i), smooth)
                                term *= multiplier if c == class_id else 1
                                term *= -0.5 * (1 - p) * (2 * p * math.log(p) + p - 1) if head.focal_loss else 1
                                sums["classes"] += head.cls_normalizer * term
                            if head.iou_loss != "mse":
                                term = 1 - OVERLAPS[head.iou_loss](box_at(a, j, i), truth)
                                sums["box"] += head.iou_normalizer * multiplier * term
                                continue
                            weight = 2 - truth[2] / WIDTH * truth[3] / HEIGHT
                            anchor = ANCHORS[head.anchor_indices[a]]
                            if head.new_coords:
                                x, y, w, h = box_at(a, j, i)
                                term = ((x - truth[0]) / WIDTH * columns) ** 2 / 2 / stretch
                                term += ((y - truth[1]) / HEIGHT * rows) ** 2 / 2 / stretch
                                term += (math.sqrt(w / anchor[0]) - math.sqrt(truth[2] / anchor[0])) ** 2 / 8
                                term += (math.sqrt(h / anchor[1]) - math.sqrt(truth[3] / anchor[1])) ** 2 / 8
                                sums["box"] += head.iou_normalizer * multiplier * weight * term
                                continue
                            wanted_x = (truth[0] / WIDTH * columns - i + (stretch - 1) / 2) / stretch
                            wanted_y = (truth[1] / HEIGHT * rows - j + (stretch - 1) / 2) / stretch
                            term = cross_entropy(value(a, 0, j, i), wanted_x)
                            term += cross_entropy(value(a, 1, j, i), wanted_y)
                            term += (value(a, 2, j, i) - math.log(truth[2] / anchor[0])) ** 2 / 2
                            term += (value(a, 3, j, i) - math.log(truth[3] / anchor[1])) ** 2 / 2
                            sums["box"] += head.iou_normalizer * multiplier * weight * term
    return {key: total / len(heads[0]) for key, total in sums.items()}


OPTIONS = {
    "yolov3": {},
    "ignore": {"ignore_thresh": 0.1},
    "never-ignore": {"ignore_thresh": 0.99},
    "several-anchors": {"iou_thresh": 0.2},
    "ciou": {"iou_loss": "ciou", "iou_normalizer": 0.07, "obj_normalizer": 0.4, "cls_normalizer": 0.5},
    "yolov4": {"iou_loss": "ciou", "iou_thresh": 0.213, "scale_x_y": 1.2, "ignore_thresh": 0.3},
    "stretched-mse": {"scale_x_y": 1.1, "iou_normalizer": 2.5},
    "giou": {"iou_loss": "giou", "ignore_thresh": 0.11},
    "diou": {"iou_loss": "diou", "ignore_thresh": 0.12},
    "iou": {"iou_loss": "iou", "ignore_thresh": 0.13},
    "iou-thresh-kind": {"iou_thresh": 0.2, "iou_thresh_kind": "giou"},
    "smooth": {"objectness_smooth": 1, "ignore_thresh": 0.1, "label_smooth_eps": 0.1},
    "counters": {"counters_per_class": "10,5,1", "max_delta": 8, "objectness_smooth": 1, "ignore_thresh": 0.2},
    "focal": {"focal_loss": 1},
    "new-coords": {"new_coords": 1, "scale_x_y": 2.0, "iou_loss": "ciou", "iou_thresh": 0.2, "ignore_thresh": 0.3},
    "new-coords-mse": {"new_coords": 1, "scale_x_y": 1.3, "ignore_thresh": 0.3},
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_loss_equals_a_plain_loop(name: str, seed: int) -> None:
    cfg = cfg_of(**OPTIONS[name])
    heads, targets = read_by(cfg, random_heads(3, seed)), random_targets([4, 0, 9], seed)
    # The boxes are shuffled: their order is none of the loss's business.
    targets = targets[torch.randperm(len(targets), generator=torch.Generator().manual_seed(seed))]
    expected = reference_loss(heads, targets, cfg)
    terms = yolo_loss(heads, targets, cfg)
    for key, total in expected.items():
        assert float(getattr(terms, key)) == pytest.approx(total, rel=1e-9), key
    assert float(terms.total) == pytest.approx(sum(expected.values()), rel=1e-9)


@pytest.mark.parametrize("name", OPTIONS)
def test_losses_of_images_are_the_loss_of_each_alone(name: str) -> None:
    cfg = cfg_of(**OPTIONS[name])
    heads = [head.requires_grad_(True) for head in read_by(cfg, random_heads(3))]
    targets = random_targets([4, 0, 9])
    targets = targets[torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))]
    losses = yolo_losses(heads, targets, cfg)
    gradients = torch.autograd.grad(losses.sum(), heads)
    assert losses.shape == (3,)
    for index in range(3):
        own = targets[targets[:, 0] == index].clone()
        own[:, 0] = 0
        alone = [head[index : index + 1].detach().requires_grad_(True) for head in heads]
        loss = yolo_loss(alone, own, cfg).total
        torch.testing.assert_close(losses[index], loss)
        for together, gradient in zip(gradients, torch.autograd.grad(loss, alone), strict=True):
            torch.testing.assert_close(together[index : index + 1], gradient)


def test_options_change_the_loss_they_are_meant_to_change() -> None:
    # Guards the comparison above: were an option ignored by both, or without effect here, it would say nothing.
    targets = random_targets([4, 0, 9])
    cfgs = [cfg_of(**options) for options in OPTIONS.values()]
    totals = [float(yolo_loss(read_by(cfg, random_heads(3)), targets, cfg).total) for cfg in cfgs]
    assert len({round(total, 6) for total in totals}) == len(OPTIONS)


def test_a_small_example_worked_by_hand() -> None:
    # One 48 x 32 image, every logit 0 but none else. One box of class 1, centre (36, 8), 9 x 7 pixels: exactly
    # anchor 1, so it belongs to the second head (8-pixel cells), anchor place 1, column 4 (36 / 8 = 4.5), row 1
    # (8 / 8 = 1.0).
    cfg = cfg_of(ignore_thresh=0.99)
    heads = [torch.zeros(1, 16, 2, 3, dtype=torch.float64), torch.zeros(1, 16, 4, 6, dtype=torch.float64)]
    targets = torch.tensor([[0.0, 1, 36 / 48, 8 / 32, 9 / 48, 7 / 32]], dtype=torch.float64)
    terms = yolo_loss(heads, targets, cfg)
    ln2 = math.log(2)
    # A logit of 0 costs ln 2 whatever is wanted: 2 * 2 * 3 + 2 * 4 * 6 = 60 predictions, 3 classes.
    assert float(terms.objectness) == pytest.approx(60 * ln2)
    assert float(terms.classes) == pytest.approx(3 * ln2)
    # x and y cost ln 2 each, w and h nothing (the anchor fits); small boxes count up to double.
    assert float(terms.box) == pytest.approx((2 - 9 * 7 / (48 * 32)) * 2 * ln2)


def test_a_prediction_that_overlaps_a_box_enough_is_ignored() -> None:
    # As above, but with all logits 0 the prediction of anchor 1 in the box's own cell and the cell above it,
    # centred at (36, 12) and (36, 4), overlap the 9 x 7 box at (36, 8) by 9 * 3 / (2 * 63 - 27) = 0.2727.
    heads = [torch.zeros(1, 16, 2, 3, dtype=torch.float64), torch.zeros(1, 16, 4, 6, dtype=torch.float64)]
    targets = torch.tensor([[0.0, 1, 36 / 48, 8 / 32, 9 / 48, 7 / 32]], dtype=torch.float64)
    counts = {
        threshold: round(float(yolo_loss(heads, targets, cfg_of(ignore_thresh=threshold)).objectness / math.log(2)))
        for threshold in (0.2726, 0.2728)
    }
    # Of the two, the box's own prediction is never ignored.
    assert counts[0.2728] - counts[0.2726] == 1


@pytest.mark.parametrize("name", ["yolov3", "several-anchors", "yolov4", "stretched-mse", "giou", "new-coords-mse"])
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    cfg = cfg_of(**OPTIONS[name])
    targets = random_targets([2, 3], seed=4)
    heads = [raw[:, :, :2, :2].contiguous().requires_grad_(True) for raw in read_by(cfg, random_heads(2, seed=4))]
    assert torch.autograd.gradcheck(
        lambda *h: _without_trade_off(h, targets, cfg), heads, atol=1e-6, rtol=1e-4, fast_mode=True
    )


def _without_trade_off(heads: tuple[Tensor, ...], targets: Tensor, cfg: DarknetCfg) -> tuple[Tensor, ...]:
    """CIoU's trade-off is a constant to the gradient by definition, which finite differences cannot know."""
    terms = yolo_loss(list(heads), targets, cfg)
    if cfg.heads[0].iou_loss == "ciou":
        return terms.objectness, terms.classes
    return terms.box, terms.objectness, terms.classes


def test_the_gradient_of_complete_iou_is_that_of_finite_differences_at_a_fixed_trade_off() -> None:
    truth = torch.tensor([[10.0, 9, 6, 4], [3, 3, 2, 5]], dtype=torch.float64)
    predicted = torch.tensor([[11.0, 8, 5, 7], [9, 9, 3, 3]], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(paired_iou(predicted, truth, "ciou").sum(), predicted)
    h = 1e-6
    for row in range(2):
        a0, b = tuple(predicted[row].tolist()), tuple(truth[row].tolist())
        v0 = 4 / math.pi**2 * (math.atan(b[2] / b[3]) - math.atan(a0[2] / a0[3])) ** 2
        alpha = v0 / (1 - iou(a0, b) + v0)
        for k in range(4):
            ends = []
            for sign in (1, -1):
                a = tuple(value + sign * h * (n == k) for n, value in enumerate(a0))
                v = 4 / math.pi**2 * (math.atan(b[2] / b[3]) - math.atan(a[2] / a[3])) ** 2
                moving = v / (1 - iou(a, b) + v)
                ends.append(ciou(a, b) + moving * v - alpha * v)
            assert float(gradient[row, k]) == pytest.approx((ends[0] - ends[1]) / (2 * h), abs=1e-6)


@dataclass
class HasCfg:
    cfg: DarknetCfg


# --- symmetries ---


@settings(max_examples=examples(15))
@given(seed=st.integers(0, 10**6), counts=st.lists(st.integers(0, 5), min_size=1, max_size=4))
@pytest.mark.parametrize("name", ["yolov3", "yolov4"])
def test_the_loss_of_a_batch_is_the_mean_of_its_images(name: str, seed: int, counts: list[int]) -> None:
    cfg = cfg_of(**OPTIONS[name])
    heads, targets = random_heads(len(counts), seed), random_targets(counts, seed)
    whole = yolo_loss(heads, targets, cfg)
    alone = []
    for image in range(len(counts)):
        own = targets[targets[:, 0] == image].clone()
        own[:, 0] = 0
        alone.append(yolo_loss([head[image : image + 1] for head in heads], own, cfg))
    for key in ("box", "objectness", "classes", "total"):
        mean = sum(float(getattr(terms, key)) for terms in alone) / len(alone)
        assert float(getattr(whole, key)) == pytest.approx(mean, rel=1e-9, abs=1e-12)


def test_the_gradient_of_an_image_does_not_depend_on_its_batch_mates() -> None:
    cfg = cfg_of(iou_thresh=0.2)
    heads, targets = random_heads(3, 7), random_targets([3, 5, 0], 7)
    for head in heads:
        head.requires_grad_(True)
    together = torch.autograd.grad(yolo_loss(heads, targets, cfg).total, heads)
    for image in range(3):
        own = targets[targets[:, 0] == image].clone()
        own[:, 0] = 0
        alone = [head[image : image + 1].detach().requires_grad_(True) for head in heads]
        gradients = torch.autograd.grad(yolo_loss(alone, own, cfg).total, alone)
        for whole, part in zip(together, gradients, strict=True):
            torch.testing.assert_close(whole[image] * 3, part[0])


def test_images_without_boxes_cost_objectness_only() -> None:
    cfg = cfg_of()
    heads = [head.requires_grad_(True) for head in random_heads(2)]
    terms = yolo_loss(heads, torch.zeros(0, 6, dtype=torch.float64), cfg)
    assert float(terms.box.detach()) == 0
    assert float(terms.classes.detach()) == 0
    logits = torch.cat([head.split(raw.detach())[..., 4].flatten() for raw, head in zip(heads, cfg.heads, strict=True)])
    expected = sum(cross_entropy(t, 0) for t in logits.tolist()) / 2
    assert float(terms.objectness.detach()) == pytest.approx(expected)
    terms.total.backward()
    assert all(bool(torch.isfinite(head.grad).all()) for head in heads)


def logit(p: float) -> float:
    return math.log(p / (1 - p))


@pytest.mark.parametrize("stretch", [1.0, 1.3])
def test_the_box_term_is_least_where_the_decoded_box_is_the_truth(stretch: float) -> None:
    # Centre (19.5, 18.4) lies in column 2, row 2 of the 8-pixel cells; 8.5 x 7.2 pixels fit anchor 1, place 1.
    x, y, w, h = 19.5, 18.4, 8.5, 7.2
    targets = torch.tensor([[0.0, 0, x / WIDTH, y / HEIGHT, w / WIDTH, h / HEIGHT]], dtype=torch.float64)
    heads = random_heads(1)
    offsets = [(x / 8 - 2 + (stretch - 1) / 2) / stretch, (y / 8 - 2 + (stretch - 1) / 2) / stretch]
    sizes = [math.log(w / ANCHORS[1][0]), math.log(h / ANCHORS[1][1])]
    heads[1][0, 8:12, 2, 2] = torch.tensor([*map(logit, offsets), *sizes], dtype=torch.float64)
    mse, ciou_cfg = cfg_of(scale_x_y=stretch), cfg_of(scale_x_y=stretch, iou_loss="ciou")

    boxes, _ = decode(heads, HasCfg(mse))
    wanted = torch.tensor([x - w / 2, y - h / 2, x + w / 2, y + h / 2], dtype=torch.float64)
    assert float((boxes[0] - wanted).abs().amax(1).min()) < 1e-9

    assert float(yolo_loss(heads, targets, ciou_cfg).box) == pytest.approx(0, abs=1e-9)
    heads[1].requires_grad_(True)
    (gradient,) = torch.autograd.grad(yolo_loss(heads, targets, mse).box, heads[1])
    assert float(gradient.abs().max()) < 1e-9


def test_a_prediction_far_too_large_still_learns_to_shrink() -> None:
    cfg = cfg_of()
    heads = random_heads(1)
    targets = torch.tensor([[0.0, 1, 36.5 / 48, 8.5 / 32, 9 / 48, 7 / 32]], dtype=torch.float64)
    heads[1][0, 8 + 2, 1, 4] = 30.0  # tw of anchor place 1 in the box's cell
    heads[1].requires_grad_(True)
    loss = yolo_loss(heads, targets, cfg).total
    assert math.isfinite(loss.item())
    loss.backward()
    assert float(heads[1].grad[0, 8 + 2, 1, 4]) > 1


@pytest.mark.parametrize("name", ["yolov3", "yolov4", "giou", "smooth", "new-coords", "new-coords-mse", "focal"])
def test_extreme_logits_give_a_finite_loss_and_gradient(name: str) -> None:
    cfg = cfg_of(**OPTIONS[name])
    heads = [raw.requires_grad_(True) for raw in read_by(cfg, [1e3 * raw.float() for raw in random_heads(2)])]
    loss = yolo_loss(heads, random_targets([3, 2]).float(), cfg).total
    assert math.isfinite(loss.item())
    loss.backward()
    assert all(bool(torch.isfinite(head.grad).all()) for head in heads)


def test_half_precision_heads_are_computed_in_float32() -> None:
    heads = [head.bfloat16() for head in random_heads(2)]
    targets, cfg = random_targets([3, 2]).float(), cfg_of()
    terms = yolo_loss(heads, targets, cfg)
    assert terms.total.dtype == torch.float32
    expected = yolo_loss([head.float() for head in heads], targets, cfg)
    torch.testing.assert_close(terms.total, expected.total)


def test_boxes_on_the_far_edge_fall_into_the_last_cell() -> None:
    targets = torch.tensor([[0.0, 0, 1.0, 1.0, 0.1, 0.1]], dtype=torch.float64)
    terms: LossTerms = yolo_loss(random_heads(1), targets, cfg_of())
    assert math.isfinite(float(terms.total))
    assert float(terms.classes) > 0


def test_wrong_shapes_are_refused_with_the_shape() -> None:
    cfg = cfg_of()
    with pytest.raises(ValueError, match=r"targets \(T, 6\), got \(3, 5\)"):
        yolo_loss(random_heads(1), torch.zeros(3, 5), cfg)
    with pytest.raises(ValueError, match="expected 2 heads, got 1"):
        yolo_loss(random_heads(1)[:1], torch.zeros(0, 6), cfg)
    with pytest.raises(ValueError, match=r"expected 16 channels, got \(1, 15, 2, 3\)"):
        yolo_loss([torch.zeros(1, 15, 2, 3), torch.zeros(1, 16, 4, 6)], torch.zeros(0, 6), cfg)
