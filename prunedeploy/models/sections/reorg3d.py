"""Section ``reorg3d``: space to depth as other programs understand it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from prunedeploy.models.sections.rearranging import Rearranging


@dataclass(frozen=True)
class Reorg3d(Rearranging):
    """Space to depth in the even order, depth to space in the odd one."""

    odd_if_reversed: ClassVar[bool] = True
