"""The stages that measure: mAP of every network and file, what pruning keeps of it, and pictures to look at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from prunedeploy.attacks import Pgd
from prunedeploy.attacks.norms import on_lattice
from prunedeploy.attacks.suite import Attack, attack_suite
from prunedeploy.data.loader import Batch
from prunedeploy.data.reading import read_record
from prunedeploy.evaluation import (
    PGD,
    TorchRunner,
    evaluate,
    matches_from,
    paired_interval,
    read_detections,
    run_cocoeval,
    write_detections,
)
from prunedeploy.models import Darknet
from prunedeploy.pipeline.context import BuildContext, StageResult, load_stage_model
from prunedeploy.pipeline.left_out import LeftOut, with_its_limit
from prunedeploy.pipeline.stages.export import ENGINE, PLAIN, Artefact, cpu_runtimes, runner_key
from prunedeploy.pipeline.stages.gating import gates_config
from prunedeploy_engines.detection.detections import Detections
from prunedeploy_engines.detection.drawing import draw_detections
from prunedeploy_engines.detection.letterbox import in_three_channels, to_uint8_input
from prunedeploy_engines.detection.nms import detections_from
from prunedeploy_engines.errors import DataError, GateError
from prunedeploy_engines.runtimes.opening import open_runner
from prunedeploy_engines.runtimes.runner import Runner
from prunedeploy_export import check_map_parity

GATED_ALONE = "|without suppression"
"""Ends the name of an engine that gate 3 is measured with and nothing else: the file before suppression is put in."""


def check_images_stage(context: BuildContext) -> StageResult:
    """Decode every test image, so that a bad one is found before anything is trained.

    Raises:
        DataError: An image cannot be used, and bad images are not allowed; or not one can be used.
    """
    allowed = context.config.data.allow_bad_images
    images = context.test.images
    settings = {"allow_bad_images": True} if allowed else {}
    with context.stage("check-images", 1, settings, {"data": context.test_key}) as result:
        if result.work:
            skipped: dict[str, str] = {}
            with context.progress.task("check the test images", len(images)) as advance:
                for record in images:
                    try:
                        read_record(record)
                    except DataError as error:
                        if not allowed:
                            fix = f"{error.fix}, or leave such images out with data.allow_bad_images=true"
                            raise DataError(error.what, error.where, fix) from None
                        skipped[str(record.path)] = error.what
                        context.progress.message(f"test image left out: {record.path}: {error.what}")
                    advance(1)
            if len(skipped) == len(images):
                what = f"not one of the {len(images)} test images can be used"
                raise DataError(what, context.test.json_path, "put the images there")
            result.write("checked.json", {"images": len(images), "skipped": skipped})
    return result


def evaluate_stage(
    context: BuildContext, row: str, model: StageResult, export: StageResult, artefacts: Sequence[Artefact] = ()
) -> StageResult:
    """MAP of a network and of its exported files, clean and under PGD, with every detection as CSV.

    The attacked images are made in fp32 with the network's own gradients; the engines see the very same ones. A
    file for GPUs is measured on ONNX Runtime's CPU provider: what its numbers are worth, not how fast it is.

    Figures of a file with suppression in its graph are those of the file as it is delivered, so of detections above
    the graph's own threshold; gate 3, which counts all of them, is measured beside it without suppression.

    Raises:
        GateError: The plain fp32 file fails gate 3. Of other files `evaluation.json` says which failed.
    """
    config = context.config
    engines = _engines(context, export, artefacts)
    settings = {
        "attack": config.attack.model_dump(),
        **context.measuring_settings(),
        "map_tolerances": {name: engine.allowed for name, engine in engines.items() if engine.allowed is not None},
        # Files of uint8 images see attacked images that are rounded within the ball; before, rounding could leave it.
        **({"lattice": True} if artefacts and config.export.uint8_input else {}),
    }
    inputs = {"model": model.digest, "export": export.digest, "data": context.test_key}
    inputs |= {artefact.name: artefact.stage.digest for artefact in artefacts}
    with context.stage("evaluate", 3, settings, inputs) as result:
        if result.work:
            network = load_stage_model(model.folder).to(context.device)
            pgd = Pgd.against(network, config.attack, "fp32", config.seed)
            loader = context.evaluation_loader(context.test, network, config.evaluation.batch_size)
            with ExitStack() as stack:
                runners: dict[str, Runner] = {"torch": stack.enter_context(TorchRunner(network))}
                for name, engine in engines.items():
                    # They take turns in one process: threads that spin would take each other's cores.
                    opened = open_runner(engine.path, engine.runtime, threads=context.threads, allow_spinning=False)
                    runners[name] = stack.enter_context(opened)
                task = context.progress.task(f"evaluate {row}", len(context.test.images))
                found = evaluate(
                    runners,
                    loader,
                    context.test,
                    attack=pgd.of_model,
                    attacked_model=network,
                    lattice=partial(on_lattice, eps=config.attack.eps, norm="linf"),
                    iou_threshold=config.evaluation.iou_threshold,
                    score_threshold=config.evaluation.map_score_threshold,
                    resamples=config.evaluation.bootstrap,
                    seed=config.seed,
                    progress=stack.enter_context(task),
                )
            clean = {name: one.clean.usual.result.map_50_95 for name, one in found.items()}
            gates = [
                _map_gate(engine, clean["torch"], clean[name], is_plain=name == ENGINE)
                for name, engine in engines.items()
                if engine.allowed is not None
            ]
            skipped = {str(path): reason for path, reason in loader.skipped.items()}
            document: dict[str, Any] = {"gates": gates, "skipped": skipped}
            for name, one in found.items():
                if name.endswith(GATED_ALONE):
                    continue
                bounds = {of: None if each is None else [each.low, each.high] for of, each in one.intervals().items()}
                about = {"intervals": bounds, "n_images": one.n_images, "transfer": one.transfer}
                document[name] = {**one.metrics(), **about}
                write_detections(result.work / csv_name(name, "clean"), one.clean.detections, context.test)
                write_detections(result.work / csv_name(name, "pgd"), one.attacked[PGD].detections, context.test)
            result.write("evaluation.json", document)
    return result


def csv_name(engine: str, kind: str) -> str:
    """Name of the file with all detections of an engine on ``clean`` or ``pgd`` images."""
    return f"{engine.replace('|', '-')}-{kind}.csv"


@dataclass(frozen=True)
class _Engine:
    """A file whose mAP is measured on a runtime; ``allowed`` is the tolerance of gate 3, None if it is not gated."""

    runtime: str
    path: Path
    file: str
    precision: str
    allowed: float | None


def _engines(context: BuildContext, export: StageResult, artefacts: Sequence[Artefact]) -> dict[str, _Engine]:
    """Every engine whose mAP is measured, the plain fp32 file first."""
    found = {ENGINE: _Engine(ENGINE, export.folder / PLAIN, PLAIN, "fp32", context.config.export.map_tolerance)}
    for artefact in artefacts:
        allowed = gates_config(context, artefact.precision).map_tolerance
        about = (artefact.name, artefact.precision)
        for runtime in cpu_runtimes(context) if artefact.target != "gpu" else (ENGINE,):
            name = runner_key(runtime, artefact)
            if artefact.has_nms:
                found[name] = _Engine(runtime, artefact.file, *about, None)
                name += GATED_ALONE
            found[name] = _Engine(runtime, artefact.measured, *about, allowed)
    return found


def _map_gate(engine: _Engine, reference: float | None, candidate: float | None, *, is_plain: bool) -> dict[str, Any]:
    """A row of gate 3; of a file that fails it with ``passed`` false and the reason.

    Raises:
        GateError: The plain fp32 file on ONNX Runtime fails it.
    """
    assert engine.allowed is not None
    row = {"gate": "map", "artefact": engine.file, "runtime": engine.runtime}
    artefact, may_gain = f"{engine.file} on {engine.runtime}", engine.precision == "int8"
    try:
        found = check_map_parity(reference, candidate, engine.allowed, may_gain=may_gain, artefact=artefact)
        return {**row, **asdict(found), "may_gain": may_gain, "passed": True}
    except GateError as error:
        if is_plain:
            raise with_its_limit(error, "fp32") from None
        measured = {"reference": reference, "candidate": candidate, "tolerance": engine.allowed, "may_gain": may_gain}
        deviation = None if reference is None or candidate is None else candidate - reference
        return {**row, **measured, "deviation": deviation, "passed": False, "reason": error.what}


def without_what_failed(evaluation: StageResult, artefacts: Sequence[Artefact]) -> tuple[list[Artefact], list[LeftOut]]:
    """The files that have passed gate 3, and what has not.

    A file that fails on ONNX Runtime, on which the other gates are measured too, is left out; one that fails on another
    runtime only is delivered, and is not for that runtime.
    """
    failed = {
        (gate["artefact"], gate["runtime"]): gate["reason"]
        for gate in evaluation.read("evaluation.json")["gates"]
        if gate.get("passed") is False
    }
    left_out = []
    for artefact in artefacts:
        about = (artefact.name, artefact.precision, artefact.target)
        runtimes = [runtime for runtime in (ENGINE, "openvino") if (artefact.name, runtime) in failed]
        if ENGINE in runtimes:
            left_out.append(LeftOut(*about, failed[artefact.name, ENGINE], gate="map"))
        else:
            left_out += [LeftOut(*about, failed[artefact.name, one], gate="map", runtime=one) for one in runtimes]
    gone = {one.file for one in left_out if one.runtime is None}
    return [artefact for artefact in artefacts if artefact.name not in gone], left_out


def compare_stage(context: BuildContext, evaluations: Mapping[str, StageResult]) -> StageResult:
    """How much of the robust network's mAP the pruned one keeps, with paired bootstrap intervals."""
    config = context.config.evaluation
    inputs = {row: evaluations[row].digest for row in ("robust", "pruned")}
    inputs["data"] = context.test_key
    with context.stage("compare", 2, {"bootstrap": config.bootstrap}, inputs) as result:
        if result.work:
            document = {}
            skipped = evaluations["pruned"].read("evaluation.json")["skipped"]
            measured = [image.image_id for image in context.test.images if str(image.path) not in skipped]
            for kind in ("clean", "pgd"):
                robust, pruned = (
                    matches_from(run_cocoeval(context.test, read_detections(path, context.test), measured))
                    for path in (evaluations[row].folder / f"torch-{kind}.csv" for row in ("robust", "pruned"))
                )
                pair = paired_interval(robust, pruned, resamples=max(1, config.bootstrap), seed=context.config.seed)
                kept = None if pair.ratio is None else asdict(pair.ratio)
                if kept is not None and config.bootstrap == 0:  # the ratio itself needs no resample, an interval does
                    kept |= {"low": None, "high": None, "resamples": 0}
                document[f"map_{kind}_kept"] = kept
            result.write("comparison.json", document)
    return result


