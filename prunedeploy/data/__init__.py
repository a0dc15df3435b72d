"""Images and boxes: from a COCO folder to batches.

In the order of the data's flow::

    demo         the demo set, composed from real product photos, as a COCO folder
    formats      YOLO's and Pascal VOC's labels, and their conversion to a COCO folder
    coco         find_splits, load_splits, load_coco: a folder -> CocoDataset, checked
    coco_json    the reader behind it, which collects everything that is wrong
    records      CocoDataset and ImageRecord
    check        inspect_coco: what is wrong with a folder, images included
    anchors      k-means on IoU, and how well anchors cover boxes
    reading      one image file -> pixels in the frame of its annotations
    transforms   augment: flip, zoom, shift and colour, keyed by (seed, epoch, image)
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
