"""The loss of anchor-free heads against a plain loop of the papers, hand-worked numbers and its own symmetries."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest
import torch
from torch import Tensor

from models.anchor_free_reference import objects_of, owners_of, points_of, terms_of, trade_off
from prunedeploy.models.anchor_free_loss import AnchorFreeTerms, anchor_free_assignment, anchor_free_terms

CLASSES, BINS = 3, 5
STRIDES = (8.0, 16.0)
WIDTH, HEIGHT = 96, 64
TERMS = [field.name for field in fields(AnchorFreeTerms)]


def random_heads(batch: int, seed: int = 0, bins: int = BINS) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, 4 * bins + CLASSES, int(HEIGHT / stride), int(WIDTH / stride)) for stride in STRIDES]
    return [2 * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def random_targets(counts: list[int], seed: int = 0, least: float = 0.02) -> Tensor:
    """Objects of all sizes, some smaller than a cell and some over the border, in any order."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.rand(sum(counts), 6, generator=generator, dtype=torch.float64)
    rows[:, 0] = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    rows[:, 1] = torch.randint(CLASSES, (len(rows),), generator=generator)
    rows[:, 4:] = least + 0.6 * rows[:, 4:] ** 2
    return rows[torch.randperm(len(rows), generator=generator)]


def by_name(terms: AnchorFreeTerms) -> dict[str, Tensor]:
    return {name: getattr(terms, name) for name in TERMS}


@pytest.mark.parametrize("bins", [BINS, 16])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_loss_equals_a_plain_loop(seed: int, bins: int) -> None:
    counts = [4, 0, 25, 1]
    heads, targets = random_heads(len(counts), seed, bins), random_targets(counts, seed)
    terms = anchor_free_terms(heads, STRIDES, targets, bins)
    assignment = anchor_free_assignment(heads, STRIDES, targets, bins)
    for image in range(len(counts)):
        points = points_of(heads, list(STRIDES), image, bins)
        objects = objects_of(targets, image, WIDTH, HEIGHT)
        owners = owners_of(points, objects)
        own = (assignment.image == image).nonzero()[:, 0].tolist()
        # The loop counts the objects of an image; where they are in `targets` is what it leaves out.
        row = (targets[:, 0] == image).nonzero()[:, 0].tolist()
        found = {int(assignment.point[n]): int(assignment.target[n]) for n in own}
        assert found == {p: row[owner.object] for p, owner in owners.items()}
        for n in own:
            assert float(assignment.alignment[n]) == pytest.approx(owners[int(assignment.point[n])].wanted, rel=1e-9)
        for name, value in terms_of(points, objects, owners).items():
            assert float(getattr(terms, name)[image]) == pytest.approx(value, rel=1e-9), (image, name)


def test_crowded_images_have_contested_points() -> None:
    # Guards the comparison above: without them it would say nothing of whose they are.
    heads, targets = random_heads(1), random_targets([25])
    together = anchor_free_assignment(heads, STRIDES, targets, BINS)
    alone = [anchor_free_assignment(heads, STRIDES, row[None], BINS).point for row in targets]
    assert len(torch.cat(alone)) > len(together.point) == len(together.point.unique())


def test_a_small_example_worked_by_hand() -> None:
    # 16 x 8 pixels, 2 cells, 2 bins of equal logits: every side 1/2 a cell away, so that the boxes are the cells. One
    # object of class 1, the left cell. Its prediction fits: u = 1, wanted score 1, n = 1.
    raw = torch.zeros(1, 4 * 2 + CLASSES, 1, 2, dtype=torch.float64)
    targets = torch.tensor([[0.0, 1, 0.25, 0.5, 0.5, 1]], dtype=torch.float64)
    terms = anchor_free_terms([raw], [8.0], targets, bins=2)
    ln2 = math.log(2)
    assert float(terms.box) == pytest.approx(0.0, abs=1e-12)
    assert float(terms.dfl) == pytest.approx(1.5 * ln2)  # either bin has probability 1/2
    assert float(terms.classes) == pytest.approx(0.5 * 3 * ln2)
    assert float(terms.background) == pytest.approx(0.5 * 3 * ln2)
    assert float(terms.total) == pytest.approx(4.5 * ln2)


def test_losses_of_images_are_the_loss_of_each_alone() -> None:
    heads, targets = [raw.requires_grad_() for raw in random_heads(4)], random_targets([4, 0, 25, 1])
    terms = anchor_free_terms(heads, STRIDES, targets, BINS)
    gradients = torch.autograd.grad(terms.total.sum(), heads)
    for index in range(4):
        own = targets[targets[:, 0] == index].clone()
        own[:, 0] = 0
        alone = [raw[index : index + 1].detach().requires_grad_() for raw in heads]
        expected = anchor_free_terms(alone, STRIDES, own, BINS)
        for name, value in by_name(expected).items():
            torch.testing.assert_close(getattr(terms, name)[index : index + 1], value)
        for together, gradient in zip(gradients, torch.autograd.grad(expected.total.sum(), alone), strict=True):
            torch.testing.assert_close(together[index : index + 1], gradient)


