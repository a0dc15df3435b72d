"""What is said of a network's robustness beside its mAP: how each attack worked, at which radius, and what it broke.

All of it as JSON values, as ``results.json`` and ``evaluate --json`` have them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

from prunedeploy.attacks.carlini_wagner import CarliniWagner
from prunedeploy.attacks.norms import Norm
from prunedeploy.attacks.suite import CARLINI_WAGNER, Suite, attack_suite
from prunedeploy.attacks.threat_model import ThreatModel
from prunedeploy.config import Budget
from prunedeploy.data.loader import Batch
from prunedeploy.data.records import CocoDataset
from prunedeploy.evaluation.attack_effects import attack_effects
from prunedeploy.evaluation.bootstrap import RESAMPLES
from prunedeploy.evaluation.distortions import Distortions
from prunedeploy.evaluation.error_types import error_types
from prunedeploy.evaluation.evaluator import Evaluation, evaluate, figure_name
from prunedeploy.evaluation.measurement import PAPER_SCORE_THRESHOLD
from prunedeploy.evaluation.torch_runner import TorchRunner
from prunedeploy.models.detector import Detector

RADII = tuple(radius / 255 for radius in (1, 2, 4, 8, 12.75))
"""Radii of the curve, in pixel units of [0, 1]; the last one is the paper's 0.05."""


def described(
    suite: Suite, references: Sequence[str], threat_model: ThreatModel, budget: Budget, norm: Norm, seed: int
) -> list[dict[str, Any]]:
    """What each attack was: the budget beside its name, and what it costs.

    Args:
        suite: Attacks of `attack_suite`, made with the other arguments.
        references: Which of its attacks and ensembles.
        threat_model: As `attack_suite` takes it; likewise the rest.
        budget: Budget of APGD and the ensemble.
        norm: Norm of the ball.
        seed: Seed of random starts.
    """
    rows: list[dict[str, Any]] = []
    for reference in references:
        name = reference.partition(":")[0]
        row: dict[str, Any] = {"name": reference, "eps": threat_model.eps, "norm": norm}
        if name == "pgd":
            row |= dict(threat_model)
        if name in {"apgd", "ensemble"}:
            row |= {"budget": budget}
        if reference in suite.ensembles:
            row |= {"attacks": list(suite.ensembles[reference])}
        rows.append({**row, "passes": suite.passes[reference], "precision": "fp32", "seed": seed})
    return rows


