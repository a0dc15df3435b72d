"""Square attack on the very runner that is measured, as `prunedeploy.evaluation.evaluate` takes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prunedeploy.attacks.answer_margins import from_detections, from_scores, objects_of, served
from prunedeploy.attacks.square import Loss, Square
from prunedeploy.config import Feedback, Start
from prunedeploy.data.loader import Batch
from prunedeploy.evaluation.detecting import IOU_THRESHOLD
from prunedeploy.evaluation.measurement import PAPER_SCORE_THRESHOLD
from prunedeploy_engines.errors import ConfigError
from prunedeploy_engines.runtimes.runner import Float32Array, Runner

SQUARE = "square"
BLIND = ("noise",)
"""Attacks that know nothing of the network, whose images are no white-box start."""


@dataclass(frozen=True)
class BlackBox:
    """Square, with what it sees of a runner and where it starts.

    Attributes:
        square: The search; a runner that takes uint8 images is attacked on their lattice.
        feedback: ``scores``: boxes and scores of all candidates. ``detections``: what suppression and the score
            threshold leave of them, as a server answers.
        start: ``clean``: stripes, as in the paper. ``white-box``: the best, by the attack's own loss, of what attacks
            with gradients made of each image.
        score_threshold: The server's, in [0, 1]; for ``detections``.
        iou_threshold: Likewise, of suppression.
        progress: Called with the number of images after each query.
    """

    square: Square
    feedback: Feedback = "scores"
    start: Start = "clean"
    score_threshold: float = PAPER_SCORE_THRESHOLD
    iou_threshold: float = IOU_THRESHOLD
    progress: Callable[[int], None] | None = None

    def __call__(self, runner: Runner, batch: Batch, made: Mapping[str, Tensor]) -> tuple[Tensor, NDArray[np.int64]]:
        """Attack a batch.

        Args:
            runner: Who is asked.
            batch: The clean images with their objects.
            made: The batch as other attacks left it, by their names.

        Returns:
            Attacked images, ``(B, C, H, W)`` float32, and how many queries each took, ``(B,)``.

        Raises:
            ConfigError: The runner does not give what is asked of it, or there is no such start.
        """
        square = self.against(runner)
        starts = [images for name, images in made.items() if name not in BLIND]
        if self.start == "clean":
            starts = []
        elif not starts:
            raise ConfigError("there is no white-box attack to start from", "--start", "give one beside square")
        elif len(starts) > square.queries:
            what = f"{square.queries} queries do not reach the {len(starts)} white-box images that it starts from"
            raise ConfigError(what, "--queries", "give more")
        objects = objects_of(batch.targets, len(batch.images), runner.input_size, batch.geometries)
        if self.feedback == "scores":
            loss = from_scores(runner, objects)
        else:
            detect = served(runner, self.score_threshold, self.iou_threshold)
            loss = from_detections(detect, objects, self.score_threshold)
        found = square(_array(batch.images), self._noted(loss), [_array(images) for images in starts])
        if self.progress is not None:  # what was saved counts as done
            self.progress(int((square.queries - found.queries).sum()))
        return torch.from_numpy(found.images), found.queries

    def against(self, runner: Runner) -> Square:
        """The search on a runner.

        Raises:
            ConfigError: The runner has no other image in the ball.
        """
        try:
            return replace(self.square, lattice=runner.uint8_input)
        except ValueError as error:
            raise ConfigError(str(error), "--eps", "take 1/255 = 0.00393 or more") from None

    def described(self) -> dict[str, Any]:
        """What the attack was, as JSON values."""
        square = self.square
        threshold = {"score_threshold": self.score_threshold} if self.feedback == "detections" else {}
        return {
            "name": SQUARE,
            "eps": square.eps,
            "norm": square.norm,
            "queries": square.queries,
            "area": square.area,
            "start": self.start,
            "feedback": self.feedback,
            **threshold,
            "precision": "fp32",
            "seed": square.seed,
        }

    def _noted(self, loss: Loss) -> Loss:
        """A loss that says how many images it was asked about."""
        if self.progress is None:
            return loss
        told = self.progress

        def noted(images: Float32Array, indices: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
            found = loss(images, indices)
            told(len(indices))
            return found

        return noted


def _array(images: Tensor) -> Float32Array:
    return np.ascontiguousarray(images.detach().cpu().numpy())
