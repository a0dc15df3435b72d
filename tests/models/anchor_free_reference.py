"""The loss of anchor-free heads as the papers write it: one point, one object, one bin at a time, in plain floats."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


@dataclass
class Point:
    x: float
    y: float
    stride: float
    bins: list[list[float]]
    classes: list[float]

    @property
    def box(self) -> Box:
        left, top, right, bottom = (mean_of(side) * self.stride for side in self.bins)
        return self.x - left, self.y - top, self.x + right, self.y + bottom


@dataclass
class Owner:
    """What an anchor point is trained for."""

    object: int
    wanted: float


def logistic(t: float) -> float:
    return 1 / (1 + math.exp(-t))


def softmax(logits: list[float]) -> list[float]:
    powers = [math.exp(t - max(logits)) for t in logits]
    return [power / sum(powers) for power in powers]


def mean_of(logits: list[float]) -> float:
    return sum(n * p for n, p in enumerate(softmax(logits)))


def cross_entropy(t: float, wanted: float) -> float:
    return -(wanted * math.log(logistic(t)) + (1 - wanted) * math.log(logistic(-t)))


def iou(a: Box, b: Box) -> float:
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    overlap = max(wide, 0.0) * max(high, 0.0)
    return overlap / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap)


def aspect(a: Box, b: Box) -> float:
    """v of Zheng et al.'s equation 9."""
    angles = [math.atan((box[2] - box[0]) / (box[3] - box[1])) for box in (a, b)]
    return 4 / math.pi**2 * (angles[0] - angles[1]) ** 2


def trade_off(a: Box, b: Box) -> float:
    """alpha of equation 11."""
    v = aspect(a, b)
    return v / (1 - iou(a, b) + v) if v else 0.0


def ciou(a: Box, b: Box, alpha: float | None = None) -> float:
    """Equation 10; ``alpha`` is what its gradient takes as a constant."""
    alpha = trade_off(a, b) if alpha is None else alpha
    dx, dy = (a[0] + a[2] - b[0] - b[2]) / 2, (a[1] + a[3] - b[1] - b[3]) / 2
    wide, high = max(a[2], b[2]) - min(a[0], b[0]), max(a[3], b[3]) - min(a[1], b[1])
    return iou(a, b) - (dx * dx + dy * dy) / (wide**2 + high**2) - alpha * aspect(a, b)


def points_of(heads: list[Tensor], strides: list[float], image: int, bins: int) -> list[Point]:
    points = []
    for raw, stride in zip(heads, strides, strict=True):
        values = raw[image].tolist()
        for j in range(raw.shape[2]):
            for i in range(raw.shape[3]):
                column = [channel[j][i] for channel in values]
                sides = [column[side * bins : (side + 1) * bins] for side in range(4)]
                points.append(Point((i + 0.5) * stride, (j + 0.5) * stride, stride, sides, column[4 * bins :]))
    return points


def objects_of(targets: Tensor, image: int, width: float, height: float) -> list[tuple[int, Box]]:
    found = []
    for number, class_id, x, y, w, h in targets.tolist():
        if number == image:
            box = ((x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height)
            found.append((int(class_id), box))
    return found


def owners_of(points: list[Point], objects: list[tuple[int, Box]], top_k: int = 10) -> dict[int, Owner]:
    """Feng et al., section 3.2: points by number, each with the object it is trained for."""
    overlap: dict[tuple[int, int], float] = {}
    alignment: dict[tuple[int, int], float] = {}
    claims: dict[int, list[int]] = {}
    for g, (class_id, box) in enumerate(objects):
        for p, point in enumerate(points):
            if box[0] < point.x < box[2] and box[1] < point.y < box[3] and ciou(point.box, box) > 0:
                overlap[g, p] = ciou(point.box, box)
                alignment[g, p] = logistic(point.classes[class_id]) ** 0.5 * overlap[g, p] ** 6
        mine = sorted((p for of, p in alignment if of == g), key=lambda p, g=g: -alignment[g, p])
        for p in mine[:top_k]:
            claims.setdefault(p, []).append(g)
    owner = {}
    for p, claimants in claims.items():
        rivals = claimants if len(claimants) == 1 else [g for g in range(len(objects)) if (g, p) in overlap]
        owner[p] = max(rivals, key=lambda g, p=p: overlap[g, p])
    result = {}
    for p, g in owner.items():
        mine = [q for q in owner if owner[q] == g]
        highest = max(alignment[g, q] for q in mine)
        result[p] = Owner(g, alignment[g, p] / highest * max(overlap[g, q] for q in mine))
    return result


def distribution_focal(logits: list[float], distance: float) -> float:
    """Li et al., equation 6."""
    probabilities = softmax(logits)
    distance = min(max(distance, 0.0), len(logits) - 1 - 0.01)
    left = math.floor(distance)
    return -(
        (left + 1 - distance) * math.log(probabilities[left]) + (distance - left) * math.log(probabilities[left + 1])
    )


def terms_of(
    points: list[Point],
    objects: list[tuple[int, Box]],
    owners: dict[int, Owner],
    trade_offs: dict[int, float] | None = None,
) -> dict[str, float]:
    divisor = max(sum(owner.wanted for owner in owners.values()), 1.0)
    terms = {"box": 0.0, "dfl": 0.0, "classes": 0.0, "background": 0.0}
    for p, point in enumerate(points):
        if p not in owners:
            terms["background"] += 0.5 * sum(cross_entropy(t, 0) for t in point.classes) / divisor
            continue
        owner = owners[p]
        class_id, box = objects[owner.object]
        for c, t in enumerate(point.classes):
            terms["classes"] += 0.5 * cross_entropy(t, owner.wanted if c == class_id else 0.0) / divisor
        overlap = ciou(point.box, box, None if trade_offs is None else trade_offs[p])
        terms["box"] += 7.5 * owner.wanted * (1 - overlap) / divisor
        wanted = [point.x - box[0], point.y - box[1], box[2] - point.x, box[3] - point.y]
        for side, distance in zip(point.bins, wanted, strict=True):
            term = distribution_focal(side, distance / point.stride) / 4
            terms["dfl"] += 1.5 * owner.wanted * term / divisor
    return terms
