"""mAP of a table of detections, at both score thresholds, with bootstrap intervals.

One forward pass serves both: greedy NMS never lets a lower score suppress a higher one, so the detections
above .5 among those above .001 are the detections at .5.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from prunedeploy.data.records import CocoDataset
from prunedeploy.evaluation.bootstrap import RESAMPLES, ImageMatches, MapIntervals, bootstrap_map, matches_from
from prunedeploy.evaluation.coco_map import MapResult, map_from, run_cocoeval
from prunedeploy.evaluation.detection_table import DetectionTable

PAPER_SCORE_THRESHOLD = 0.5
"""The paper's; the figures with ``conf50`` in their names."""


@dataclass(frozen=True)
class Scored:
    """mAP at one score threshold.

    Attributes:
        result: By pycocotools.
        intervals: By bootstrap; None if none were asked for.
        matches: For `prunedeploy.evaluation.bootstrap.paired_interval`.
    """

    result: MapResult
    intervals: MapIntervals | None
    matches: ImageMatches = field(repr=False)


@dataclass(frozen=True)
class Measurement:
    """How one runner did on one kind of images.

    Attributes:
        detections: In pixels of the original images.
        usual: mAP of all of them; their score threshold is COCO's usual 0.001 unless told otherwise.
        conf50: mAP of those above `PAPER_SCORE_THRESHOLD`.
    """

    detections: DetectionTable = field(repr=False)
    usual: Scored
    conf50: Scored


def measure(
    dataset: CocoDataset,
    detections: DetectionTable,
    image_ids: Collection[int] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Measurement:
    """Compute mAP at both score thresholds, with bootstrap intervals.

    Args:
        dataset: Ground truth.
        detections: With a score threshold of at most `PAPER_SCORE_THRESHOLD`; may be read back from a CSV.
        image_ids: The images that count; None: all.
        resamples: Resamples of the bootstrap; 0 computes no intervals.
        seed: Seed of the bootstrap.
    """

    def scored(table: DetectionTable) -> Scored:
        evaluation = run_cocoeval(dataset, table, image_ids)
        matches = matches_from(evaluation)
        intervals = bootstrap_map(matches, resamples=resamples, seed=seed) if resamples else None
        return Scored(map_from(evaluation, dataset.class_names), intervals, matches)

    return Measurement(detections, scored(detections), scored(detections.above(PAPER_SCORE_THRESHOLD)))
