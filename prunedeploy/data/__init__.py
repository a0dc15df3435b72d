"""Images and boxes: from a data folder to batches.

In the order of the data's flow::

    demo         the demo set, composed from real product photos, as a COCO folder
    formats      COCO's folders, YOLO's and Pascal VOC's labels: where splits are, and what the labels say
    recognise    find_splits: which format a folder has, which split is for training and which for test
    coco_json    the one reader of records, which collects everything that is wrong
    coco_boxes   what a sound box is; categories: which is which class; image_names: where the files are
    coco         load_splits, load_coco: a folder -> CocoDataset, checked; what is allowed to be wrong
    records      CocoDataset, ImageRecord, Problem
    left_out     what was left out, counted
    check        inspect_coco: what is wrong with a folder, images included
    convert      a data set of any format, written as a COCO folder
    names_beside class names that lie beside a model
    anchors      k-means on IoU, and how well anchors cover boxes
    reading      one image file -> pixels in the frame of its annotations
    draws        random draws keyed by numbers, e.g. seed, epoch and image
    transforms   augment: flip, zoom, shift and colour, keyed by (seed, epoch, image)
    corruptions  weather, noise, blur and compression at five severities, for measuring
    batches      a letterboxed image with its boxes, a Batch of them
    loader       TrainingLoader (endless, by step) and EvaluationLoader (in order)
"""

from prunedeploy.data.coco import Allowed, load_coco, load_splits, measured_subset, train_test_subset
from prunedeploy.data.recognise import find_splits
from prunedeploy.data.records import CocoDataset, ImageRecord, content_key

__all__ = [
    "Allowed",
    "CocoDataset",
    "ImageRecord",
    "content_key",
    "find_splits",
    "load_coco",
    "load_splits",
    "measured_subset",
    "train_test_subset",
]
