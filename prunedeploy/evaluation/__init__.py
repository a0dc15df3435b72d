"""How good a detector is, on clean and on attacked images, whatever runs it.

In the order of the data's flow::

    evaluator         evaluate: clean and attacked images through any number of runners, in one loop
    torch_runner      a PyTorch network behind the contract of `prunedeploy_engines.runtimes.runner.Runner`
    detecting         batches through one runner, to detections in pixels of the original images
    detection_table   the detections of a whole data set, as columns
    detections_csv    the same as a CSV file
    measurement       mAP of a table at both score thresholds, with intervals
    coco_map          mAP by pycocotools
    bootstrap         how far that mAP would move on other images of the same kind
    ensemble          several attacks as one: each image as its worst leaves it
    error_types       what kinds of errors a detector makes, and what each kind costs
    attack_effects    what becomes of the objects that were found before an attack
    robustness        all of that as JSON values, and robust mAP over the radius
    corruption        mAP under weather, noise, blur and compression, and its means mPC and rPC
    attack_checks     whether an attack can be believed
    engine_twin       an exported file as a network that can be attacked
"""

from prunedeploy.evaluation.bootstrap import (
    ImageMatches,
    Interval,
    MapIntervals,
    PairedInterval,
    bootstrap_map,
    matches_from,
    paired_interval,
)
from prunedeploy.evaluation.coco_map import MapResult, coco_map, map_from, run_cocoeval
from prunedeploy.evaluation.detection_table import DetectionTable
from prunedeploy.evaluation.detections_csv import read_detections, write_detections
from prunedeploy.evaluation.evaluator import PGD, Evaluation, evaluate, figure_name
from prunedeploy.evaluation.measurement import Measurement, Scored, measure
from prunedeploy.evaluation.torch_runner import TorchRunner

__all__ = [
    "PGD",
    "DetectionTable",
    "Evaluation",
    "ImageMatches",
    "Interval",
    "MapIntervals",
    "MapResult",
    "Measurement",
    "PairedInterval",
    "Scored",
    "TorchRunner",
    "bootstrap_map",
    "coco_map",
    "evaluate",
    "figure_name",
    "map_from",
    "matches_from",
    "measure",
    "paired_interval",
    "read_detections",
    "run_cocoeval",
    "write_detections",
]