def test_the_order_of_objects_does_not_matter() -> None:
    heads, targets = random_heads(2), random_targets([9, 7])
    expected = by_name(anchor_free_terms(heads, STRIDES, targets, BINS))
    found = by_name(anchor_free_terms(heads, STRIDES, targets.flip(0), BINS))
    torch.testing.assert_close(found, expected)


def test_an_image_without_objects_has_its_background_alone() -> None:
    heads = [raw.requires_grad_() for raw in random_heads(2)]
    terms = anchor_free_terms(heads, STRIDES, torch.zeros(0, 6), BINS)
    for name in ("box", "dfl", "classes"):
        assert getattr(terms, name).tolist() == [0.0, 0.0]
    logits = torch.cat([raw[:, 4 * BINS :].flatten(1) for raw in heads], dim=1)
    torch.testing.assert_close(terms.background, -0.5 * torch.log(1 - torch.sigmoid(logits)).sum(1))
    gradients = torch.autograd.grad(terms.total.sum(), heads)
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert all((gradient[:, : 4 * BINS] == 0).all() for gradient in gradients)


def test_objects_without_a_point_train_nothing() -> None:
    heads = random_heads(1)
    # 2 x 2 pixels around a corner of four cells of the finest scale.
    targets = torch.tensor([[0, 0, 16 / WIDTH, 16 / HEIGHT, 2 / WIDTH, 2 / HEIGHT]], dtype=torch.float64)
    found = by_name(anchor_free_terms(heads, STRIDES, targets, BINS))
    torch.testing.assert_close(found, by_name(anchor_free_terms(heads, STRIDES, targets[:0], BINS)))


def test_the_class_terms_add_up_to_the_cross_entropy_of_all_points() -> None:
    heads, targets = random_heads(1), random_targets([9])
    terms = anchor_free_terms(heads, STRIDES, targets, BINS)
    found = anchor_free_assignment(heads, STRIDES, targets, BINS)
    logits = torch.cat([raw[0, 4 * BINS :].flatten(1) for raw in heads], dim=1).T  # (N, C)
    wanted = torch.zeros_like(logits)
    wanted[found.point, targets[found.target, 1].long()] = found.alignment
    p = torch.sigmoid(logits)
    expected = -(wanted * p.log() + (1 - wanted) * (1 - p).log()).sum() / wanted.sum().clamp(min=1)
    torch.testing.assert_close((terms.classes + terms.background)[0], expected * 0.5)


def test_gradients_are_those_of_finite_differences() -> None:
    # At a fixed assignment, which has no gradient. CIoU's trade-off has none either: see the next test.
    heads, targets = random_heads(2, seed=3), random_targets([3, 1], seed=3, least=0.2)
    heads = [raw.requires_grad_() for raw in heads]
    fixed = anchor_free_assignment(heads, STRIDES, targets, BINS)
    assert len(fixed.point) > 10

    def others(*raw: Tensor) -> tuple[Tensor, ...]:
        terms = anchor_free_terms(raw, STRIDES, targets, BINS, fixed)
        return terms.dfl, terms.classes, terms.background

    assert torch.autograd.gradcheck(others, heads, atol=1e-6, rtol=1e-4, fast_mode=True)


