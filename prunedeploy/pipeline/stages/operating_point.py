"""The stage that chooses the score threshold that a network and its files are deployed with."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import Any

from prunedeploy.data import CocoDataset, train_test_subset
from prunedeploy.evaluation import DetectionTable, TorchRunner
from prunedeploy.evaluation.detecting import Thresholds, detect_batch
from prunedeploy.evaluation.operating_point import ScoreCurve, at_threshold, best_f1, score_curve, with_precision
from prunedeploy.pipeline.context import BuildContext, StageResult, load_stage_model
from prunedeploy.pipeline.stages.export import Artefact
from prunedeploy_engines.errors import DataError
from prunedeploy_engines.runtimes.onnx_file import read_onnx_header
from prunedeploy_engines.runtimes.onnxruntime.runner import OnnxRuntimeRunner
from prunedeploy_engines.runtimes.runner import Runner

FILE = "operating_point.json"
NETWORK = "torch"
"""Name of the PyTorch network among its files."""
FEWEST_BOXES = 20
"""With fewer to find, a threshold would be chosen by chance."""
CURVE_POINTS = 64


def operating_point_stage(
    context: BuildContext, row: str, model: StageResult, artefacts: Sequence[Artefact] = ()
) -> StageResult:
    """The operating point of a network and of each of its files, as it is delivered, on ONNX Runtime.

    It is chosen on training images, but not on those that int8 was calibrated on. ``operating_point.json`` has under
    the name of each file, and under `NETWORK`: ``score_threshold`` in [0, 1]; ``precision``, ``recall`` and ``f1``
    there; ``chosen``, the rule; ``why_not``, if it could not be followed and ``evaluation.score_threshold`` stands
    instead; ``images``, ``boxes``; ``graph_threshold``, which suppression in the graph gives nothing below, so that no
    lower one is chosen; and ``curve``, rows of score threshold, precision and recall.
    """
    config = context.config
    settings = {
        **config.operating_point.model_dump(),
        "calibration_images": _calibrated_on(context),
        "thresholds": config.evaluation.model_dump(
            include={"score_threshold", "map_score_threshold", "iou_threshold", "batch_size"}
        ),
        "seed": config.seed,
        "greyscale": config.data.greyscale,
    }
    inputs = {"model": model.digest, "training": context.training_key}
    inputs |= {artefact.name: artefact.stage.digest for artefact in artefacts}
    with context.stage("operating-point", 1, settings, inputs) as result:
        if result.work:
            network = load_stage_model(model.folder)
            held_out = _held_out(context)
            loader = context.evaluation_loader(held_out, network, config.evaluation.batch_size, allow_bad_images=True)
            thresholds = Thresholds(config.evaluation.iou_threshold, config.evaluation.map_score_threshold)
            found: dict[str, list[DetectionTable]] = {}
            seen: set[int] = set()
            with ExitStack() as stack:
                runners: dict[str, Runner] = {NETWORK: stack.enter_context(TorchRunner(network))}
                for artefact in artefacts:
                    opened = OnnxRuntimeRunner(artefact.file, threads=context.threads, allow_spinning=False)
                    runners[artefact.name] = stack.enter_context(opened)
                task = context.progress.task(f"operating point of {row}", len(held_out.images))
                advance = stack.enter_context(task)
                for batch in loader:
                    seen |= set(batch.image_ids)
                    for name, runner in runners.items():
                        table = detect_batch(runner, batch.images, batch, held_out, thresholds)
                        found.setdefault(name, []).append(table)
                    advance(len(batch.image_ids))
            usable = replace(held_out, images=[image for image in held_out.images if image.image_id in seen])
            of_graphs = {artefact.name: _graph_threshold(artefact) for artefact in artefacts}
            document = {
                name: _point(context, usable, DetectionTable.concatenate(found.get(name, [])), of_graphs.get(name))
                for name in runners
            }
            result.write(FILE, document)
    return result


def _calibrated_on(context: BuildContext) -> int:
    export = context.config.export
    return export.int8.calibration_images if "int8" in export.precisions else 0


def _held_out(context: BuildContext) -> CocoDataset:
    """Training images, but not those of the calibration, which `train_test_subset` draws in the same way."""
    rest, calibrated = context.training, _calibrated_on(context)
    if calibrated:
        rest = train_test_subset(rest, calibrated, context.config.seed)[1]
    wanted = context.config.operating_point.images
    return rest if wanted >= len(rest.images) else train_test_subset(rest, wanted, context.config.seed)[0]


def _graph_threshold(artefact: Artefact) -> float | None:
    """The score that a file with suppression in its graph gives nothing below."""
    nms = read_onnx_header(artefact.file).nms
    return None if nms is None else nms.score_threshold


def _point(
    context: BuildContext, dataset: CocoDataset, detections: DetectionTable, of_graph: float | None
) -> dict[str, Any]:
    """The operating point of one file, from its detections on held-out images."""
    lowest = of_graph or 0.0
    wanted, usual = context.config.operating_point.precision, context.config.evaluation.score_threshold
    boxes = sum(int((~image.iscrowd).sum()) for image in dataset.images)
    about = {
        "chosen": "best F1" if wanted is None else f"highest recall with a precision of at least {wanted:g}",
        "images": len(dataset.images),
        "boxes": boxes,
        "graph_threshold": of_graph,
    }
    nothing = {"score_threshold": max(usual, lowest), "precision": None, "recall": None, "f1": None}
    if boxes < FEWEST_BOXES:
        why = f"the held-out training images have {boxes} boxes, fewer than {FEWEST_BOXES}"
        return {**nothing, **about, "why_not": why, "curve": []}
    curve = score_curve(dataset, detections)
    point, why_not = None, None
    if len(curve.thresholds) == 0 or curve.recall[-1] == 0:
        why_not = "nothing was found in the held-out training images"
    else:
        try:
            point = best_f1(curve) if wanted is None else with_precision(curve, wanted)
        except DataError as error:
            why_not = error.what
    used = at_threshold(curve, max(usual if point is None else point.score_threshold, lowest))
    return {**asdict(used), **about, "why_not": why_not, "curve": _thinned(curve)}


def _thinned(curve: ScoreCurve) -> list[list[float]]:
    """At most `CURVE_POINTS` rows of the curve: score threshold, precision, recall."""
    step = max(1, -(-len(curve.thresholds) // CURVE_POINTS))
    columns = (curve.thresholds, curve.precision, curve.recall)
    return [
        [round(float(value), 5) for value in row] for row in zip(*(column[::step] for column in columns), strict=True)
    ]
