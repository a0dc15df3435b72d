"""Evaluate any number of runners on clean and on attacked images, in one loop.

The images are read once and attacked once, with the gradients of one PyTorch model; every runner then sees
the same pixels. For the runner of that very model the result is its robust mAP; for any other, an exported
engine say, it is what attacks made with the parent do to it, and is marked as *transfer*.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunedeploy.data.loader import Batch
from prunedeploy.data.records import CocoDataset
from prunedeploy.evaluation.attacked_images import AttackedImageWriter
from prunedeploy.evaluation.bootstrap import RESAMPLES, Interval
from prunedeploy.evaluation.coco_map import MAX_DETECTIONS
from prunedeploy.evaluation.detecting import (
    IOU_THRESHOLD,
    SCORE_THRESHOLD,
    Progress,
    Thresholds,
    as_array,
    detect_batch,
)
from prunedeploy.evaluation.detection_table import DetectionTable
from prunedeploy.evaluation.measurement import PAPER_SCORE_THRESHOLD, Measurement, measure
from prunedeploy.evaluation.torch_runner import TorchRunner
from prunedeploy.models.darknet import Darknet
from prunedeploy_engines.runtimes.runner import Runner

Attack = Callable[[Darknet, Tensor, Tensor], Tensor]
"""``attack(model, images (B, 3, H, W), targets (T, 6)) -> attacked images``; both as a `Batch` has them."""


@dataclass(frozen=True)
class Evaluation:
    """One runner's result.

    Attributes:
        runner: What ran, of `Runner.describe`.
        n_images: How many images were evaluated.
        clean: On the images as they are.
        attacked: On the attacked images; None without an attack.
        transfer: The attacked images were made with another model than the one that ran.
    """

    runner: dict[str, Any]
    n_images: int
    clean: Measurement
    attacked: Measurement | None
    transfer: bool

    def metrics(self) -> dict[str, float | None]:
        """The figures by their names in ``results.json``; None where undefined or not measured."""
        clean, attacked = self.clean, self.attacked
        return {
            "map_clean": clean.usual.result.map_50_95,
            "map_pgd": attacked.usual.result.map_50_95 if attacked else None,
            "map50_clean": clean.usual.result.map_50,
            "map50_pgd": attacked.usual.result.map_50 if attacked else None,
            "map_clean_conf50": clean.conf50.result.map_50_95,
            "map_pgd_conf50": attacked.conf50.result.map_50_95 if attacked else None,
        }

    def intervals(self) -> dict[str, Interval | None]:
        """The bootstrap interval of every figure of `metrics`; None where there is none."""
        usual, conf50 = self.clean.usual.intervals, self.clean.conf50.intervals
        usual_pgd = self.attacked.usual.intervals if self.attacked else None
        conf50_pgd = self.attacked.conf50.intervals if self.attacked else None
        return {
            "map_clean": usual.map_50_95 if usual else None,
            "map_pgd": usual_pgd.map_50_95 if usual_pgd else None,
            "map50_clean": usual.map_50 if usual else None,
            "map50_pgd": usual_pgd.map_50 if usual_pgd else None,
            "map_clean_conf50": conf50.map_50_95 if conf50 else None,
            "map_pgd_conf50": conf50_pgd.map_50_95 if conf50_pgd else None,
        }


def evaluate(
    runners: Runner | Mapping[str, Runner],
    batches: Iterable[Batch],
    dataset: CocoDataset,
    *,
    attack: Attack | None = None,
    attacked_model: Darknet | None = None,
    iou_threshold: float = IOU_THRESHOLD,
    score_threshold: float = SCORE_THRESHOLD,
    max_detections: int = MAX_DETECTIONS,
    resamples: int = RESAMPLES,
    seed: int = 0,
    save_attacked: str | Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Evaluation]:
    """Run detectors on clean and attacked images and compute mAP.

    Args:
        runners: By the name their result gets; a single one is named after its runtime.
        batches: An `prunedeploy.data.loader.EvaluationLoader` with the runners' input size.
        dataset: Ground truth. Images that the loader left out (bad ones, where allowed) do not count.
        attack: Makes the attacked images of a batch; None evaluates clean images only.
        attacked_model: The model whose gradients ``attack`` uses.
        iou_threshold: NMS drops a box whose IoU with a better one of its class is greater, in [0, 1].
        score_threshold: Detections have a score above it, in [0, `PAPER_SCORE_THRESHOLD`].
        max_detections: Per image, the best by score.
        resamples: Resamples of the bootstrap; 0 computes no intervals.
        seed: Seed of the bootstrap.
        save_attacked: Write the attacked images to this ``.npy``, float32, not quantised; see
            `prunedeploy.evaluation.attacked_images`.
        progress: Called after each batch.

    Returns:
        One `Evaluation` per runner, by its name.

    Raises:
        DataError: A network has other classes than the data set, or the loader meets a bad image.
        ValueError: An attack without a model, attacked images that are no images (wrong shape, pixels not in
            [0, 1]), or a score threshold outside its range.
    """
    named = {runners.runtime: runners} if isinstance(runners, Runner) else dict(runners)
    if not 0 <= score_threshold <= PAPER_SCORE_THRESHOLD:
        raise ValueError(f"score_threshold must be in [0, {PAPER_SCORE_THRESHOLD}], got {score_threshold}")
    if attack is not None and attacked_model is None:
        raise ValueError("an attack needs the model whose gradients it uses: attacked_model")
    if save_attacked is not None and attack is None:
        raise ValueError("save_attacked needs an attack")
    thresholds = Thresholds(iou_threshold, score_threshold, max_detections)
    clean: dict[str, list[DetectionTable]] = {name: [] for name in named}
    attacked: dict[str, list[DetectionTable]] = {name: [] for name in named}
    image_ids: list[int] = []

    with contextlib.ExitStack() as stack:
        writer: AttackedImageWriter | None = None
        for batch in batches:
            for name, runner in named.items():
                clean[name].append(detect_batch(runner, batch.images, batch, dataset, thresholds))
            if attack is not None and attacked_model is not None:
                images = attack(attacked_model, batch.images, batch.targets)
                _check_attacked(images, batch.images)
                for name, runner in named.items():
                    attacked[name].append(detect_batch(runner, images, batch, dataset, thresholds))
                if save_attacked is not None:
                    if writer is None:
                        size = (int(images.shape[2]), int(images.shape[3]))
                        writer = stack.enter_context(AttackedImageWriter(save_attacked, size))
                    writer.write(as_array(images), batch.image_ids)
            image_ids += batch.image_ids
            if progress is not None:
                progress(len(image_ids), len(dataset.images))

    def measured(tables: list[DetectionTable]) -> Measurement:
        return measure(dataset, DetectionTable.concatenate(tables), image_ids, resamples=resamples, seed=seed)

    return {
        name: Evaluation(
            runner=runner.describe(),
            n_images=len(image_ids),
            clean=measured(clean[name]),
            attacked=measured(attacked[name]) if attack is not None else None,
            transfer=attack is not None and not _runs(runner, attacked_model),
        )
        for name, runner in named.items()
    }


def _runs(runner: Runner, model: Darknet | None) -> bool:
    """Is ``model`` itself what the runner runs?"""
    return isinstance(runner, TorchRunner) and runner.model is model


def _check_attacked(images: Tensor, clean: Tensor) -> None:
    if images.shape != clean.shape or images.dtype != torch.float32:
        raise ValueError(
            f"attacked images must be {tuple(clean.shape)} float32, got {tuple(images.shape)} {images.dtype}"
        )
    low, high = float(images.min()), float(images.max())
    if not (low >= 0 and high <= 1):  # NaN fails too
        raise ValueError(f"attacked images must have pixels in [0, 1], got {low} to {high}")