def test_the_gradient_of_the_box_term_is_that_of_the_loop_at_a_fixed_trade_off() -> None:
    heads, targets = random_heads(1, seed=3), random_targets([4], seed=3, least=0.2)
    for raw in heads:
        raw.requires_grad_()
    (gradient, _) = torch.autograd.grad(anchor_free_terms(heads, STRIDES, targets, BINS).box.sum(), heads)
    heads = [raw.detach() for raw in heads]
    points, objects = points_of(heads, list(STRIDES), 0, BINS), objects_of(targets, 0, WIDTH, HEIGHT)
    owners = owners_of(points, objects)
    trade_offs = {p: trade_off(points[p].box, objects[owner.object][1]) for p, owner in owners.items()}
    columns = heads[0].shape[3]
    finest = [p for p in owners if p < heads[0].shape[2] * columns][:6]
    assert len(finest) == 6
    h = 1e-6
    for p in finest:
        for side in range(4):
            for k in range(BINS):
                ends = []
                for sign in (1, -1):
                    points[p].bins[side][k] += sign * h
                    ends.append(terms_of(points, objects, owners, trade_offs)["box"])
                    points[p].bins[side][k] -= sign * h
                expected = (ends[0] - ends[1]) / (2 * h)
                assert float(gradient[0, side * BINS + k, p // columns, p % columns]) == pytest.approx(
                    expected, abs=1e-7
                )
    assert gradient.abs().max() > 1e-3


def test_a_fixed_assignment_is_what_the_loss_uses() -> None:
    clean, targets = random_heads(2), random_targets([5, 3])
    fixed = anchor_free_assignment(clean, STRIDES, targets, BINS)
    own = by_name(anchor_free_terms(clean, STRIDES, targets, BINS))
    torch.testing.assert_close(by_name(anchor_free_terms(clean, STRIDES, targets, BINS, fixed)), own)
    other = random_heads(2, seed=8)
    kept = anchor_free_terms(other, STRIDES, targets, BINS, fixed)
    assert not torch.isclose(kept.total, anchor_free_terms(other, STRIDES, targets, BINS).total).any()


def test_an_object_that_is_lost_has_a_low_loss_unless_the_assignment_is_kept() -> None:
    # One object of 64 x 64 pixels, found poorly (scores of exp(-4), random boxes); then lost, with scores of exp(-20)
    # and boxes of 0.05 cells around every point.
    targets = torch.tensor([[0, 0, 32 / WIDTH, 32 / HEIGHT, 64 / WIDTH, 64 / HEIGHT]], dtype=torch.float64)
    poor, lost = random_heads(1), random_heads(1)
    for raw in poor + lost:
        raw[:, 4 * BINS :] = -4.0
    for raw in lost:
        raw[:, 4 * BINS :] = -20.0
        raw[:, : 4 * BINS] = 0.0
        raw[:, : 4 * BINS : BINS] = 6.0  # bin 0
    fixed = anchor_free_assignment(poor, STRIDES, targets, BINS)
    of_poor = anchor_free_terms(poor, STRIDES, targets, BINS).total
    assert anchor_free_terms(lost, STRIDES, targets, BINS).total < 0.5 * of_poor
    assert anchor_free_terms(lost, STRIDES, targets, BINS, fixed).total > 2 * of_poor


def test_sums_by_object_are_the_terms_without_the_background() -> None:
    heads, targets = random_heads(3), random_targets([5, 0, 8])

    def per_target(values: Tensor, image: Tensor, target: Tensor | None) -> Tensor:
        if target is None:
            return values.new_zeros(len(targets))
        assert (targets[target, 0] == image).all()
        return values.new_zeros(len(targets)).index_add(0, target, values.flatten(1).sum(1))

    found = anchor_free_terms(heads, STRIDES, targets, BINS, reduce=per_target)
    images = anchor_free_terms(heads, STRIDES, targets, BINS)
    for name in ("box", "dfl", "classes"):
        each = getattr(found, name)
        assert each.shape == (len(targets),)
        summed = torch.zeros(3, dtype=torch.float64).index_add(0, targets[:, 0].long(), each)
        torch.testing.assert_close(summed, getattr(images, name))
    assert found.background.tolist() == [0.0] * len(targets)


def test_single_and_half_precision_are_computed_in_single() -> None:
    heads, targets = random_heads(2), random_targets([5, 3]).float()
    half = [raw.bfloat16() for raw in heads]
    expected = by_name(anchor_free_terms([raw.float() for raw in half], STRIDES, targets, BINS))
    with torch.autocast("cpu", torch.bfloat16):
        found = by_name(anchor_free_terms(half, STRIDES, targets, BINS))
    assert {value.dtype for value in found.values()} == {torch.float32}
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    double = by_name(anchor_free_terms([raw.double() for raw in half], STRIDES, targets, BINS))
    torch.testing.assert_close(found, {name: value.float() for name, value in double.items()}, rtol=1e-4, atol=1e-6)


def test_gradients_of_the_surest_mistakes_are_finite() -> None:
    targets = random_targets([5, 3])
    heads = [(1e4 * raw.float()).requires_grad_() for raw in random_heads(2)]
    terms = anchor_free_terms(heads, STRIDES, targets, BINS)
    gradients = torch.autograd.grad(terms.total.sum(), heads)
    assert terms.total.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_shapes_that_do_not_fit_are_named() -> None:
    heads, targets = random_heads(2), random_targets([1, 1])
    with pytest.raises(ValueError, match=r"targets \(T, 6\), got \(2, 5\)"):
        anchor_free_terms(heads, STRIDES, targets[:, :5], BINS)
    with pytest.raises(ValueError, match="2 heads and 1 strides"):
        anchor_free_terms(heads, STRIDES[:1], targets, BINS)
    with pytest.raises(ValueError, match=r"\(B, 64 \+ classes, H, W\).*\(2, 23, 8, 12\)"):
        anchor_free_terms(heads, STRIDES, targets, 16)
    with pytest.raises(ValueError, match=r"with strides \[8.0, 32.0\] are not of one input size"):
        anchor_free_terms(heads, (8.0, 32.0), targets, BINS)
