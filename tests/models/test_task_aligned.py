"""Task-aligned assignment: numbers worked by hand, and the places where there is nothing or too much to assign."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from prunedeploy.models.task_aligned import TOP_K, Assignment, task_aligned_assignment

DOUBLE = torch.float64


def grid(rows: int, columns: int, stride: float = 8) -> Tensor:
    """Anchor points by row, then column."""
    places = [((i + 0.5) * stride, (j + 0.5) * stride) for j in range(rows) for i in range(columns)]
    return torch.tensor(places, dtype=DOUBLE)


def assign(
    points: Tensor,
    objects: list[tuple[int, tuple[float, float, float, float]]],
    predicted: Tensor | tuple[float, ...],
    logits: Tensor | None = None,
) -> Assignment:
    """One image with 3 classes; objects as (class, centre and size), one predicted box for all points or one each."""
    boxes = torch.as_tensor(predicted, dtype=DOUBLE).expand(len(points), 4)
    logits = torch.zeros(len(points), 3, dtype=DOUBLE) if logits is None else logits
    truth = torch.tensor([box for _, box in objects], dtype=DOUBLE).view(-1, 4)
    targets = torch.zeros(len(objects), 6, dtype=DOUBLE)
    targets[:, 1] = torch.tensor([class_id for class_id, _ in objects])
    return task_aligned_assignment(logits[None], boxes[None], points, targets, truth)


def test_wanted_scores_worked_by_hand() -> None:
    # Points at x = 4, 12, 20; one object over the left two. Their boxes: one 16 x 8 as the object is, one 8 x 8 around
    # its point (12, 4): IoU 1/2, centres 4 apart, enclosing 16 x 8, atan 2 against atan 1.
    points = grid(1, 3)
    predicted = torch.tensor([[8.0, 4, 16, 8], [12, 4, 8, 8], [8, 4, 16, 8]], dtype=DOUBLE)
    logits = torch.tensor([[0.0, -1, 0], [0, 2, 0], [0, 5, 0]], dtype=DOUBLE)
    found = assign(points, [(1, (8, 4, 16, 8))], predicted, logits)
    v = 4 / math.pi**2 * (math.atan(2) - math.atan(1)) ** 2
    u = 0.5 - 16 / (256 + 64) - v * v / (0.5 + v)
    t = [math.sqrt(1 / (1 + math.e)), math.sqrt(1 / (1 + math.exp(-2))) * u**6]
    assert (found.point.tolist(), found.target.tolist(), found.image.tolist()) == ([0, 1], [0, 0], [0, 0])
    assert found.alignment.tolist() == pytest.approx([1.0, t[1] / t[0]])


def test_the_highest_wanted_score_is_the_highest_overlap() -> None:
    # The class decides that point 1 is the best of two, the overlap of point 0 is the higher: 1 against 2/3 - 4/185.
    points = grid(1, 2)
    predicted = torch.tensor([[8.0, 4, 16, 8], [8, 4, 16, 8]], dtype=DOUBLE)
    predicted[1, 0] += 1
    logits = torch.tensor([[-9.0, 0, 0], [9, 0, 0]], dtype=DOUBLE)
    found = assign(points, [(0, (8, 4, 16, 8))], predicted, logits)
    assert found.alignment[1] == pytest.approx(1.0)
    assert 0 < found.alignment[0] < 0.1


def test_of_equal_alignment_the_first_points_are_taken() -> None:
    points = grid(4, 5)
    found = assign(points, [(2, (20, 16, 40, 32))], (20, 16, 40, 32))
    assert found.point.tolist() == list(range(TOP_K))
    assert found.alignment.tolist() == [1.0] * TOP_K


def test_of_equal_objects_the_first_has_the_points() -> None:
    points = grid(4, 5)
    found = assign(points, [(0, (20, 16, 40, 32)), (1, (20, 16, 40, 32))], (20, 16, 40, 32))
    assert found.target.tolist() == [0] * TOP_K


def test_a_point_goes_to_the_object_that_it_overlaps_most() -> None:
    # Both objects hold the one point inside both, (12, 12), whose box is nearer to the second.
    points = grid(3, 3)
    objects = [(0, (8.0, 8.0, 16.0, 16.0)), (0, (14.0, 14.0, 16.0, 16.0))]
    predicted = torch.tensor([[x, y, 14, 14] for x, y in points.tolist()], dtype=DOUBLE)
    predicted[4, :2] = 13.5
    found = assign(points, objects, predicted)
    owner = dict(zip(found.point.tolist(), found.target.tolist(), strict=True))
    assert owner[4] == 1
    assert owner[0] == 0
    assert set(owner.values()) == {0, 1}


def test_a_contested_point_may_go_to_a_third_object_that_it_overlaps_more() -> None:
    # YOLOv8's rule. 11 points have the very box of object 2, whose score of the last is the lowest: not among its ten.
    # Objects 0 and 1 are a little off; each has its best score there.
    points = grid(1, 11)
    whole = (44.0, 4.0, 88.0, 8.0)
    logits = torch.zeros(11, 3, dtype=DOUBLE)
    logits[10] = torch.tensor([9, 9, -9])
    objects = [(0, (44.0, 4.0, 90.0, 8.0)), (1, (44.0, 4.0, 91.0, 8.0)), (2, whole)]
    found = assign(points, objects, whole, logits)
    assert found.target[found.point == 10].tolist() == [2]
    # With object 0 alone beside it, nobody contests the point, and it keeps it.
    found = assign(points, [objects[0], objects[2]], whole, logits)
    assert found.target[found.point == 10].tolist() == [0]


def test_an_object_smaller_than_a_cell_has_the_point_inside_it_or_nothing() -> None:
    points = grid(2, 2)
    around, between = (4.5, 4.0, 2.0, 3.0), (8.0, 8.0, 3.0, 3.0)
    found = assign(points, [(0, around), (0, between)], (4, 4, 4, 4))
    assert (found.point.tolist(), found.target.tolist()) == ([0], [0])


def test_a_point_on_the_edge_of_a_box_is_outside() -> None:
    points = grid(1, 3)
    assert assign(points, [(0, (8.0, 4.0, 8.0, 8.0))], (8, 4, 8, 8)).point.tolist() == []
    assert assign(points, [(0, (8.0, 4.0, 8.01, 8.0))], (8, 4, 8, 8)).point.tolist() == [0, 1]


def test_an_object_that_reaches_over_the_border_has_the_points_that_there_are() -> None:
    points = grid(2, 2)
    found = assign(points, [(0, (0.0, 8.0, 20.0, 40.0))], (0, 8, 20, 40))
    assert found.point.tolist() == [0, 2]


def test_more_objects_than_points() -> None:
    generator = torch.Generator().manual_seed(0)
    points = grid(2, 2)
    sizes = (4 + 12 * torch.rand(30, 2, generator=generator)).tolist()
    found = assign(points, [(0, (8.0, 8.0, w + 8, h + 8)) for w, h in sizes], (8, 8, 16, 16))
    assert found.point.unique().tolist() == found.point.sort().values.tolist() == [0, 1, 2, 3]
    # All four have one box, so that one object has them all: the nearest to 16 x 16.
    assert len(found.target.unique()) == 1


def test_predictions_that_touch_no_object_belong_to_none() -> None:
    points = grid(4, 4)
    found = assign(points, [(0, (16.0, 16.0, 30.0, 30.0))], (100, 100, 8, 8))
    assert len(found.point) == 0


def test_scores_that_underflow_still_rank() -> None:
    # exp(-500) and its root are 0 in float32.
    points = grid(1, 4).float()
    logits = torch.full((1, 4, 1), -500.0)
    logits[0, 2] = -499.0
    truth = torch.tensor([[16.0, 4.0, 32.0, 8.0]])
    boxes = truth.expand(1, 4, 4)
    found = task_aligned_assignment(logits, boxes, points, torch.zeros(1, 6), truth)
    assert found.alignment[2] == 1
    assert found.alignment[[0, 1, 3]].tolist() == pytest.approx([math.exp(-0.5)] * 3)


def test_an_assignment_has_no_gradient() -> None:
    logits = torch.zeros(4, 3, dtype=DOUBLE, requires_grad=True)
    assert not assign(grid(2, 2), [(0, (8.0, 8.0, 16.0, 16.0))], (8, 8, 15, 15), logits).alignment.requires_grad
