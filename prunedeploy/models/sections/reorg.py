"""Section ``reorg``: the finer map of YOLOv2, space to depth in Darknet's odd order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from prunedeploy.models.sections.rearranging import Rearranging


@dataclass(frozen=True)
class Reorg(Rearranging):
    """Space to depth in the odd order, depth to space in the even one."""

    refused: ClassVar[Mapping[str, str]] = {
        "flatten": "it turns channels into cells",
        "extra": "it adds values that no layer computes",
    }
    odd_if_reversed: ClassVar[bool] = False
