"""How each kind of detection head is decoded, one file per kind; `HEAD_WRITERS` names them."""

from collections.abc import Callable, Mapping
from typing import Any

from prunedeploy_export.graph.builder import GraphBuilder
from prunedeploy_export.graph.heads.group import HeadGroup
from prunedeploy_export.graph.heads.yolo import add_yolo

HeadWriter = Callable[[GraphBuilder, HeadGroup[Any]], None]
"""Appends the nodes from raw heads to the group's two outputs."""

HEAD_WRITERS: Mapping[str, HeadWriter] = {"yolo": add_yolo}
"""By the section's name in a cfg."""

__all__ = ["HEAD_WRITERS", "HeadGroup", "HeadWriter"]
