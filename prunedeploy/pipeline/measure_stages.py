"""The stages that export and measure: ONNX with its gates, mAP, latency, engines, and pictures to look at."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from prunedeploy.attacks import Pgd
from prunedeploy.config import result_settings
from prunedeploy.data.loader import EvaluationLoader
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
from prunedeploy.models import Darknet, FoldedDarknet
from prunedeploy.pipeline.context import BuildContext, StageResult, load_stage_model
from prunedeploy.pipeline.stages import machine_id
from prunedeploy_engines.detections import Detections
from prunedeploy_engines.drawing import draw_detections
from prunedeploy_engines.engine_from_onnx import engine_from_onnx
from prunedeploy_engines.environment import machine_info
from prunedeploy_engines.errors import RuntimeUnavailableError
from prunedeploy_engines.nms import detections_from
from prunedeploy_engines.onnxruntime_runner import OnnxRuntimeRunner
from prunedeploy_engines.process_bench import bench_models
from prunedeploy_engines.tensorrt_library import installed_version
from prunedeploy_export import (
    check_detection_parity,
    check_map_parity,
    check_tensor_parity,
    onnx_from_torch,
)

GATE_IMAGES = 8
LATENCY_IMAGES = 16
ENGINE = "onnxruntime"
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


def export_stage(context: BuildContext, model: StageResult) -> StageResult:
    """Write ``model.onnx`` and pass the gates of tensors and detections on test images."""
    settings = context.config.export

    def compute(work: Path, _: Path) -> None:
        network = load_stage_model(model.folder)
        path = work / "model.onnx"
        onnx_from_torch(FoldedDarknet(network), path, class_names=context.class_names, opset=settings.opset)
        images = next(iter(_test_loader(context, network, GATE_IMAGES))).images.numpy()
        with TorchRunner(network) as parent, OnnxRuntimeRunner(path, threads=context.threads) as engine:
            reference, candidate = parent.infer(images), engine.infer(images)
        tensors = check_tensor_parity(reference, candidate, settings.parity_tolerance, artefact=path.name)
        found = check_detection_parity(
            reference,
            candidate,
            score_threshold=context.config.evaluation.map_score_threshold,
            iou_threshold=context.config.evaluation.iou_threshold,
            min_iou=settings.match_iou,
            score_tolerance=settings.match_score,
            artefact=path.name,
        )
        gates = [{"gate": "tensor", **asdict(tensors)}, {"gate": "detections", **asdict(found)}]
        (work / "gates.json").write_text(json.dumps(gates, indent=2))

    config = {
        "export": result_settings(settings),
        "thresholds": context.config.evaluation.model_dump(include={"map_score_threshold", "iou_threshold"}),
        "class_names": context.class_names,
        "greyscale": context.config.data.greyscale,
    }
    return context.run("export", 1, config, {"model": model.digest, "data": context.test_key}, compute)


def evaluate_stage(context: BuildContext, row: str, model: StageResult, export: StageResult) -> StageResult:
    """MAP of a network and of its exported engine, clean and under PGD, with every detection as CSV.

    The attacked images are made in fp32 with the network's own gradients; the engine sees the very same ones.
    """
    config = context.config

    def compute(work: Path, _: Path) -> None:
        network = load_stage_model(model.folder).to(context.device)
        pgd = Pgd.against(network, context.threat_model(), "fp32", config.seed)

        def attack(_: Darknet, images: Tensor, targets: Tensor) -> Tensor:
            return pgd(images.to(context.device), targets.to(context.device)).cpu()

        loader = _test_loader(context, network, config.evaluation.batch_size)
        engine = OnnxRuntimeRunner(export.folder / "model.onnx", threads=context.threads)
        with (
            TorchRunner(network) as parent,
            engine,
            context.progress.task(f"evaluate {row}", len(context.test.images)) as advance,
        ):
            seen = 0

            def report(done: int, _total: int) -> None:
                nonlocal seen
                advance(done - seen)
                seen = done

            results = evaluate(
                {"torch": parent, ENGINE: engine},
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
        gate = check_map_parity(
            clean["torch"], clean[ENGINE], config.export.map_tolerance, artefact="model.onnx"
        )
        document: dict[str, Any] = {
            "gates": [{"gate": "map", **asdict(gate)}],
            "skipped": {str(path): reason for path, reason in loader.skipped.items()},
        }
        for name, result in results.items():
            document[name] = _figures(result)
            write_detections(work / f"{name}-clean.csv", result.clean.detections, context.test)
            assert result.attacked is not None
            write_detections(work / f"{name}-pgd.csv", result.attacked.detections, context.test)
        (work / "evaluation.json").write_text(json.dumps(document, indent=2))

    settings = {
        "attack": config.attack.model_dump(),
        "evaluation": result_settings(config.evaluation),
        "map_tolerance": config.export.map_tolerance,
        "seed": config.seed,
        "device": context.device.type,
        "greyscale": config.data.greyscale,
        "allow_bad_images": config.data.allow_bad_images,
    }
    inputs = {"model": model.digest, "export": export.digest, "data": context.test_key}
    return context.run("evaluate", 1, settings, inputs, compute)


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
    return context.run(
        "compare", 2, {"bootstrap": config.bootstrap}, {**inputs, "data": context.test_key}, compute
    )


def latency_stage(
    context: BuildContext, models: Mapping[str, StageResult], exports: Mapping[str, StageResult]
) -> StageResult:
    """Latency of all rows on all runtimes that run here, a process each, interleaved in rounds."""
    settings = context.config.latency
    threads = settings.threads or context.threads

    def compute(work: Path, _: Path) -> None:
        network = load_stage_model(models["pruned"].folder)
        height, width = network.cfg.input_size
        loader = _test_loader(context, network, LATENCY_IMAGES)
        pixels = next(iter(loader)).images.permute(0, 2, 3, 1).mul(255).round().to(torch.uint8).numpy()
        images = work / "images.npy"
        np.save(images, pixels, allow_pickle=False)
        specs: dict[str, dict[str, Any]] = {}
        for batch in settings.batch:
            common = {"threads": threads, "batch": batch, "images": str(images), "kind": "host"}
            for row in models:
                if "onnxruntime" in settings.runtimes:
                    specs[f"{row}|onnxruntime|{batch}"] = {
                        **common,
                        "runtime": "onnxruntime",
                        "path": str(exports[row].folder / "model.onnx"),
                    }
                if "torch" in settings.runtimes:
                    folder = models[row].folder
                    specs[f"{row}|torch|{batch}"] = {
                        **common,
                        "factory": "prunedeploy.evaluation.torch_runner:open_torch_runner",
                        "arguments": {
                            "cfg": str(folder / "model.cfg"),
                            "weights": str(folder / "model.weights"),
                            "threads": threads,
                        },
                    }
        if "onnxruntime" in settings.runtimes:
            specs["peak|matmul|1"] = {"runtime": "matmul", "threads": threads}
        rounds, results = 10, {}
        with context.progress.task("measure latency", rounds * len(specs)) as advance:
            if specs:  # with nothing to measure here, it does not wait for others that measure
                results = bench_models(
                    specs,
                    seconds=settings.seconds,
                    min_calls=settings.min_calls,
                    warmup_s=settings.warmup_seconds,
                    warmup_calls=settings.warmup_calls,
                    rounds=rounds,
                    progress=lambda name: advance(1),
                )
        images.unlink()
        document = {
            "rows": {name: result.summary() for name, result in results.items()},
            "samples_ms": {name: result.latency.samples_ms for name, result in results.items()},
            "machine": machine_info(),
            "input_size": [height, width],
            "threads": threads,
        }
        (work / "latency.json").write_text(json.dumps(document))

    config = {"latency": result_settings(settings), "threads": threads}
    inputs = {
        f"{row}-{kind}": results[row].digest
        for kind, results in (("model", models), ("export", exports))
        for row in results
    }
    return context.run(
        "latency", 1, config, {**inputs, "data": context.test_key}, compute, machine=machine_id()
    )


def engine_stages(
    context: BuildContext, export: StageResult
) -> tuple[list[StageResult], list[dict[str, str]]]:
    """TensorRT engines for the GPU targets; and which could not be built here, and why."""
    built, missing = [], []
    for target in context.config.targets:
        if target == "cpu":
            continue

        def compute(work: Path, _: Path, target: str = target) -> None:
            engine_from_onnx(export.folder / "model.onnx", work, target=target)

        versions = {name: installed_version(name) for name in ("tensorrt", "tensorrt_rtx")}
        try:
            built.append(
                context.run("engine", 1, {"target": target, **versions}, {"onnx": export.digest}, compute)
            )
        except RuntimeUnavailableError as error:
            missing.append({"target": target, "reason": str(error)})
    return built, missing


def gallery_stage(context: BuildContext, models: Mapping[str, StageResult]) -> StageResult:
    """Test images with boxes, clean and attacked, for each of the three networks."""
    config = context.config

    def compute(work: Path, _: Path) -> None:
        rows: list[dict[str, Any]] = []
        for row in models:
            network = load_stage_model(models[row].folder)
            loader = _test_loader(context, network, max(1, config.report.grid_images))
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
                        pixels = (images[number].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
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
    intervals = {
        name: None if one is None else [one.low, one.high] for name, one in result.intervals().items()
    }
    return {
        **result.metrics(),
        "intervals": intervals,
        "n_images": result.n_images,
        "transfer": result.transfer,
    }


def _test_loader(context: BuildContext, network: Darknet, batch_size: int) -> EvaluationLoader:
    data = context.config.data
    return EvaluationLoader(
        context.test,
        network.cfg.input_size,
        batch_size,
        data.greyscale,
        allow_bad_images=data.allow_bad_images,
    )
