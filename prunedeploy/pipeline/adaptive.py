"""Attacks on the engines themselves, by way of their twins: what ``evaluate --adaptive`` and a build's rows share."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from prunedeploy.attacks import ThreatModel
from prunedeploy.attacks.norms import Norm, on_lattice, random_start
from prunedeploy.evaluation import Evaluation, evaluate
from prunedeploy.evaluation.engine_twin import GatedTwin, gated_twin
from prunedeploy.pipeline.attacking import Attacked
from prunedeploy_engines.bundle import Bundle
from prunedeploy_engines.bundle.source import ModelSource
from prunedeploy_engines.runtimes.opening import model_target
from prunedeploy_engines.runtimes.runner import Runner

GATE_IMAGES = 8
"""A twin is compared with its engine on so many images, and on a random point of the ball around each."""


def engine_file(source: ModelSource, bundle: Bundle | None, runtime: str, precision: str) -> Path:
    """The ONNX file that an engine runs, or was built from.

    Raises:
        BundleError: There is none of this precision.
    """
    if source.onnx is not None and runtime != "tensorrt":
        return source.onnx
    assert bundle is not None
    return bundle.model_path(precision, model_target(runtime))


@dataclass(frozen=True)
class AdaptiveAttack:
    """Attacks on one engine.

    Attributes:
        runner: The engine.
        gated: Its twin, which is attacked.
        attacked: The attacks on its parent, which are repeated on the twin.
    """

    runner: Runner
    gated: GatedTwin
    attacked: Attacked

    @classmethod
    def on(cls, path: Path, runner: Runner, attacked: Attacked, threads: int | None = None) -> AdaptiveAttack:
        """Prepare it.

        Args:
            path: The engine's ONNX file.
            runner: The engine.
            attacked: The attacks on its parent.
            threads: Threads of ONNX Runtime, for the gate.

        Raises:
            EngineError: The file is not one of ours.
            ConfigError: It is fp32, or of another network.
            GateError: Its twin computes something else.
        """
        batch = next(iter(attacked.loader_of(attacked.dataset)))
        clean = batch.images[:GATE_IMAGES]
        eps, norm = attacked.threat_model.eps, attacked.norm
        moved = random_start(clean, eps, norm, [(attacked.seed, number) for number in range(len(clean))])
        gated = gated_twin(
            path,
            attacked.model.cfg,
            runner,
            np.concatenate([clean.numpy(), on_lattice(moved, clean, eps, norm).numpy()]),
            device=attacked.model.device,
            score_threshold=attacked.settings.map_score_threshold,
            iou_threshold=attacked.settings.iou_threshold,
            threads=threads,
        )
        ball = ball_in_8_bits(attacked.threat_model, norm) if runner.uint8_input else attacked.threat_model
        wanted = attacked.wanted.model_copy(update={"curve": (), "checks": False})
        return cls(runner, gated, replace(attacked, model=gated.twin, threat_model=ball, wanted=wanted))

    def measure(self, name: str) -> tuple[Evaluation, dict[str, Any]]:
        """Attack the twin, run the engine on these images.

        Args:
            name: Name of the engine, for the terminal.

        Returns:
            The engine's result. And ``twin``, what its gates measured, and what `Attacked.looked_into` and
            `Attacked.beyond` find.
        """
        attacked, settings = self.attacked, self.attacked.settings
        with attacked.progress.task(f"attack the twin of {name}", len(attacked.dataset.images)) as advance:
            found = evaluate(
                {name: self.runner},
                attacked.loader_of(attacked.dataset),
                attacked.dataset,
                attack=attacked.suite.attacks,
                ensembles=attacked.suite.ensembles,
                attacked_model=self.gated.twin,
                lattice=partial(on_lattice, eps=attacked.threat_model.eps, norm=attacked.norm),
                iou_threshold=settings.iou_threshold,
                score_threshold=settings.map_score_threshold,
                resamples=settings.bootstrap,
                seed=attacked.seed,
                progress=advance,
            )[name]
        return found, {
            "twin": self.gated.as_dict(),
            **attacked.looked_into(found),
            **attacked.beyond(f"the twin of {name}"),
        }


def ball_in_8_bits(threat_model: ThreatModel, norm: Norm) -> ThreatModel:
    """The ball with the same images of 255ths in it whose L-inf radius is whole itself, so that rounding stays inside.

    A radius below 1 / 255 is left alone: no other image of 255ths is in it.
    """
    levels = math.floor(255 * threat_model.eps + 5e-5)
    if norm == "l2" or levels == 0:
        return threat_model
    return threat_model.model_copy(update={"eps": levels / 255})


def adaptive_figures(found: Evaluation) -> tuple[dict[str, float | None], dict[str, list[float] | None]]:
    """Figures of attacked images and their intervals, by names that end in ``_adaptive``."""
    of_attacks = [name for name in found.metrics() if "clean" not in name] if found.attacked else []
    metrics, intervals = found.metrics(), found.intervals()
    ends = {name: None if (one := intervals[name]) is None else [one.low, one.high] for name in of_attacks}
    return {f"{name}_adaptive": metrics[name] for name in of_attacks}, {f"{name}_adaptive": ends[name] for name in ends}