def looked_into(
    found: Evaluation,
    dataset: CocoDataset,
    references: Sequence[str],
    *,
    error_kinds: bool,
    score_threshold: float = PAPER_SCORE_THRESHOLD,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """How ensembles came about, and what attacks broke.

    Args:
        found: What was found with one runner.
        dataset: That it was measured on.
        references: The attacks and ensembles to look into.
        error_kinds: Sort errors too, which takes longer than everything else here.
        score_threshold: Score threshold of the detections that count as found, in [0, 1]; errors are of all detections.
        resamples: Resamples of bootstrap intervals.
        seed: Seed of the bootstrap.

    Returns:
        ``ensembles`` by name: mAP of the set of worst images, ``lowest``, ``chosen`` and mAP of each attack.
        ``error_kinds`` (of clean images too) and ``effects`` by attack.
    """
    image_ids = found.clean.usual.matches.image_ids.tolist()
    document: dict[str, Any] = {
        "ensembles": {
            name: {
                "lowest": one.lowest,
                "map_worst": one.worst.usual.result.map_50_95,
                "chosen": dict(one.chosen),
                "map": {attack: measured.usual.result.map_50_95 for attack, measured in one.attacks.items()},
            }
            for name, one in found.ensembles.items()
        }
    }
    if error_kinds:
        clean = found.clean.detections
        tables = {"clean": clean, **{name: found.attacked[name].detections for name in references}}
        document["error_kinds"] = {
            figure_name(name): asdict(error_types(dataset, table, image_ids)) for name, table in tables.items()
        }
        document["effects"] = {
            figure_name(name): asdict(
                attack_effects(
                    dataset,
                    clean,
                    found.attacked[name].detections,
                    image_ids,
                    score_threshold=score_threshold,
                    resamples=resamples,
                    seed=seed,
                )
            )
            for name in references
        }
    return document


def distortion(
    model: Detector,
    batches: Iterable[Batch],
    budget: Budget = "standard",
    *,
    score_threshold: float = PAPER_SCORE_THRESHOLD,
    iou_threshold: float,
    resamples: int = RESAMPLES,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """How little changes an image enough that it loses an object, by Carlini and Wagner's attack in L2.

    Args:
        model: The network.
        batches: The images.
        budget: How far it searches; what is found is an upper bound.
        score_threshold: Score threshold of the detections that count as found, in (0, 1).
        iou_threshold: IoU threshold of suppression.
        resamples: Resamples of the bootstrap.
        seed: Seed of the bootstrap.
        progress: Called with the number of images after each batch.

    Returns:
        ``l2``: median over the images in which something is found, with its ``interval``; None where it falls among
        images for which no such change was found. ``attackable`` and ``succeeded`` count images.
    """
    searches, steps = CARLINI_WAGNER[budget]
    attack = CarliniWagner(
        model,
        model.for_inference(),
        steps,
        searches,
        score_threshold=score_threshold,
        iou_threshold=iou_threshold,
    )
    device = model.device
    lost = []
    for batch in batches:
        lost.append(attack(batch.images.to(device), batch.targets.to(device), batch.geometries))
        if progress is not None:
            progress(len(batch.image_ids))
    found = Distortions.of(lost)
    median = found.median(resamples=max(1, resamples), seed=seed)
    ends = None if median is None or resamples == 0 else [_finite(median.low), _finite(median.high)]
    return {
        "name": "cw",
        "norm": "l2",
        "budget": budget,
        "passes": searches * steps,
        "score_threshold": score_threshold,
        "images": len(found.l2),
        "attackable": int(found.attackable.sum()),
        "succeeded": found.succeeded,
        "l2": None if median is None else _finite(median.value),
        "interval": ends,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def curve(
    model: Detector,
    batches: Iterable[Batch],
    dataset: CocoDataset,
    reference: str,
    threat_model: ThreatModel,
    radii: Sequence[float] = RADII,
    *,
    budget: Budget = "standard",
    norm: Norm = "linf",
    iou_threshold: float,
    score_threshold: float,
    resamples: int = RESAMPLES,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> list[dict[str, Any]]:
    """Robust mAP of a network over the radius of the ball.

    Args:
        model: The network, in PyTorch.
        batches: May be gone through several times, as an `prunedeploy.data.loader.EvaluationLoader` may.
        dataset: Ground truth.
        reference: The attack or ensemble.
        threat_model: Its ball is replaced; PGD's steps keep their share of the radius.
        radii: In the order in which they are wanted.
        budget: As `attack_suite` takes it.
        norm: Norm of the ball.
        iou_threshold: As `evaluate` takes it; likewise the rest.
        score_threshold: Score threshold of detections.
        resamples: Resamples of the bootstrap.
        seed: Seed of the bootstrap and of random starts.
        progress: Called with the number of images after each batch, of each radius.

    Returns:
        A row per radius: ``eps``, ``map`` and its ``interval``.
    """
    rows = []
    with TorchRunner(model) as runner:
        for eps in radii:
            scaled = {"eps": eps, "step_size": threat_model.step_size * eps / threat_model.eps}
            suite = attack_suite(
                model, [reference], threat_model.model_copy(update=scaled), budget, norm=norm, seed=seed
            )
            found = evaluate(
                runner,
                batches,
                dataset,
                attack=suite.attacks,
                ensembles=suite.ensembles,
                attacked_model=model,
                iou_threshold=iou_threshold,
                score_threshold=score_threshold,
                resamples=resamples,
                seed=seed,
                progress=progress,
            )[runner.runtime]
            name = f"map_{figure_name(reference)}"
            interval = found.intervals()[name]
            rows.append({
                "eps": eps,
                "map": found.metrics()[name],
                "interval": None if interval is None else [interval.low, interval.high],
            })  # fmt: skip
    return rows
