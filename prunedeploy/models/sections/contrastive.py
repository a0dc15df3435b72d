"""Section ``contrastive``: a loss of Darknet's training, on embeddings of objects for tracking.

Reference: AlexeyAB's Darknet, ``forward_contrastive_layer``, which returns at once unless it trains.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from prunedeploy.models.sections.passing_on import PassingOn


@dataclass(frozen=True)
class Contrastive(PassingOn):
    """What follows reads what it read."""

    training_only: ClassVar[frozenset[str]] = frozenset(
        "classes temperature yolo_layer cls_normalizer max_delta contrastive_neg_max".split()
    )
