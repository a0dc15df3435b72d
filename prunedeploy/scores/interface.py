"""What every importance score takes and gives.

A score function maps (model, batches, loss) to one float per weight, whatever it needs of them: scores that follow
from the weights alone read neither batches nor loss, attributions read images, sensitivities read both. Settings of
a score are bound before, with `functools.partial`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from torch import Tensor

from prunedeploy.data.batches import Batch
from prunedeploy.models.darknet import Darknet

Scores = dict[int, Tensor]
"""By layer index, one for each convolution: weight-shaped float32; the absolute value is the importance."""

DetectionLoss = Callable[[list[Tensor], Tensor], Tensor]
"""Raw heads in cfg order, each ``(B, A * (5 + C), H, W)``, and targets ``(T, 6)``, to a 0-d loss: mean over images."""


class ScoreFunction(Protocol):
    """A score by the one interface of all."""

    def __call__(self, model: Darknet, batches: Iterable[Batch], loss: DetectionLoss) -> Scores:
        """Score every weight of every convolution.

        Args:
            model: The network in evaluation mode; not modified.
            batches: Images ``(B, 3, H, W)`` float32 in [0, 1], and their boxes; read at most once.
            loss: The detection loss.

        Returns:
            One tensor per convolution, heads included.
        """
        ...
