"""Robust mAP against several attacks at once: each image is met by the attack that costs it most.

Which attack that is, an image's own average precision says: over IoU .5 to .95, where several attacks leave the same at
.5, where those are the same too by the detection loss. mAP of a data set is no mean over images, though, so the set of
worst images need not have the lowest mAP. What is reported is the lowest of that set's and of every single attack's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from prunedeploy.data.loader import Batch
from prunedeploy.data.records import CocoDataset
from prunedeploy.evaluation.bootstrap import RESAMPLES, ImageMatches, weighted_map
from prunedeploy.evaluation.detecting import IOU_THRESHOLD, SCORE_THRESHOLD, Thresholds, detect_batch
from prunedeploy.evaluation.detection_table import DetectionTable
from prunedeploy.evaluation.evaluator import Attack
from prunedeploy.evaluation.measurement import Measurement, measure
from prunedeploy.evaluation.torch_runner import TorchRunner
from prunedeploy.models.darknet import Darknet, FoldedDarknet
from prunedeploy.models.loss import yolo_losses

WORST = "worst of each image"


@dataclass(frozen=True)
class Ensemble:
    """What several attacks did to one network.

    Attributes:
        attacks: The measurement under each, by its name.
        worst: That of the set in which every image is as its worst attack left it.
        chosen: How many images each attack was the worst for.
        lowest: Which of the measurements has the lowest mAP: an attack's name, or `WORST`.
    """

    attacks: Mapping[str, Measurement]
    worst: Measurement
    chosen: Mapping[str, int]
    lowest: str

    @property
    def reported(self) -> Measurement:
        """The measurement with the lowest mAP."""
        return self.worst if self.lowest == WORST else self.attacks[self.lowest]


def evaluate_ensemble(
    model: Darknet,
    batches: Iterable[Batch],
    dataset: CocoDataset,
    attacks: Mapping[str, Attack],
    *,
    iou_threshold: float = IOU_THRESHOLD,
    score_threshold: float = SCORE_THRESHOLD,
    resamples: int = RESAMPLES,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Ensemble:
    """Attack every image in every way and measure.

    Args:
        model: The network, whose own gradients the attacks use.
        batches: An `prunedeploy.data.loader.EvaluationLoader` with its input size.
        dataset: Ground truth; images that the loader left out do not count.
        attacks: By name; at least one.
        iou_threshold: As `prunedeploy.evaluation.evaluate` takes it; likewise the rest.
        score_threshold: Of detections.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.
        progress: Called with the number of images after each batch.
    """
    thresholds = Thresholds(iou_threshold, score_threshold)
    tables: dict[str, list[DetectionTable]] = {name: [] for name in attacks}
    losses: dict[str, list[NDArray[np.float32]]] = {name: [] for name in attacks}
    image_ids: list[int] = []
    network = FoldedDarknet(model)
    device = next(model.parameters()).device
    with TorchRunner(model) as runner:
        for batch in batches:
            for name, attack in attacks.items():
                images = attack(model, batch.images, batch.targets)
                tables[name].append(detect_batch(runner, images, batch, dataset, thresholds))
                with torch.no_grad():
                    loss = yolo_losses(network(images.to(device)), batch.targets.to(device), model.cfg)
                losses[name].append(loss.cpu().numpy())
            image_ids += batch.image_ids
            if progress is not None:
                progress(len(batch.image_ids))
    whole = {name: DetectionTable.concatenate(parts) for name, parts in tables.items()}
    measured = {
        name: measure(dataset, table, image_ids, resamples=resamples, seed=seed) for name, table in whole.items()
    }
    loss_of = {
        name: dict(zip(image_ids, np.concatenate(parts).tolist(), strict=True)) for name, parts in losses.items()
    }
    choice = _worst_attacks({name: one.usual.matches for name, one in measured.items()}, loss_of)
    worst = DetectionTable.concatenate(
        table.of_images([image_id for image_id, name in choice.items() if name == attack])
        for attack, table in whole.items()
    )
    found = measure(dataset, worst, image_ids, resamples=resamples, seed=seed)
    maps = {WORST: found, **measured}
    return Ensemble(
        attacks=measured,
        worst=found,
        chosen={name: sum(one == name for one in choice.values()) for name in attacks},
        lowest=min(maps, key=lambda name: _or_one(maps[name].usual.result.map_50_95)),
    )


def _or_one(value: float | None) -> float:
    return 1.0 if value is None else value


def _worst_attacks(matches: Mapping[str, ImageMatches], losses: Mapping[str, Mapping[int, float]]) -> dict[int, str]:
    """The attack that costs each image most, by its id."""
    names = list(matches)
    image_ids = matches[names[0]].image_ids
    alone = np.eye(len(image_ids), dtype=np.int64)
    # An image without objects has no average precision: the loss decides.
    precisions = {name: [np.nan_to_num(values) for values in weighted_map(matches[name], alone)] for name in names}

    def cost(index: int, image_id: int, name: str) -> tuple[float, float, float]:
        mean, at_half = (float(values[index]) for values in precisions[name])
        return mean, at_half, -losses[name][image_id]

    return {
        image_id: min(names, key=lambda name: cost(index, image_id, name))
        for index, image_id in enumerate(image_ids.tolist())
    }
