"""Geometry of boxes against numbers worked by hand."""

from __future__ import annotations

import math

import torch

from prunedeploy.models.boxes import best_iou, cxcywh_to_xyxy, paired_iou


def test_corners_of_centre_and_size() -> None:
    assert cxcywh_to_xyxy(torch.tensor([[10.0, 20.0, 4.0, 6.0]])).tolist() == [[8.0, 17.0, 12.0, 23.0]]


def test_complete_iou_worked_by_hand() -> None:
    predicted = torch.tensor([[1.0, 1, 2, 2], [1, 1, 2, 2], [1, 1, 2, 2], [2, 1, 4, 2]], dtype=torch.float64)
    truth = torch.tensor([[1.0, 1, 2, 2], [2, 1, 2, 2], [5, 1, 2, 2], [1, 2, 2, 4]], dtype=torch.float64)
    # Equal boxes: 1. Shifted by half: IoU 2 / 6, centres 1 apart, enclosing box 3 x 2: 1/3 - 1/13.
    # Apart: IoU 0, centres 4 apart, enclosing 6 x 2: -16/40. Crossed 4 x 2 and 2 x 4: overlap 2 x 2 of 12,
    # centres sqrt 2 apart, enclosing 4 x 4; v = 4 / pi^2 (atan 1/2 - atan 2)^2, alpha = v / (1 - 1/3 + v).
    v = 4 / math.pi**2 * (math.atan(0.5) - math.atan(2)) ** 2
    expected = [1, 1 / 3 - 1 / 13, -0.4, 1 / 3 - 2 / 32 - v / (2 / 3 + v) * v]
    torch.testing.assert_close(paired_iou(predicted, truth, "ciou"), torch.tensor(expected, dtype=torch.float64))


def test_best_iou_takes_the_best_box_and_knows_none() -> None:
    predicted = torch.tensor([[[0.0, 0, 2, 2], [10, 10, 11, 11]]])
    truth = torch.tensor([[[1.0, 0, 3, 2], [0, 0, 2, 1], [5, 5, 5, 5]]])
    torch.testing.assert_close(best_iou(predicted, truth), torch.tensor([[0.5, 0.0]]))
    assert best_iou(predicted, truth[:, :0]).tolist() == [[0.0, 0.0]]
