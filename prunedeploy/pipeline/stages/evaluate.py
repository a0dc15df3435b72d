"""The stages that measure: mAP of every network and file, what pruning keeps of it, and pictures to look at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from prunedeploy.attacks import Pgd
from prunedeploy.config import GatesConfig, result_settings
from prunedeploy.data.loader import Batch
from prunedeploy.data.reading import check_header
from prunedeploy.evaluation import (
    TorchRunner,
    evaluate,
    matches_from,
    paired_interval,
    read_detections,
    run_cocoeval,
    write_detections,
)
from prunedeploy.pipeline.context import BuildContext, StageResult, load_stage_model
from prunedeploy.pipeline.stages.export import ENGINE, PLAIN, Artefact, cpu_runtimes, runner_key
from prunedeploy_engines.detection.detections import Detections
from prunedeploy_engines.detection.drawing import draw_detections
from prunedeploy_engines.detection.letterbox import in_three_channels, to_uint8_input
from prunedeploy_engines.detection.nms import detections_from
from prunedeploy_engines.runtimes.opening import open_runner
from prunedeploy_engines.runtimes.runner import Runner
from prunedeploy_export import check_map_parity


def check_images_stage(context: BuildContext) -> StageResult | None:
    """Look at the header of every test image, so that a bad one is found before anything is trained.

    Returns:
        None where bad images are allowed: they are left out later, and named.
    """
    if context.config.data.allow_bad_images:
        return None

    with context.stage("check-images", 1, {}, {"data": context.test_key}) as result:
        if result.work:
            for record in context.test.images:
                check_header(record)
            result.write("checked.json", {"images": len(context.test.images)})
    return result


def evaluate_stage(
    context: BuildContext, row: str, model: StageResult, export: StageResult, artefacts: Sequence[Artefact] = ()
) -> StageResult:
    """MAP of a network and of its exported files, clean and under PGD, with every detection as CSV.

    The attacked images are made in fp32 with the network's own gradients; the engines see the very same ones. A
    file for GPUs is measured on ONNX Runtime's CPU provider: what its numbers are worth, not how fast it is.
    """
    config = context.config
    engines = _engines(context, export, artefacts)
    settings = {
        "attack": config.attack.model_dump(),
        "evaluation": result_settings(config.evaluation),
        "map_tolerances": {name: allowed for name, (*_, allowed) in engines.items()},
        "seed": config.seed,
        "device": context.device.type,
        "greyscale": config.data.greyscale,
        "allow_bad_images": config.data.allow_bad_images,
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
                for name, (runtime, path, _file, _allowed) in engines.items():
                    # They take turns in one process: threads that spin would take each other's cores.
                    opened = open_runner(path, runtime, threads=context.threads, allow_spinning=False)
                    runners[name] = stack.enter_context(opened)
                task = context.progress.task(f"evaluate {row}", len(context.test.images))
                found = evaluate(
                    runners,
                    loader,
                    context.test,
                    attack=pgd.of_model,
                    attacked_model=network,
                    iou_threshold=config.evaluation.iou_threshold,
                    score_threshold=config.evaluation.map_score_threshold,
                    resamples=config.evaluation.bootstrap,
                    seed=config.seed,
                    progress=stack.enter_context(task),
                )
            clean = {name: one.clean.usual.result.map_50_95 for name, one in found.items()}
            gates = []
            for name, (runtime, _path, file, allowed) in engines.items():
                gate = check_map_parity(clean["torch"], clean[name], allowed, artefact=f"{file} on {runtime}")
                gates.append({"gate": "map", "artefact": file, "runtime": runtime, **asdict(gate)})
            skipped = {str(path): reason for path, reason in loader.skipped.items()}
            document: dict[str, Any] = {"gates": gates, "skipped": skipped}
            for name, one in found.items():
                bounds = {of: None if each is None else [each.low, each.high] for of, each in one.intervals().items()}
                about = {"intervals": bounds, "n_images": one.n_images, "transfer": one.transfer}
                document[name] = {**one.metrics(), **about}
                write_detections(result.work / csv_name(name, "clean"), one.clean.detections, context.test)
                assert one.attacked is not None
                write_detections(result.work / csv_name(name, "pgd"), one.attacked.detections, context.test)
            result.write("evaluation.json", document)
    return result


def csv_name(engine: str, kind: str) -> str:
    """Name of the file with all detections of an engine on ``clean`` or ``pgd`` images."""
    return f"{engine.replace('|', '-')}-{kind}.csv"


def _engines(
    context: BuildContext, export: StageResult, artefacts: Sequence[Artefact]
) -> dict[str, tuple[str, Path, str, float]]:
    """Runtime, path, name and tolerance of mAP of every engine whose mAP is measured."""
    settings = context.config.export
    gates: dict[str, GatesConfig] = {"fp32": settings, "fp16": settings.fp16, "int8": settings.int8}
    found = {ENGINE: (ENGINE, export.folder / PLAIN, PLAIN, settings.map_tolerance)}
    for artefact in artefacts:
        for runtime in cpu_runtimes(context) if artefact.target != "gpu" else (ENGINE,):
            allowed = gates[artefact.precision].map_tolerance
            found[runner_key(runtime, artefact)] = (runtime, artefact.measured, artefact.name, allowed)
    return found


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


def gallery_stage(context: BuildContext, models: Mapping[str, StageResult]) -> StageResult:
    """Test images with boxes, clean and attacked, for each of the three networks."""
    config = context.config
    thresholds = config.evaluation.model_dump(include={"score_threshold", "iou_threshold"})
    settings = {
        "attack": config.attack.model_dump(),
        "thresholds": thresholds,
        "images": config.report.grid_images,
        "greyscale": config.data.greyscale,
        "seed": config.seed,
        "class_names": context.class_names,
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
                pgd = Pgd.against(network, config.attack, "fp32", config.seed)
                with TorchRunner(network) as runner:
                    for kind, number, pixels, found in detected(batch, pgd, runner, thresholds, context.class_names):
                        scale = max(1, round(480 / max(pixels.shape[:2])))
                        file = f"{number:02d}-{row}-{kind}.png"
                        Image.fromarray(draw_detections(pixels, found, scale=scale)).save(result.work / file)
                        rows[number][f"{row}_{kind}"] = file
            result.write("gallery.json", rows)
    return result


def detected(
    batch: Batch, pgd: Pgd, runner: Runner, thresholds: Mapping[str, Any], class_names: Sequence[str]
) -> Iterator[tuple[str, int, npt.NDArray[np.uint8], Detections]]:
    """What a network finds in a batch: ``clean`` or ``pgd``, number in the batch, ``(H, W, 3)`` pixels, detections.

    Detections are those of the exact attack, whose pixels a picture rounds to 8 bits.
    """
    attacked = pgd.of_model(pgd.model, batch.images, batch.targets)
    for kind, images in (("clean", batch.images), ("pgd", attacked)):
        boxes, scores = runner.infer(images.numpy())
        for number, pixels in enumerate(in_three_channels(to_uint8_input(images.numpy()))):
            found = detections_from(boxes[number], scores[number], **thresholds)
            yield kind, number, pixels, Detections(*found, tuple(class_names))
