"""Robust mAP against several attacks at once: each image is met by the attack that costs it most.

An image's own average precision says which attack that is: over IoU .5 to .95; where several attacks leave the same,
at .5; where those are the same too, the detection loss. But mAP of a data set is not a mean over images, so the set of
worst images need not have the lowest mAP. What is reported is the lowest of that set's and of every single attack's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from prunedeploy.evaluation.bootstrap import ImageMatches, weighted_map
from prunedeploy.evaluation.detection_table import DetectionTable
from prunedeploy.evaluation.measurement import Measurement

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


def ensemble_of(
    attacks: Mapping[str, Measurement],
    losses: Mapping[str, Mapping[int, float]],
    measured: Callable[[DetectionTable], Measurement],
) -> Ensemble:
    """Let each image be met by the attack that costs it most.

    Args:
        attacks: What one detector found under each attack, on the same images; at least one.
        losses: The detection loss of each image under each attack, by the image's id.
        measured: Measures a table of detections as the attacks' were.
    """
    choice = _worst_attacks({name: one.usual.matches for name, one in attacks.items()}, losses)
    worst = DetectionTable.concatenate(
        one.detections.of_images([image_id for image_id, chosen in choice.items() if chosen == name])
        for name, one in attacks.items()
    )
    found = measured(worst)
    maps = {WORST: found, **attacks}
    return Ensemble(
        attacks=attacks,
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
