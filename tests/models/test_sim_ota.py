"""SimOTA: numbers worked by hand, and the places where there is nothing or too much to assign."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from models.test_task_aligned import DOUBLE, grid
from prunedeploy.models.assignment import Assignment
from prunedeploy.models.sim_ota import sim_ota_assignment


def assign(
    points: Tensor,
    objects: list[tuple[int, tuple[float, float, float, float]]],
    predicted: Tensor | tuple[float, ...],
    objectness: Tensor | None = None,
    logits: Tensor | None = None,
    stride: float = 8,
) -> Assignment:
    """One image with 3 classes; objects as (class, centre and size), one predicted box for all points or one each."""
    boxes = torch.as_tensor(predicted, dtype=DOUBLE).expand(len(points), 4)
    objectness = torch.zeros(len(points), dtype=DOUBLE) if objectness is None else objectness
    logits = torch.zeros(len(points), 3, dtype=DOUBLE) if logits is None else logits
    truth = torch.tensor([box for _, box in objects], dtype=DOUBLE).view(-1, 4)
    targets = torch.zeros(len(objects), 6, dtype=DOUBLE)
    targets[:, 1] = torch.tensor([class_id for class_id, _ in objects])
    cells = torch.full((len(points), 1), stride, dtype=DOUBLE)
    return sim_ota_assignment(objectness[None], logits[None], boxes[None], points, cells, targets, truth)


def narrowed(shares: list[float]) -> Tensor:
    """Boxes around the middle of 3 x 3 cells, (12, 12), whose IoU with one of 20 x 20 there is each of these."""
    return torch.tensor([[12.0, 12, 20 * share, 20] for share in shares], dtype=DOUBLE)


def test_how_many_predictions_an_object_takes_worked_by_hand() -> None:
    # Nine points near the object's centre. IoUs .9 + .8 + .7 + .3 + .2 + .1 + 3 * .05 = 3.15: three, the best three,
    # since all scores are alike. With .6 for .3 and .7 for .2 the sum is 3.95, still three; .1 more makes four.
    points, object_ = grid(3, 3), (1, (12.0, 12.0, 20.0, 20.0))
    shares = [0.1, 0.9, 0.05, 0.3, 0.8, 0.05, 0.2, 0.7, 0.05]
    found = assign(points, [object_], narrowed(shares))
    assert found.point.tolist() == [1, 4, 7]
    assert found.alignment.tolist() == pytest.approx([0.9, 0.8, 0.7])
    shares[3], shares[6] = 0.6, 0.7
    assert len(assign(points, [object_], narrowed(shares)).point) == 3
    shares[0] = 0.2
    assert len(assign(points, [object_], narrowed(shares)).point) == 4


def test_an_object_that_nothing_fits_takes_one() -> None:
    # All nine overlap by 0.1, a sum of 0.9: one, of equal costs the first. Then none overlaps: one nevertheless.
    points, object_ = grid(3, 3), (0, (12.0, 12.0, 20.0, 20.0))
    assert assign(points, [object_], narrowed([0.1] * 9)).point.tolist() == [0]
    logits = torch.zeros(9, 3, dtype=DOUBLE)
    logits[5, 0] = 1
    found = assign(points, [object_], (100, 100, 8, 8), logits=logits)
    assert (found.point.tolist(), found.alignment.tolist()) == ([5], [0.0])


def test_no_more_than_ten_overlaps_count() -> None:
    # Two scales of 3 x 3 points, all with the object's very box: a sum of 18, of which 10 count.
    fine, coarse = grid(3, 3), grid(3, 3)
    found = assign(torch.cat((fine, coarse)), [(2, (12.0, 12.0, 20.0, 20.0))], (12, 12, 20, 20))
    assert found.point.tolist() == list(range(10))


def test_which_costs_less_worked_by_hand() -> None:
    # Two points with IoUs of .5 and .7: one is taken, and the second costs 3 log(.7 / .5) = 1.01 less by its box. All
    # probabilities are 1/2, so that sqrt(objectness * class) is 1/2 as well.
    points, object_ = grid(1, 2), (0, (8.0, 4.0, 16.0, 8.0))
    predicted = torch.tensor([[8.0, 4, 8, 8], [8, 4, 11.2, 8]], dtype=DOUBLE)
    objectness, logits = torch.zeros(2, dtype=DOUBLE), torch.zeros(2, 3, dtype=DOUBLE)
    assert assign(points, [object_], predicted, objectness, logits).point.tolist() == [1]
    # The first is sure of the class: sqrt(1/2) for 1/2, which is worth log(2) / 2 = .35.
    logits[0, 0] = 50
    assert assign(points, [object_], predicted, objectness, logits).point.tolist() == [1]
    # And of an object: 1 for 1/2, worth log 2 = .69; but the others now have sqrt(1/2): 2 log(2 - sqrt(2)) = -1.07.
    objectness[0] = 50
    assert assign(points, [object_], predicted, objectness, logits).point.tolist() == [1]
    # And that it is none of the others, worth 2 log 2: 2.08 in all.
    logits[0, 1:] = -50
    assert assign(points, [object_], predicted, objectness, logits).point.tolist() == [0]


def test_points_are_near_within_one_cell_and_a_half() -> None:
    # The centre of the object is 12 = 1.5 cells from the middles of the first column, which is not nearer than that.
    points = grid(1, 5)
    boxes = (16, 4, 40, 8)
    assert assign(points, [(0, (16.0, 4.0, 40.0, 8.0))], boxes).point.tolist() == [1, 2]
    assert assign(points, [(0, (15.9, 4.0, 40.0, 8.0))], (15.9, 4, 40, 8)).point.tolist() == [0, 1, 2]
    # Of a small object as well, though no point is in it.
    assert len(assign(points, [(0, (16.0, 4.0, 2.0, 2.0))], (16, 4, 2, 2)).point) == 2


def test_a_contested_point_goes_to_the_object_that_it_costs_least() -> None:
    # Two objects around the same centre, of classes that the points know: sizes decide k, scores whose they are.
    points = grid(3, 3)
    objects = [(0, (12.0, 12.0, 20.0, 20.0)), (1, (12.0, 12.0, 20.0, 20.0))]
    logits = torch.full((9, 3), -2.0, dtype=DOUBLE)
    logits[:4, 0], logits[4:, 1] = 2.0, 2.0
    found = assign(points, objects, (12, 12, 20, 20), logits=logits)
    assert dict(zip(found.point.tolist(), found.target.tolist(), strict=True)) == dict(enumerate([0] * 4 + [1] * 5))
    # Where nothing tells them apart the first object has them.
    assert assign(points, objects, (12, 12, 20, 20), logits=torch.full((9, 3), -2.0)).target.tolist() == [0] * 9


def test_how_many_an_object_takes_does_not_depend_on_others() -> None:
    # The second object's points, which are not near the first, have boxes that fit the first.
    points, first = grid(1, 12), (0, (12.0, 4.0, 24.0, 8.0))
    predicted = torch.tensor([[12.0, 4, 12, 8]] * 12, dtype=DOUBLE)
    alone = assign(points, [first], predicted)
    both = assign(points, [first, (0, (84.0, 4.0, 24.0, 8.0))], predicted)
    assert alone.point.tolist() == [0]  # three halves
    assert both.point[both.target == 0].tolist() == [0]


def test_an_object_at_the_border_has_the_points_that_there_are() -> None:
    points = grid(2, 2)
    found = assign(points, [(0, (0.0, 0.0, 30.0, 30.0))], (0, 0, 30, 30))
    assert found.point.tolist() == [0]
    assert assign(points, [(0, (-40.0, 0.0, 30.0, 30.0))], (0, 0, 30, 30)).point.tolist() == []


def test_more_objects_than_points() -> None:
    generator = torch.Generator().manual_seed(0)
    points = grid(2, 2)
    sizes = (4 + 12 * torch.rand(30, 2, generator=generator)).tolist()
    found = assign(points, [(0, (8.0, 8.0, w + 8, h + 8)) for w, h in sizes], (8, 8, 16, 16))
    assert found.point.unique().tolist() == found.point.sort().values.tolist()
    # All four have one box and one score, so that one object has all that are taken.
    assert len(found.target.unique()) == 1


def test_scores_that_underflow_still_rank_and_certain_ones_cost_no_infinity() -> None:
    # exp(-500) is 0 in float32, and 1 - logistic(500) as well.
    points, object_ = grid(1, 2), (0, (8.0, 4.0, 16.0, 8.0))
    predicted = (8, 4, 4, 4)  # a quarter of a quarter: k is 1
    logits = torch.full((2, 3), -500.0)
    logits[1, 0] = -499.0
    assert assign(points, [object_], predicted, logits=logits).point.tolist() == [1]
    wrong = torch.full((2, 3), 500.0)
    wrong[1, 1] = 0.0
    found = assign(points, [object_], predicted, torch.full((2,), 500.0), wrong)
    assert found.point.tolist() == [1]
    assert math.isfinite(float(found.alignment[0]))


def test_an_assignment_has_no_gradient() -> None:
    logits = torch.zeros(4, 3, dtype=DOUBLE, requires_grad=True)
    found = assign(grid(2, 2), [(0, (8.0, 8.0, 16.0, 16.0))], torch.ones(4, 4, requires_grad=True), logits=logits)
    assert not found.alignment.requires_grad
