"""What an attack without a ball needed over a data set: how far images must move until an object is lost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prunedeploy.attacks.carlini_wagner import Lost
from prunedeploy.evaluation.bootstrap import LEVEL, RESAMPLES, Interval


@dataclass(frozen=True)
class Distortions:
    """L2 and L-inf norms of the changes, image by image.

    Attributes:
        l2: ``(N,)`` as in `prunedeploy.attacks.carlini_wagner.Lost`.
        linf: ``(N,)``.
        attackable: ``(N,)`` bool.
    """

    l2: NDArray[np.float64]
    linf: NDArray[np.float64]
    attackable: NDArray[np.bool_]

    @classmethod
    def of(cls, batches: Iterable[Lost]) -> Distortions:
        """Those of several batches, one after the other."""
        columns = [(one.l2, one.linf, one.attackable) for one in batches]
        l2, linf, attackable = (
            np.concatenate([np.empty(0), *(column.cpu().numpy() for column in kind)])
            for kind in (zip(*columns, strict=True) if columns else ((), (), ()))
        )
        return cls(l2.astype(np.float64), linf.astype(np.float64), attackable.astype(np.bool_))

    @property
    def succeeded(self) -> int:
        """For how many images an object was lost."""
        return int(np.isfinite(self.l2).sum())

    def median(self, *, resamples: int = RESAMPLES, seed: int = 0) -> Interval | None:
        """Median of the L2 norm over the attackable images, and its percentile interval over images.

        An image on which the attack failed counts as farther than any other. So either end of the interval, and the
        median itself, is infinite if it falls among those: the images say only that it is no less than the largest
        that was found. None without attackable images.
        """
        values = np.nan_to_num(self.l2[self.attackable], nan=np.inf)
        if not len(values):
            return None
        drawn = np.random.default_rng(seed).integers(0, len(values), (resamples, len(values)))
        medians = np.sort(np.median(values[drawn], axis=1))
        # Order statistics, as between a finite and an infinite one nothing can be interpolated.
        low, high = (int(share * (resamples - 1)) for share in ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
        return Interval(float(np.median(values)), float(medians[low]), float(medians[high]), LEVEL, resamples)
