"""How much suppression has to look at: pairs of box and class above a score, per image.

An attack on time (``flood``, see docs/flood.md) shows here first, whatever suppression then makes of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunedeploy.evaluation.measurement import PAPER_SCORE_THRESHOLD
from prunedeploy_engines.runtimes.runner import Float32Array


@dataclass(frozen=True)
class Candidates:
    """Counts of some images; of a network with suppression in its graph, of what that left.

    Attributes:
        usual: ``(N,)``, pairs above the score threshold of mAP.
        conf50: ``(N,)``, pairs above `PAPER_SCORE_THRESHOLD`.
    """

    usual: NDArray[np.int64]
    conf50: NDArray[np.int64]

    @classmethod
    def among(cls, scores: Float32Array, score_threshold: float) -> Candidates:
        """Count in the scores ``(N, M, C)`` of N images."""
        usual, conf50 = (np.count_nonzero(scores > one, (1, 2)) for one in (score_threshold, PAPER_SCORE_THRESHOLD))
        return cls(np.asarray(usual), np.asarray(conf50))

    @classmethod
    def concatenate(cls, parts: list[Candidates]) -> Candidates:
        """Those of several batches; at least one."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("usual", "conf50")))

    def summary(self) -> dict[str, Any]:
        """JSON values: mean and largest number per image, at both scores."""
        return {
            "mean": float(self.usual.mean()),
            "largest": int(self.usual.max()),
            "mean_conf50": float(self.conf50.mean()),
            "largest_conf50": int(self.conf50.max()),
        }
