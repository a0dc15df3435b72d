"""How each kind of detection head is decoded, one file per kind; `HEAD_WRITERS` names them."""

from collections.abc import Callable, Mapping
from typing import Any

from prunedeploy_export.graph.builder import GraphBuilder
from prunedeploy_export.graph.heads.dfl import add_dfl
from prunedeploy_export.graph.heads.gaussian_yolo import add_gaussian_yolo
from prunedeploy_export.graph.heads.group import HeadGroup
from prunedeploy_export.graph.heads.region import add_region
from prunedeploy_export.graph.heads.yolo import add_yolo, add_yolo_new_coords
from prunedeploy_export.graph.heads.yolox import add_yolox

HeadWriter = Callable[[GraphBuilder, HeadGroup[Any]], None]
"""Appends the nodes from raw heads to the group's two outputs."""

HEAD_WRITERS: Mapping[str, HeadWriter] = {
    "yolo": add_yolo,
    "yolo new_coords": add_yolo_new_coords,
    "gaussian_yolo": add_gaussian_yolo,
    "region": add_region,
    "dfl": add_dfl,
    "yolox": add_yolox,
}
"""By the heads' ``decoding``."""

__all__ = ["HEAD_WRITERS", "HeadGroup", "HeadWriter"]
