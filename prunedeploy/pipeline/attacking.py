"""A network under the attacks that are asked for: what a build's stage and ``prunedeploy evaluate`` share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from prunedeploy.attacks import ThreatModel
from prunedeploy.attacks.norms import Norm
from prunedeploy.attacks.suite import Suite, attack_suite
from prunedeploy.config import EvaluationConfig, RobustnessConfig
from prunedeploy.data.loader import EvaluationLoader
from prunedeploy.data.records import CocoDataset
from prunedeploy.evaluation import Evaluation
from prunedeploy.evaluation.attack_checks import CHECKED_IMAGES, check_attacks, measurements
from prunedeploy.evaluation.robustness import curve, described, distortion, looked_into
from prunedeploy.models.detector import Detector
from prunedeploy.pipeline.progress import Progress


@dataclass(frozen=True)
class Attacked:
    """A network in PyTorch, the images it is attacked on, and how.

    Attributes:
        model: The network.
        dataset: The images that are attacked.
        loader_of: Gives the batches of a data set; its loader may be gone through several times.
        threat_model: The ball of all attacks, and the search of PGD.
        wanted: Which attacks, how far they search, and what is looked into.
        settings: Thresholds, batch size and resamples.
        seed: Seed of random starts and the bootstrap.
        progress: Where long work says how far it is.
        norm: Norm of the ball.
        parent: The network that this one was cut from, for a check.
    """

    model: Detector
    dataset: CocoDataset
    loader_of: Callable[[CocoDataset], EvaluationLoader]
    threat_model: ThreatModel
    wanted: RobustnessConfig
    settings: EvaluationConfig
    seed: int
    progress: Progress
    norm: Norm = "linf"
    parent: Detector | None = None

    @cached_property
    def suite(self) -> Suite:
        """The attacks that search a ball."""
        wanted = self.wanted
        return attack_suite(
            self.model, wanted.attacks, self.threat_model, wanted.budget, norm=self.norm, seed=self.seed
        )

    @property
    def references(self) -> list[str]:
        """Which of the wanted attacks leave an mAP."""
        return [one for one in self.wanted.attacks if one in self.suite.passes]

    @property
    def described(self) -> list[dict[str, Any]]:
        """What each of these was."""
        return described(self.suite, self.references, self.threat_model, self.wanted.budget, self.norm, self.seed)

    def looked_into(self, found: Evaluation) -> dict[str, Any]:
        """How ensembles came about, and what attacks broke, in one runner's result."""
        return looked_into(
            found,
            self.dataset,
            self.references,
            error_kinds=self.wanted.error_kinds,
            score_threshold=self.settings.score_threshold,
            resamples=self.settings.bootstrap,
            seed=self.seed,
        )

    def beyond(self, name: str) -> dict[str, Any]:
        """What is measured beside mAP: ``distortion``, ``curve`` and ``checks``, those that are wanted.

        Args:
            name: Name of the network, for the terminal.
        """
        document: dict[str, Any] = {}
        loader, images = self.loader_of(self.dataset), len(self.dataset.images)
        bootstrap: dict[str, Any] = {"resamples": self.settings.bootstrap, "seed": self.seed}
        thresholds: dict[str, Any] = {
            "iou_threshold": self.settings.iou_threshold,
            "score_threshold": self.settings.map_score_threshold,
        }
        if "cw" in self.wanted.attacks:
            with self.progress.task(f"cw on {name}", images) as advance:
                document["distortion"] = distortion(
                    self.model,
                    loader,
                    self.wanted.budget,
                    score_threshold=self.settings.score_threshold,
                    iou_threshold=self.settings.iou_threshold,
                    **bootstrap,
                    progress=advance,
                )
        if self.wanted.curve:
            strongest = self.references[-1] if self.references else "pgd"
            with self.progress.task(f"{strongest} on {name}, by radius", len(self.wanted.curve) * images) as advance:
                rows = curve(
                    self.model,
                    loader,
                    self.dataset,
                    strongest,
                    self.threat_model,
                    self.wanted.curve,
                    budget=self.wanted.budget,
                    norm=self.norm,
                    **thresholds,
                    **bootstrap,
                    progress=advance,
                )
            document["curve"] = {"attack": strongest, "rows": rows}
        if self.wanted.checks:
            few = replace(self.dataset, images=self.dataset.images[:CHECKED_IMAGES])
            passes = measurements(self.parent) * len(few.images)
            with self.progress.task(f"check the attacks on {name}", passes) as advance:
                found = check_attacks(
                    self.model,
                    self.loader_of(few),
                    few,
                    self.threat_model,
                    self.wanted.budget,
                    parent=self.parent,
                    **thresholds,
                    seed=self.seed,
                    progress=advance,
                )
            document["checks"] = [asdict(check) for check in found]
        return document