def gallery_stage(
    context: BuildContext,
    models: Mapping[str, StageResult],
    score_thresholds: Mapping[str, float],
    strongest: Mapping[str, str],
) -> StageResult:
    """Test images with boxes, clean and attacked, for each of the three networks at its own score threshold.

    Args:
        context: The build.
        models: Stages that made the networks, by row.
        score_thresholds: Score threshold of each network.
        strongest: The single attack that leaves each network least, which is shown too; empty if only one was
            tried.
    """
    config = context.config
    thresholds = config.evaluation.model_dump(include={"score_threshold", "iou_threshold"})
    own = {row: score for row, score in score_thresholds.items() if score != config.evaluation.score_threshold}
    settings = {
        "attack": config.attack.model_dump(),
        "thresholds": thresholds,
        "images": config.report.grid_images,
        "greyscale": config.data.greyscale,
        "seed": config.seed,
        "class_names": context.class_names,
        **({"score_thresholds": own} if own else {}),
        **({"strongest": dict(strongest), "budget": config.robustness.budget} if strongest else {}),
    }
    inputs = {row: models[row].digest for row in models}
    with context.stage("gallery", 1, settings, {**inputs, "data": context.test_key}) as result:
        if result.work:
            rows: list[dict[str, Any]] = []
            names = {record.image_id: record.path.name for record in context.test.images}
            for row in models:
                network = load_stage_model(models[row].folder)
                loader = context.evaluation_loader(context.test, network, max(1, config.report.grid_images))
                batch = next(iter(loader))
                rows = rows or [{"image_id": one, "file_name": names[one]} for one in batch.image_ids]
                wanted = dict.fromkeys([PGD, *([strongest[row]] if row in strongest else [])])
                suite = attack_suite(network, list(wanted), config.attack, config.robustness.budget, seed=config.seed)
                shown = {kind: suite.attacks[name] for kind, name in zip((PGD, "worst"), wanted, strict=False)}
                used = {**thresholds, "score_threshold": score_thresholds[row]}
                with TorchRunner(network) as runner:
                    for kind, number, pixels, found in detected(
                        batch, shown, network, runner, used, context.class_names
                    ):
                        scale = max(1, round(480 / max(pixels.shape[:2])))
                        file = f"{number:02d}-{row}-{kind}.png"
                        drawn = Image.fromarray(draw_detections(pixels, found, scale=scale))
                        drawn.save(result.work / file, compress_level=3)  # 6 takes twice as long for little
                        rows[number][f"{row}_{kind}"] = file
            result.write("gallery.json", rows)
    return result


def detected(
    batch: Batch,
    attacks: Mapping[str, Attack],
    network: Darknet,
    runner: Runner,
    thresholds: Mapping[str, Any],
    class_names: Sequence[str],
) -> Iterator[tuple[str, int, npt.NDArray[np.uint8], Detections]]:
    """What a network finds in a batch: ``clean`` or an attack, number in the batch, ``(H, W, 3)`` pixels, detections.

    Detections are those of the exact attack, whose pixels a picture rounds to 8 bits.
    """
    made = {kind: attack(network, batch.images, batch.targets) for kind, attack in attacks.items()}
    for kind, images in {"clean": batch.images, **made}.items():
        boxes, scores = runner.infer(images.numpy())
        for number, pixels in enumerate(in_three_channels(to_uint8_input(images.numpy()))):
            found = detections_from(boxes[number], scores[number], **thresholds)
            yield kind, number, pixels, Detections(*found, tuple(class_names))
