"""What a network would give if every one of its predictions were somebody's to choose: the worst for suppression.

No image is known to do this to any network; whatever an attack on time reaches, it is no worse. Every case puts all
predictions above any threshold that is used, so that a bound on candidates (``nms.max_candidates``) is always hit.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from prunedeploy_engines.runtimes.runner import Float32Array

_HIGHEST, _LOWEST = 0.999, 0.95


def _apart(count: int, size: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Boxes ``(count, 4)`` in the cells of a grid: none overlaps another, so all are kept."""
    columns = int(np.ceil(np.sqrt(count)))
    y, x = np.divmod(np.arange(count), columns)
    corner = np.stack([x, y], axis=1) * np.array([size[1], size[0]]) / columns
    return np.concatenate([corner, corner + 0.8 * np.array([size[1], size[0]]) / columns], axis=1)


def _chain(count: int, size: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Boxes ``(count, 4)`` in a row: each overlaps the next by an IoU of 0.6 and the one after it by 0.33."""
    width = size[1] / (count + 3)
    start = np.arange(count) * width
    return np.stack([start, np.zeros(count), start + 4 * width, np.full(count, float(size[0]))], axis=1)


def _falling(count: int) -> npt.NDArray[np.float64]:
    return np.linspace(_HIGHEST, _LOWEST, count)


Case = Callable[[int, int, tuple[int, int]], tuple[npt.NDArray[np.floating], npt.NDArray[np.floating]]]


def _one_class(boxes: Callable[[int, tuple[int, int]], npt.NDArray[np.float64]], falling: bool = True) -> Case:
    def make(predictions: int, classes: int, size: tuple[int, int]) -> tuple[npt.NDArray[np.float64], Float32Array]:
        scores = np.zeros((predictions, classes), np.float32)
        scores[:, 0] = _falling(predictions)[:: 1 if falling else -1]
        return boxes(predictions, size), scores

    return make


def _all_classes(predictions: int, classes: int, size: tuple[int, int]) -> tuple[npt.NDArray[np.float64], Float32Array]:
    scores = _falling(predictions * classes).astype(np.float32).reshape(predictions, classes)
    return _apart(predictions, size), scores


def _equal(predictions: int, classes: int, size: tuple[int, int]) -> tuple[npt.NDArray[np.float64], Float32Array]:
    return _apart(predictions, size), np.full((predictions, classes), _HIGHEST, np.float32)


CASES: dict[str, Case] = {
    "apart": _one_class(_apart),
    "chain": _one_class(_chain),
    "rising": _one_class(_apart, falling=False),
    "classes": _all_classes,
    "equal": _equal,
}
"""By name: all in one class, none overlapping another; in one class, each suppressing its neighbour; the first with
scores that rise, so that the best come last; every prediction of all classes; and that with one score for all."""


def flooded_heads(
    case: str, predictions: int, classes: int, input_size: tuple[int, int]
) -> tuple[Float32Array, Float32Array]:
    """Boxes ``(M, 4)`` in input pixels and scores ``(M, C)`` of one image, as a network would give them.

    Args:
        case: One of `CASES`.
        predictions: M.
        classes: C.
        input_size: (height, width) in pixels.
    """
    boxes, scores = CASES[case](predictions, classes, input_size)
    return boxes.astype(np.float32), scores.astype(np.float32)
