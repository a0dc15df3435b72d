"""The stages that measure: mAP of every network and file, what pruning keeps of it, and pictures to look at."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from prunedeploy.attacks import Pgd
from prunedeploy.config import GatesConfig, result_settings
from prunedeploy.data.reading import check_header
from prunedeploy.evaluation import (
    Evaluation,
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
from prunedeploy.pipeline.stages.export import (
    ENGINE,
    PLAIN,
    Artefact,
    cpu_runtimes,
    evaluation_loader,
    runner_key,
)
from prunedeploy_engines.detection.detections import Detections
from prunedeploy_engines.detection.drawing import draw_detections
from prunedeploy_engines.detection.letterbox import to_uint8_input
from prunedeploy_engines.detection.nms import detections_from
from prunedeploy_engines.runtimes.opening import open_runner
from prunedeploy_engines.runtimes.runner import Runner
from prunedeploy_export import check_map_parity

ROWS = ("original", "robust", "pruned")


def check_images_stage(context: BuildContext) -> StageResult | None:
    """Look at the header of every test image, so that a bad one is found before anything is trained.

    Returns:
        None where bad images are allowed: they are left out later, and named.
    """
    if context.config.data.allow_bad_images:
        return None

    def compute(work: Path, _: Path) -> None:
        for record in context.test.images:
            check_header(record)
        (work / "checked.json").write_text(json.dumps({"images": len(context.test.images)}))

    return context.run("check-images", 1, {}, {"data": context.test_key}, compute)


def evaluate_stage(
    context: BuildContext,
    row: str,
    model: StageResult,
    export: StageResult,
    artefacts: Sequence[Artefact] = (),
) -> StageResult:
    """MAP of a network and of its exported files, clean and under PGD, with every detection as CSV.

    The attacked images are made in fp32 with the network's own gradients; the engines see the very same ones. A
    file for GPUs is measured on ONNX Runtime's CPU provider: what its numbers are worth, not how fast it is.
    """
    config = context.config
    engines = _engines(context, export, artefacts)

    def compute(work: Path, _: Path) -> None:
        network = load_stage_model(model.folder).to(context.device)
        pgd = Pgd.against(network, context.threat_model(), "fp32", config.seed)

        def attack(_: Darknet, images: Tensor, targets: Tensor) -> Tensor:
            return pgd(images.to(context.device), targets.to(context.device)).cpu()

        loader = evaluation_loader(context, context.test, network, config.evaluation.batch_size)
        with ExitStack() as stack:
            runners: dict[str, Runner] = {"torch": stack.enter_context(TorchRunner(network))}
            for name, (runtime, path, _file, _allowed) in engines.items():
                # They take turns in one process: threads that spin would take each other's cores.
                opened = open_runner(path, runtime, threads=context.threads, allow_spinning=False)
                runners[name] = stack.enter_context(opened)
            advance = stack.enter_context(context.progress.task(f"evaluate {row}", len(context.test.images)))
            seen = 0

            def report(done: int, _total: int) -> None:
                nonlocal seen
                advance(done - seen)
                seen = done

            results = evaluate(
                runners,
                loader,
                context.test,
                attack=attack,
                attacked_model=network,
                iou_threshold=config.evaluation.iou_threshold,
                score_threshold=config.evaluation.map_score_threshold,
                resamples=config.evaluation.bootstrap,
                seed=config.seed,
                progress=report,
            )
        clean = {name: result.clean.usual.result.map_50_95 for name, result in results.items()}
        gates = []
        for name, (runtime, _path, file, allowed) in engines.items():
            gate = check_map_parity(clean["torch"], clean[name], allowed, artefact=f"{file} on {runtime}")
            gates.append({"gate": "map", "artefact": file, "runtime": runtime, **asdict(gate)})
        document: dict[str, Any] = {
            "gates": gates,
            "skipped": {str(path): reason for path, reason in loader.skipped.items()},
        }
        for name, result in results.items():
            document[name] = _figures(result)
            write_detections(work / csv_name(name, "clean"), result.clean.detections, context.test)
            assert result.attacked is not None
            write_detections(work / csv_name(name, "pgd"), result.attacked.detections, context.test)
        (work / "evaluation.json").write_text(json.dumps(document, indent=2))

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
    return context.run("evaluate", 3, settings, inputs, compute)


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

    def compute(work: Path, _: Path) -> None:
        document = {}
        skipped = json.loads((evaluations["pruned"].folder / "evaluation.json").read_text())["skipped"]
        measured = [image.image_id for image in context.test.images if str(image.path) not in skipped]
        for kind in ("clean", "pgd"):
            matches = {}
            for row in ("robust", "pruned"):
                table = read_detections(evaluations[row].folder / f"torch-{kind}.csv", context.test)
                matches[row] = matches_from(run_cocoeval(context.test, table, measured))
            pair = paired_interval(
                matches["robust"], matches["pruned"], resamples=max(1, config.bootstrap), seed=context.config.seed
            )
            kept = None if pair.ratio is None else asdict(pair.ratio)
            if kept is not None and config.bootstrap == 0:  # the ratio itself needs no resample, an interval does
                kept |= {"low": None, "high": None, "resamples": 0}
            document[f"map_{kind}_kept"] = kept
        (work / "comparison.json").write_text(json.dumps(document, indent=2))

    inputs = {row: evaluations[row].digest for row in ("robust", "pruned")}
    return context.run("compare", 2, {"bootstrap": config.bootstrap}, {**inputs, "data": context.test_key}, compute)


def gallery_stage(context: BuildContext, models: Mapping[str, StageResult]) -> StageResult:
    """Test images with boxes, clean and attacked, for each of the three networks."""
    config = context.config

    def compute(work: Path, _: Path) -> None:
        rows: list[dict[str, Any]] = []
        for row in models:
            network = load_stage_model(models[row].folder)
            loader = evaluation_loader(context, context.test, network, max(1, config.report.grid_images))
            batch = next(iter(loader))
            pgd = Pgd.against(network, context.threat_model(), "fp32", config.seed)
            with TorchRunner(network) as runner:
                for kind, images in (("clean", batch.images), ("pgd", pgd(batch.images, batch.targets))):
                    boxes, scores = runner.infer(images.numpy())
                    for number, image_id in enumerate(batch.image_ids):
                        if len(rows) <= number:
                            name = next(r.path.name for r in context.test.images if r.image_id == image_id)
                            rows.append({"image_id": image_id, "file_name": name})
                        found = Detections(
                            *detections_from(
                                boxes[number],
                                scores[number],
                                score_threshold=config.evaluation.score_threshold,
                                iou_threshold=config.evaluation.iou_threshold,
                            ),
                            tuple(context.class_names),
                        )
                        pixels = to_uint8_input(images[number : number + 1].numpy())[0]
                        file = f"{number:02d}-{row}-{kind}.png"
                        scale = max(1, round(480 / max(pixels.shape[:2])))
                        Image.fromarray(draw_detections(pixels, found, scale=scale)).save(work / file)
                        rows[number][f"{row}_{kind}"] = file
        (work / "gallery.json").write_text(json.dumps(rows, indent=2))

    settings = {
        "attack": config.attack.model_dump(),
        "thresholds": config.evaluation.model_dump(include={"score_threshold", "iou_threshold"}),
        "images": config.report.grid_images,
        "greyscale": config.data.greyscale,
        "seed": config.seed,
        "class_names": context.class_names,
    }
    inputs = {row: models[row].digest for row in models}
    return context.run("gallery", 1, settings, {**inputs, "data": context.test_key}, compute)


def _figures(result: Evaluation) -> dict[str, Any]:
    intervals = {name: None if one is None else [one.low, one.high] for name, one in result.intervals().items()}
    return {
        **result.metrics(),
        "intervals": intervals,
        "n_images": result.n_images,
        "transfer": result.transfer,
    }
