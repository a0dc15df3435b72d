"""Section ``cost``: a loss of Darknet's training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from prunedeploy.models.sections.passing_on import PassingOn


@dataclass(frozen=True)
class Cost(PassingOn):
    """What follows reads what it read."""

    training_only: ClassVar[frozenset[str]] = frozenset("type scale ratio".split())
