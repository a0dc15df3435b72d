"""mAP under weather, noise, blur and compression: of each corruption and severity, their mean, and what that keeps.

Reference: Michaelis et al., Benchmarking Robustness in Object Detection: Autonomous Driving when Winter is Coming,
2019, equations 1 (mPC, the mean performance under corruption) and 2 (rPC, the relative performance).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prunedeploy.data.corruptions import corrupt
from prunedeploy.data.loader import Batch
from prunedeploy.data.records import CocoDataset
from prunedeploy.evaluation.bootstrap import RESAMPLES, draw_weights, interval_of, matches_from, weighted_map
from prunedeploy.evaluation.coco_map import map_from, run_cocoeval
from prunedeploy.evaluation.detecting import IOU_THRESHOLD, SCORE_THRESHOLD, Thresholds, detect_batch
from prunedeploy.evaluation.detection_table import DetectionTable
from prunedeploy_engines.detection.letterbox import batch_to_input, to_uint8_input
from prunedeploy_engines.runtimes.runner import Runner

Figures = NDArray[np.float64]
"""A figure on the images as they are and, after it, on each resample: ``(1 + R,)``; NaN where it is undefined."""


@dataclass(frozen=True)
class UnderCorruption:
    """What one runner keeps of its mAP (COCO's, IoU .50 to .95).

    Attributes:
        clean: mAP on the images as they are.
        severities: The severities that were measured, ascending.
        corrupted: Of each corruption, mAP at each of the severities.
    """

    clean: Figures
    severities: tuple[int, ...]
    corrupted: Mapping[str, Sequence[Figures]]

    @property
    def mpc(self) -> Figures:
        """Mean performance under corruption: over severities, then over corruptions (equation 1)."""
        of_each: Figures = np.mean([np.mean(figures, axis=0) for figures in self.corrupted.values()], axis=0)
        return of_each

    @property
    def rpc(self) -> Figures:
        """Relative performance under corruption, mPC / clean mAP (equation 2); undefined where that is 0."""
        quotient: Figures = self.mpc / np.where(self.clean > 0, self.clean, np.nan)
        return quotient

    def as_dict(self) -> dict[str, Any]:
        """As JSON values: figures and, under ``intervals``, their ends ``[low, high]``; None where undefined."""
        cells = {name: [_value(one) for one in figures] for name, figures in self.corrupted.items()}
        ends = {name: [_ends(one) for one in figures] for name, figures in self.corrupted.items()}
        means = {"map_clean": self.clean, "mpc": self.mpc, "rpc": self.rpc}
        return {
            "severities": list(self.severities),
            "map": cells,
            **{name: _value(one) for name, one in means.items()},
            "intervals": {"map": ends, **{name: _ends(one) for name, one in means.items()}},
        }


def evaluate_corrupted(
    runners: Mapping[str, Runner],
    batches: Iterable[Batch],
    dataset: CocoDataset,
    corruptions: Sequence[str],
    severities: Sequence[int],
    *,
    greyscale: bool = False,
    iou_threshold: float = IOU_THRESHOLD,
    score_threshold: float = SCORE_THRESHOLD,
    resamples: int = RESAMPLES,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> dict[str, UnderCorruption]:
    """Run detectors on clean images and on corrupted ones; all of them see the same pixels.

    Args:
        runners: By the names that their results get.
        batches: An `prunedeploy.data.loader.EvaluationLoader` with the runners' input size; gone through once for
            clean images and once for each corruption, so that detections of only one of these are held at a time.
        dataset: Ground truth. Images that the loader left out do not count.
        corruptions: Which, at least one.
        severities: At which severities, ascending.
        greyscale: The images are grey in three channels, and stay so.
        iou_threshold: As of `prunedeploy.evaluation.evaluate`.
        score_threshold: See there.
        resamples: Resamples of the bootstrap; the same ones for every figure; 0: no intervals.
        seed: Seed of the corruptions' draws and of the bootstrap.
        progress: Called with the number of images that a batch had, for each severity of it.

    Returns:
        By the runners' names.

    Raises:
        DataError: As of `prunedeploy.evaluation.evaluate`.
    """
    thresholds = Thresholds(iou_threshold, score_threshold)

    def measured(name: str | None) -> dict[str, list[Figures]]:
        """Of each runner, mAP at each severity of one corruption; of clean images just one."""
        levels = (0,) if name is None else tuple(severities)
        tables: dict[tuple[str, int], list[DetectionTable]] = {(one, s): [] for one in runners for s in levels}
        image_ids: list[int] = []
        for batch in batches:
            for severity in levels:
                images = batch.images if name is None else corrupted_images(batch, name, severity, seed, greyscale)
                for one, runner in runners.items():
                    tables[one, severity].append(detect_batch(runner, images, batch, dataset, thresholds))
                if progress is not None:
                    progress(len(batch.image_ids))
            image_ids += batch.image_ids
        found = {key: _figures(dataset, parts, image_ids, resamples, seed) for key, parts in tables.items()}
        return {one: [found[one, severity] for severity in levels] for one in runners}

    clean = measured(None)
    corrupted = {name: measured(name) for name in corruptions}
    return {
        one: UnderCorruption(clean[one][0], tuple(severities), {name: corrupted[name][one] for name in corruptions})
        for one in runners
    }


def corrupted_images(batch: Batch, name: str, severity: int, seed: int = 0, greyscale: bool = False) -> Tensor:
    """Corrupt what a batch shows, at the size at which the network sees it; its padding stays as it is.

    Args:
        batch: Of an `prunedeploy.data.loader.EvaluationLoader`.
        name: The corruption.
        severity: 1 to 5.
        seed: Draws depend on it, on the name, the severity and the image's id.
        greyscale: Corrupt one channel, and repeat it for all.

    Returns:
        New images of the batch's shape, float32 in [0, 1], multiples of a 255th.
    """
    images = to_uint8_input(batch.images.numpy())
    for image, image_id, geometry in zip(images, batch.image_ids, batch.geometries, strict=True):
        top, left = geometry.pad_top, geometry.pad_left
        height, width = geometry.resized_size
        shown = image[top : top + height, left : left + width]
        seen = shown[..., :1] if greyscale else shown
        shown[:] = corrupt(np.ascontiguousarray(seen), name, severity, seed=seed, image_id=image_id)
    return torch.from_numpy(batch_to_input(images))


def _figures(
    dataset: CocoDataset, parts: list[DetectionTable], image_ids: list[int], resamples: int, seed: int
) -> Figures:
    evaluation = run_cocoeval(dataset, DetectionTable.concatenate(parts), image_ids)
    value = map_from(evaluation, dataset.class_names).map_50_95
    samples = np.empty(0)
    if resamples:
        matches = matches_from(evaluation)
        samples = weighted_map(matches, draw_weights(len(matches.image_ids), resamples, seed))[0]
    return np.array([np.nan if value is None else value, *samples])


def _value(figures: Figures) -> float | None:
    return None if np.isnan(figures[0]) else float(figures[0])


def _ends(figures: Figures) -> list[float] | None:
    interval = interval_of(float(figures[0]), figures[1:])
    return None if interval is None else [interval.low, interval.high]
