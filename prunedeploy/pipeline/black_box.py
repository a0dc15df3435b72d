"""Square attack in ``prunedeploy evaluate``: what it asks of the runners, and what is said of its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from prunedeploy.attacks import ThreatModel
from prunedeploy.attacks.norms import Norm
from prunedeploy.attacks.square import QUERIES, Square
from prunedeploy.config import Feedback, Start
from prunedeploy.evaluation import Evaluation
from prunedeploy.evaluation.attack_checks import Check, black_box_check
from prunedeploy.evaluation.black_box import BLIND, SQUARE, BlackBox
from prunedeploy_engines.errors import ConfigError
from prunedeploy_engines.runtimes.onnx_file import NmsInGraph
from prunedeploy_engines.runtimes.runner import Runner


def black_box(
    runners: Sequence[Runner],
    threat_model: ThreatModel,
    *,
    queries: int | None,
    start: Start | None,
    feedback: Feedback | None,
    norm: Norm,
    seed: int,
    score_threshold: float,
    iou_threshold: float,
    nms: NmsInGraph | None,
) -> BlackBox:
    """The attack as it was asked for; refused before anything is measured if a runner cannot answer it.

    Args:
        runners: All that will be asked.
        threat_model: Its ball.
        queries: Budget of each image; None: `QUERIES`.
        start: None: clean.
        feedback: None: scores, or detections where they are all that a runner gives.
        norm: Norm of the ball.
        seed: Seed of the search.
        score_threshold: At which detections are served, in [0, 1].
        iou_threshold: Of their suppression, in [0, 1].
        nms: Suppression in the graph of the file that runs; its threshold holds if it is higher.

    Raises:
        ConfigError: The ball has no room, or a file with suppression in its graph is asked for scores.
    """
    suppressed = any(runner.nms_classes is not None for runner in runners)
    if suppressed and feedback == "scores":
        what = "a file with suppression in its graph gives no scores of candidates"
        raise ConfigError(what, "--feedback scores", "use --feedback detections")
    try:
        square = Square(threat_model.eps, queries or QUERIES, norm, seed=seed)
    except ValueError as error:
        raise ConfigError(str(error), "--eps", "give a larger one") from None
    box = BlackBox(
        square,
        feedback or ("detections" if suppressed else "scores"),
        start or "clean",
        score_threshold if nms is None else max(score_threshold, nms.score_threshold),
        iou_threshold,
    )
    for runner in runners:
        box.against(runner)
    return box


def queries_row(found: Evaluation) -> dict[str, Any]:
    """How often one runner was asked about an image, by attack: ``queries`` of its row; nothing if it was not asked."""
    counts = {
        name: {"mean": float(queries.mean()), "max": int(queries.max())} for name, queries in found.queries.items()
    }
    return {"queries": counts} if counts else {}


def black_box_checks(
    results: Mapping[str, Evaluation], references: Sequence[str], box: BlackBox
) -> list[dict[str, Any]]:
    """The check ``black-box`` of every runner, as JSON values.

    Args:
        results: By runtime.
        references: Attacks that were made with gradients, and maybe noise.
        box: How Square was made; if it continued from their images, there is nothing to check.
    """
    white = [name for name in references if name not in BLIND]
    if box.start != "clean":
        return []
    checks: list[Check | None] = [black_box_check(found, white, SQUARE) for found in results.values()]
    return [asdict(check) for check in checks if check is not None]
