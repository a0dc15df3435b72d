"""Section ``dropout``: values, or blocks of them, are left out at random while Darknet trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from prunedeploy.models.sections.passing_on import PassingOn


@dataclass(frozen=True)
class Dropout(PassingOn):
    """Nothing is left out here, in training neither."""

    training_only: ClassVar[frozenset[str]] = frozenset(
        "probability dropblock dropblock_size_rel dropblock_size_abs".split()
    )
