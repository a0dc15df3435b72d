"""Where the names of points go in a picture, so that none covers another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_MARKER = 7.0  # half the side of the square that a marker takes
_DISTANCES = (9.0, 18.0, 30.0, 46.0, 66.0, 90.0)


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels, y downwards."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: Box) -> float:
        """Area that both cover."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return width * height if width > 0 and height > 0 else 0.0

    def outside(self, area: Box) -> float:
        """How far it reaches beyond an area."""
        beyond = (area.left - self.left, area.top - self.top, self.right - area.right, self.bottom - area.bottom)
        return sum(max(distance, 0.0) for distance in beyond)


def place_labels(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    area: Box,
    lines: Sequence[Box] = (),
) -> list[Box]:
    """Choose a place beside each point: the nearest that covers no marker, no label placed before and no line.

    Args:
        points: (x, y) in pixels.
        sizes: (width, height) of each label.
        area: All labels stay inside if they can.
        lines: What else should stay visible; less important than markers and labels.

    Returns:
        A box per label. Points with most neighbours choose first.
    """
    markers = [Box(x - _MARKER, y - _MARKER, x + _MARKER, y + _MARKER) for x, y in points]
    order = sorted(range(len(points)), key=lambda i: -_neighbours(points, i))
    placed: dict[int, Box] = {}
    for i in order:
        taken = [*markers, *placed.values()]
        placed[i] = min(
            _candidates(points[i], sizes[i]),
            key=lambda one: (
                sum(one[1].overlap(box) for box in taken) + 50 * one[1].outside(area),
                sum(one[1].overlap(line) for line in lines) + 2 * one[0],
            ),
        )[1]
    return [placed[i] for i in range(len(points))]


def _neighbours(points: Sequence[tuple[float, float]], i: int) -> int:
    x, y = points[i]
    return sum(abs(other[0] - x) < 90 and abs(other[1] - y) < 30 for other in points)


def _candidates(point: tuple[float, float], size: tuple[float, float]) -> Iterator[tuple[int, Box]]:
    """Places around a point, by preference: right, left, above, below and between, then farther away."""
    (x, y), (width, height) = point, size
    rank = 0
    for distance in _DISTANCES:
        d = distance * 0.75
        for left, top in (
            (x + distance, y - height / 2),
            (x - distance - width, y - height / 2),
            (x - width / 2, y - distance - height),
            (x - width / 2, y + distance),
            (x + d, y - d - height),
            (x - d - width, y - d - height),
            (x + d, y + d),
            (x - d - width, y + d),
        ):
            yield rank, Box(left, top, left + width, top + height)
            rank += 1
