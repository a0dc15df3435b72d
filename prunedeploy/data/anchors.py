"""Anchors for a data set: k-means on IoU (Redmon and Farhadi, YOLO9000, 2017, section 2, "Dimension Clusters")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prunedeploy.data.records import CocoDataset
from prunedeploy_engines.errors import DataError

MOST_SIZES = 50_000
"""So many boxes, drawn with the seed, say as much as all."""
STARTS = 5
MOST_ROUNDS = 300


@dataclass(frozen=True)
class AnchorFit:
    """How well anchors cover boxes.

    Attributes:
        mean_iou: Mean over boxes of the IoU with the best anchor, both centred at one place; in [0, 1].
        recall: Share of boxes whose best anchor has an IoU above .5; in [0, 1].
    """

    mean_iou: float
    recall: float


def box_sizes(dataset: CocoDataset, input_size: tuple[int, int], stretch: bool = False) -> NDArray[np.float64]:
    """Sizes of the boxes once their images are letterboxed, or stretched.

    Args:
        dataset: Boxes of crowds are left out.
        input_size: Height and width of the network's input in pixels.
        stretch: Images are stretched to the input.

    Returns:
        ``(n, 2)`` widths and heights in input pixels.
    """
    sizes = [np.zeros((0, 2))]
    for image in dataset.images:
        scale_xy = np.array([input_size[1] / image.width, input_size[0] / image.height])
        sizes.append(image.boxes_xywh[~image.iscrowd, 2:].astype(np.float64) * (scale_xy if stretch else min(scale_xy)))
    return np.concatenate(sizes)


def fit(sizes_wh: NDArray[np.float64], anchors_wh: Sequence[tuple[float, float]]) -> AnchorFit:
    """Measure anchors on box sizes ``(n, 2)``, both widths and heights in input pixels."""
    best = centred_iou(sizes_wh, np.array(anchors_wh, np.float64)).max(axis=1)
    return AnchorFit(float(best.mean()), float((best > 0.5).mean()))


def cluster_anchors(sizes_wh: NDArray[np.float64], count: int, seed: int = 0) -> list[tuple[float, float]]:
    """Cluster box sizes by 1 - IoU.

    Started as k-means++ does (Arthur and Vassilvitskii, 2007) with this distance, several times; the start with the
    highest mean IoU is kept. A cluster's centre is the mean of its sizes, as in the paper.

    Args:
        sizes_wh: ``(n, 2)`` widths and heights in input pixels.
        count: Number of anchors.
        seed: Seed of the starts, and of the draw where there are more boxes than `MOST_SIZES`.

    Returns:
        Widths and heights in input pixels, to a tenth, the smallest area first.

    Raises:
        DataError: Fewer than ``count`` different sizes.
    """
    random = np.random.default_rng([seed, len(sizes_wh), count])
    if len(sizes_wh) > MOST_SIZES:
        sizes_wh = sizes_wh[random.choice(len(sizes_wh), MOST_SIZES, replace=False)]
    different = len(np.unique(sizes_wh, axis=0))
    if different < count:
        raise DataError(f"{count} anchors need as many sizes of boxes, and the training images have {different}")
    found = [_clustered(sizes_wh, count, random) for _ in range(STARTS)]
    best = max(found, key=lambda anchors: centred_iou(sizes_wh, anchors).max(axis=1).mean())
    ordered = best[np.argsort(best.prod(axis=1), kind="stable")]
    return [(round(float(width), 1), round(float(height), 1)) for width, height in ordered]


def _clustered(sizes_wh: NDArray[np.float64], count: int, random: np.random.Generator) -> NDArray[np.float64]:
    """One start, until no box changes its cluster: ``(count, 2)``."""
    anchors = sizes_wh[random.integers(len(sizes_wh))][None]
    while len(anchors) < count:
        distance = np.maximum(1 - centred_iou(sizes_wh, anchors).max(axis=1), 0)
        anchors = np.concatenate([anchors, sizes_wh[random.choice(len(sizes_wh), p=distance / distance.sum())][None]])
    nearest = np.full(len(sizes_wh), -1)
    for _ in range(MOST_ROUNDS):
        before, nearest = nearest, centred_iou(sizes_wh, anchors).argmax(axis=1)
        if (before == nearest).all():
            break
        for index in np.unique(nearest):
            anchors[index] = sizes_wh[nearest == index].mean(axis=0)
    return anchors


def centred_iou(sizes_wh: NDArray[np.float64], anchors_wh: NDArray[np.float64]) -> NDArray[np.float64]:
    """IoU of every size ``(n, 2)`` with every anchor ``(k, 2)``, as if they had one centre: ``(n, k)``."""
    shared = np.minimum(sizes_wh[:, None], anchors_wh[None]).prod(axis=2)
    return shared / (sizes_wh.prod(axis=1)[:, None] + anchors_wh.prod(axis=1)[None] - shared)
