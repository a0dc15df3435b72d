"""YOLOX's loss against a plain loop of the papers, hand-worked numbers and its own symmetries."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from models.anchor_free_reference import objects_of
from models.test_anchor_free_loss import CLASSES, HEIGHT, STRIDES, WIDTH, random_targets
from models.yolox_reference import owners_of, points_of, terms_of
from prunedeploy.models.yolox_loss import yolox_assignment, yolox_terms

TERMS = ("box", "objectness", "classes")


def random_heads(batch: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Boxes of 2 to 8 cells near their points, so that some fit, and scores of all sizes."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, 5 + CLASSES, int(HEIGHT / stride), int(WIDTH / stride)) for stride in STRIDES]
    heads = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    for raw in heads:
        raw[:, :2] = 0.5 + 0.5 * raw[:, :2]
        raw[:, 2:4] = 1.2 + 0.3 * raw[:, 2:4]
        raw[:, 4:] *= 2
    return [raw.to(dtype) for raw in heads]


def total(heads: list[Tensor], targets: Tensor) -> Tensor:
    return torch.stack(yolox_terms(heads, STRIDES, targets)).sum(0)


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_the_loss_equals_a_plain_loop(seed: int) -> None:
    counts = [4, 0, 25, 1]
    heads, targets = random_heads(len(counts), seed), random_targets(counts, seed)
    terms = yolox_terms(heads, STRIDES, targets)
    assignment = yolox_assignment(heads, STRIDES, targets)
    for image in range(len(counts)):
        points = points_of(heads, list(STRIDES), image)
        objects = objects_of(targets, image, WIDTH, HEIGHT)
        owners = owners_of(points, objects)
        own = (assignment.image == image).nonzero()[:, 0].tolist()
        # The loop counts the objects of an image; where they are in `targets` is what it leaves out.
        row = (targets[:, 0] == image).nonzero()[:, 0].tolist()
        found = {int(assignment.point[n]): int(assignment.target[n]) for n in own}
        assert found == {p: row[owner.object] for p, owner in owners.items()}
        for n in own:
            assert float(assignment.alignment[n]) == pytest.approx(owners[int(assignment.point[n])].overlap, rel=1e-9)
        for term, (name, value) in zip(terms, terms_of(points, objects, owners).items(), strict=True):
            assert float(term[image]) == pytest.approx(value, rel=1e-9), (image, name)


def test_crowded_images_have_contested_points_and_objects_with_several() -> None:
    # Guards the comparison above: without them it would say nothing of whose they are, or of how many.
    heads, targets = random_heads(1), random_targets([25])
    together = yolox_assignment(heads, STRIDES, targets)
    alone = [yolox_assignment(heads, STRIDES, row[None]).point for row in targets]
    assert len(torch.cat(alone)) > len(together.point) == len(together.point.unique())
    assert max(len(points) for points in alone) > 2


def test_a_small_example_worked_by_hand() -> None:
    # 16 x 8 pixels, 2 cells; all numbers 0: boxes of one cell around the cells' left upper corners, all scores 1/2. One
    # object of class 1 has the box of the left cell's prediction, (-4, -4, 4, 4): IoU 1, and 0 with the other. k is 1.
    raw = torch.zeros(1, 5 + CLASSES, 1, 2, dtype=torch.float64)
    targets = torch.tensor([[0.0, 1, 0, 0, 0.5, 1]], dtype=torch.float64)
    box, objectness, classes = yolox_terms([raw], [8.0], targets)
    assert float(box) == pytest.approx(0.0, abs=1e-12)
    assert float(objectness) == pytest.approx(2 * math.log(2))
    assert float(classes) == pytest.approx(3 * math.log(2))
    # Half as wide: the prediction is twice the object, IoU 1/2, which is what the class is wanted to score.
    targets[0, 4] = 0.25
    raw[0, 5 + 1] = math.log(3)  # a score of 3/4
    box, objectness, classes = yolox_terms([raw], [8.0], targets)
    assert float(box) == pytest.approx(5 * (1 - 1 / 4))
    assert float(objectness) == pytest.approx(2 * math.log(2))
    assert float(classes) == pytest.approx(2 * math.log(2) - math.log(3 / 4) / 2 - math.log(1 / 4) / 2)


def test_losses_of_images_are_the_loss_of_each_alone() -> None:
    heads, targets = [raw.requires_grad_() for raw in random_heads(4)], random_targets([4, 0, 25, 1])
    terms = yolox_terms(heads, STRIDES, targets)
    gradients = torch.autograd.grad(torch.stack(terms).sum(), heads)
    for index in range(4):
        own = targets[targets[:, 0] == index].clone()
        own[:, 0] = 0
        alone = [raw[index : index + 1].detach().requires_grad_() for raw in heads]
        expected = yolox_terms(alone, STRIDES, own)
        for together, value in zip(terms, expected, strict=True):
            torch.testing.assert_close(together[index : index + 1], value)
        for both, gradient in zip(gradients, torch.autograd.grad(torch.stack(expected).sum(), alone), strict=True):
            torch.testing.assert_close(both[index : index + 1], gradient)


def test_the_order_of_objects_does_not_matter() -> None:
    heads, targets = random_heads(2), random_targets([9, 7])
    torch.testing.assert_close(yolox_terms(heads, STRIDES, targets.flip(0)), yolox_terms(heads, STRIDES, targets))


def test_an_image_without_objects_has_its_objectness_alone() -> None:
    heads = [raw.requires_grad_() for raw in random_heads(2)]
    box, objectness, classes = yolox_terms(heads, STRIDES, torch.zeros(0, 6))
    assert box.tolist() == classes.tolist() == [0.0, 0.0]
    logits = torch.cat([raw[:, 4].flatten(1) for raw in heads], dim=1)
    torch.testing.assert_close(objectness, -torch.log(1 - torch.sigmoid(logits)).sum(1))
    gradients = torch.autograd.grad(objectness.sum() + box.sum() + classes.sum(), heads)
    for gradient in gradients:
        assert (gradient[:, 4] > 0).all()
        assert (gradient[:, :4] == 0).all()
        assert (gradient[:, 5:] == 0).all()


def test_a_border_of_padding_adds_its_objectness_and_nothing_else() -> None:
    # The same image as the upper part of a higher one: objects keep their pixels.
    heads, targets = random_heads(1), random_targets([6])
    padded = [torch.nn.functional.pad(raw, (0, 0, 0, raw.shape[2] // 2)) for raw in heads]
    higher = targets.clone()
    higher[:, [3, 5]] /= 1.5
    targets[:, 3] = targets[:, 3].clamp(max=0.6)  # nothing within two cells of the padding
    higher[:, 3] = targets[:, 3] / 1.5
    box, objectness, classes = yolox_terms(heads, STRIDES, targets)
    padded_terms = yolox_terms(padded, STRIDES, higher)
    torch.testing.assert_close(padded_terms[0], box)
    torch.testing.assert_close(padded_terms[2], classes)
    matches = len(yolox_assignment(heads, STRIDES, targets).point)
    added = sum(new[0, 4].numel() - old[0, 4].numel() for new, old in zip(padded, heads, strict=True))
    torch.testing.assert_close(padded_terms[1], objectness + added * math.log(2) / matches)


def test_gradients_are_those_of_finite_differences() -> None:
    # At a fixed assignment, which has no gradient.
    heads, targets = random_heads(2, seed=3), random_targets([3, 1], seed=3, least=0.2)
    heads = [raw.requires_grad_() for raw in heads]
    fixed = yolox_assignment(heads, STRIDES, targets)
    assert len(fixed.point) > 4

    def terms(*raw: Tensor) -> tuple[Tensor, ...]:
        return yolox_terms(raw, STRIDES, targets, fixed)

    assert torch.autograd.gradcheck(terms, heads, atol=1e-6, rtol=1e-4, fast_mode=True)


def test_the_gradient_of_a_class_term_leaves_boxes_alone() -> None:
    heads, targets = [raw.requires_grad_() for raw in random_heads(1)], random_targets([5])
    _, _, classes = yolox_terms(heads, STRIDES, targets)
    for gradient in torch.autograd.grad(classes.sum(), heads):
        assert (gradient[:, :5] == 0).all()
    assert not yolox_assignment(heads, STRIDES, targets).alignment.requires_grad


def test_a_fixed_assignment_is_what_the_loss_uses() -> None:
    clean, targets = random_heads(2), random_targets([5, 3])
    fixed = yolox_assignment(clean, STRIDES, targets)
    torch.testing.assert_close(yolox_terms(clean, STRIDES, targets, fixed), yolox_terms(clean, STRIDES, targets))
    other = random_heads(2, seed=8)
    kept = torch.stack(yolox_terms(other, STRIDES, targets, fixed)).sum(0)
    assert not torch.isclose(kept, total(other, targets)).any()


def test_sums_by_object_are_the_terms_without_objectness() -> None:
    heads, targets = random_heads(3), random_targets([5, 0, 8])

    def per_target(values: Tensor, image: Tensor, target: Tensor | None) -> Tensor:
        if target is None:
            return values.new_zeros(len(targets))
        assert (targets[target, 0] == image).all()
        return values.new_zeros(len(targets)).index_add(0, target, values.flatten(1).sum(1))

    found = yolox_terms(heads, STRIDES, targets, reduce=per_target)
    images = yolox_terms(heads, STRIDES, targets)
    for place in (0, 2):
        summed = torch.zeros(3, dtype=torch.float64).index_add(0, targets[:, 0].long(), found[place])
        torch.testing.assert_close(summed, images[place])
    assert found[1].tolist() == [0.0] * len(targets)


def test_single_and_half_precision_are_computed_in_single() -> None:
    heads, targets = random_heads(2), random_targets([5, 3]).float()
    half = [raw.bfloat16() for raw in heads]
    expected = yolox_terms([raw.float() for raw in half], STRIDES, targets)
    with torch.autocast("cpu", torch.bfloat16):
        found = yolox_terms(half, STRIDES, targets)
    assert {value.dtype for value in found} == {torch.float32}
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    double = yolox_terms([raw.double() for raw in half], STRIDES, targets)
    torch.testing.assert_close(found, tuple(value.float() for value in double), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scale", [1e2, 1e4])
def test_gradients_of_the_surest_mistakes_are_finite(scale: float) -> None:
    targets = random_targets([5, 3]).float()
    heads = [(scale * raw).requires_grad_() for raw in random_heads(2, dtype=torch.float32)]
    loss = total(heads, targets)
    gradients = torch.autograd.grad(loss.sum(), heads)
    assert loss.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert any((gradient[:, 4] != 0).any() for gradient in gradients)


def test_shapes_that_do_not_fit_are_named() -> None:
    heads, targets = random_heads(2), random_targets([1, 1])
    with pytest.raises(ValueError, match=r"targets \(T, 6\), got \(2, 5\)"):
        yolox_terms(heads, STRIDES, targets[:, :5])
    with pytest.raises(ValueError, match=r"\(B, 5 \+ classes, H, W\).*\(2, 5, 8, 12\)"):
        yolox_terms([raw[:, :5] for raw in heads], STRIDES, targets)
