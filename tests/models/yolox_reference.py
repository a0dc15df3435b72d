"""The loss of YOLOX as the papers write it: one point, one object at a time, in plain floats."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from models.anchor_free_reference import Box, cross_entropy, iou, logistic


@dataclass
class Point:
    column: int
    row: int
    stride: float
    numbers: list[float]
    """x, y, w, h, objectness, classes."""

    @property
    def box(self) -> Box:
        x, y = (self.column + self.numbers[0]) * self.stride, (self.row + self.numbers[1]) * self.stride
        w, h = math.exp(self.numbers[2]) * self.stride, math.exp(self.numbers[3]) * self.stride
        return x - w / 2, y - h / 2, x + w / 2, y + h / 2

    def is_near(self, box: Box) -> bool:
        """The 3 x 3 cells around the centre, measured from the middle of a cell."""
        x, y = (self.column + 0.5) * self.stride, (self.row + 0.5) * self.stride
        reach = 1.5 * self.stride
        return abs(x - (box[0] + box[2]) / 2) < reach and abs(y - (box[1] + box[3]) / 2) < reach


@dataclass
class Owner:
    """What an anchor point is trained for."""

    object: int
    overlap: float


def points_of(heads: list[Tensor], strides: list[float], image: int) -> list[Point]:
    points = []
    for raw, stride in zip(heads, strides, strict=True):
        values = raw[image].tolist()
        for row in range(raw.shape[2]):
            for column in range(raw.shape[3]):
                points.append(Point(column, row, stride, [channel[row][column] for channel in values]))
    return points


def cost(point: Point, class_id: int, box: Box) -> float:
    """YOLOX, equation 1, with lambda 3; the class loss is that of sqrt(objectness * class)."""
    total = -3 * math.log(iou(point.box, box) + 1e-8)
    for c, t in enumerate(point.numbers[5:]):
        score = math.sqrt(logistic(point.numbers[4]) * logistic(t))
        total -= math.log(score if c == class_id else 1 - score)
    return total


def dynamic_k(overlaps: list[float]) -> int:
    """OTA, section 3.3."""
    return max(int(sum(sorted(overlaps, reverse=True)[:10])), 1)


def owners_of(points: list[Point], objects: list[tuple[int, Box]]) -> dict[int, Owner]:
    """YOLOX, section 2.3: points by number, each with the object it is trained for."""
    near = {g: [p for p, point in enumerate(points) if point.is_near(box)] for g, (_, box) in enumerate(objects)}
    costs = {(g, p): cost(points[p], *objects[g]) for g, mine in near.items() for p in mine}
    claims: dict[int, list[int]] = {}
    for g, mine in near.items():
        k = dynamic_k([iou(points[p].box, objects[g][1]) for p in mine])
        for p in sorted(mine, key=lambda p, g=g: costs[g, p])[:k]:
            claims.setdefault(p, []).append(g)
    owners = {}
    for p, claimants in claims.items():
        rivals = claimants if len(claimants) == 1 else [g for g in near if p in near[g]]
        g = min(rivals, key=lambda g, p=p: costs[g, p])
        owners[p] = Owner(g, iou(points[p].box, objects[g][1]))
    return owners


def terms_of(points: list[Point], objects: list[tuple[int, Box]], owners: dict[int, Owner]) -> dict[str, float]:
    divisor = max(len(owners), 1)
    terms = {"box": 0.0, "objectness": 0.0, "classes": 0.0}
    for p, point in enumerate(points):
        terms["objectness"] += cross_entropy(point.numbers[4], float(p in owners)) / divisor
        if p in owners:
            class_id, box = objects[owners[p].object]
            terms["box"] += 5 * (1 - iou(point.box, box) ** 2) / divisor
            for c, t in enumerate(point.numbers[5:]):
                terms["classes"] += cross_entropy(t, owners[p].overlap if c == class_id else 0.0) / divisor
    return terms
