"""The stage that measures latency: all rows and files, on all runtimes that run here."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prunedeploy.config import result_settings
from prunedeploy.models import Darknet
from prunedeploy.pipeline.context import BuildContext, StageResult, load_stage_model
from prunedeploy.pipeline.stages.export import PLAIN, Artefact, cpu_runtimes, runner_key
from prunedeploy.pipeline.store.key import machine_id
from prunedeploy_engines.bench.rounds import BenchResult, bench_models
from prunedeploy_engines.detection.letterbox import in_three_channels, to_uint8_input
from prunedeploy_engines.machine.environment import machine_info

LATENCY_IMAGES = 16
ROUNDS = 10
PEAK = "peak|{runtime}|1"
BRIEF_SECONDS, BRIEF_CALLS, BRIEF_ROUNDS = 2.0, 50, 5
"""At most so much of what is configured goes into one file's brief measurement,"""
BRIEF_ATTEMPTS = 3
"""and at most this many of them, while they are noisy."""


def latency_stage(
    context: BuildContext,
    models: Mapping[str, StageResult],
    exports: Mapping[str, StageResult],
    artefacts: Sequence[Artefact],
) -> StageResult:
    """Latency of all rows on all runtimes that run here, a process each, interleaved in rounds.

    ``latency.json`` has its rows under ``<row>|<engine>|<batch>``, the engine named by `runner_key`; under `PEAK`
    each runtime's on a large MatMul.
    """
    settings = context.config.latency
    threads = settings.threads or context.threads
    runtimes = cpu_runtimes(context)
    unflooded = settings.model_copy(update={"flood": False})
    config = {"latency": result_settings(unflooded), "threads": threads, "here": list(runtimes)}
    inputs = {
        f"{row}-{kind}": results[row].digest
        for kind, results in (("model", models), ("export", exports))
        for row in results
    }
    inputs |= {artefact.name: artefact.stage.digest for artefact in artefacts}
    inputs["data"] = context.test_key
    with context.stage("latency", 3, config, inputs, machine=machine_id()) as result:
        if result.work:
            network = load_stage_model(models["pruned"].folder)
            images = save_images(context, network, result.work)
            common = {"threads": threads, "images": str(images), "kind": "host"}
            specs: dict[str, dict[str, Any]] = {
                f"{name}|{batch}": {**common, **spec, "batch": batch}
                for batch in settings.batch
                for name, spec in _specs(models, exports, artefacts, runtimes, threads)
                if spec["runtime"] in settings.runtimes
            }
            for runtime in runtimes:
                if any(spec["runtime"] == runtime for spec in specs.values()):
                    specs[PEAK.format(runtime=runtime)] = {"runtime": "matmul", "on": runtime, "threads": threads}
            measured = timed(context, specs, "measure latency")
            images.unlink()
            document = {
                "rows": {name: one.summary() for name, one in measured.items()},
                "samples_ms": {name: one.latency.samples_ms for name, one in measured.items()},
                "machine": machine_info(),
                "input_size": list(network.cfg.input_size),
                "threads": threads,
            }
            (result.work / "latency.json").write_text(json.dumps(document))
    return result


def timed(context: BuildContext, specs: Mapping[str, Mapping[str, Any]], what: str) -> dict[str, BenchResult]:
    """Measure as ``latency`` says.

    Args:
        context: The build's context.
        specs: By name, what `bench_models` takes; with none, nothing waits for others that measure.
        what: Name of the work, for the terminal.
    """
    settings = context.config.latency
    if not specs:
        return {}
    with context.progress.task(what, ROUNDS * len(specs)) as advance:
        return bench_models(
            specs,
            seconds=settings.seconds,
            min_calls=settings.min_calls,
            warmup_s=settings.warmup_seconds,
            warmup_calls=settings.warmup_calls,
            rounds=ROUNDS,
            progress=lambda name: advance(1),
        )


def file_latency_stage(context: BuildContext, network: StageResult, artefact: Artefact, runtime: str) -> StageResult:
    """Latency of one ONNX file alone, briefly and at batch 1: what a search for a ratio goes by.

    ``latency.json`` is the summary of its samples. A noisy measurement is taken again; of several noisy ones the one of
    lowest median counts, since whatever else runs on the machine only adds time.

    Args:
        context: The build's context.
        network: That the file is of.
        artefact: The file.
        runtime: ``onnxruntime`` or ``openvino``.
    """
    settings = context.config.latency
    threads = settings.threads or context.threads
    brief: dict[str, Any] = {
        "seconds": min(settings.seconds, BRIEF_SECONDS),
        "min_calls": min(settings.min_calls, BRIEF_CALLS),
        "warmup_s": settings.warmup_seconds,
        "warmup_calls": settings.warmup_calls,
        "rounds": BRIEF_ROUNDS,
    }
    config = {**brief, "attempts": BRIEF_ATTEMPTS, "threads": threads, "runtime": runtime}
    inputs = {"network": network.digest, "file": artefact.stage.digest, "data": context.test_key}
    with context.stage("file-latency", 1, config, inputs, machine=machine_id()) as result:
        if result.work:
            images = save_images(context, load_stage_model(network.folder), result.work)
            common = {"threads": threads, "images": str(images), "kind": "host", "batch": 1}
            specs = {"file": {**common, **file_spec(runtime, artefact.file)}}
            attempts: list[dict[str, Any]] = []
            while len(attempts) < BRIEF_ATTEMPTS and (not attempts or attempts[-1]["noisy"]):
                attempts.append(bench_models(specs, **brief)["file"].summary())
            images.unlink()
            best = min(attempts, key=lambda summary: (summary["noisy"], summary["p50"]))
            (result.work / "latency.json").write_text(json.dumps({**best, "attempts": len(attempts)}))
    return result


def save_images(context: BuildContext, network: Darknet, folder: Path) -> Path:
    """Write the first test images, letterboxed, ``(N, H, W, 3)`` uint8, for the processes that are timed."""
    loader = context.evaluation_loader(context.test, network, LATENCY_IMAGES)
    images = folder / "images.npy"
    pixels = in_three_channels(to_uint8_input(next(iter(loader)).images.numpy()))
    np.save(images, pixels, allow_pickle=False)
    return images


def _specs(
    models: Mapping[str, StageResult],
    exports: Mapping[str, StageResult],
    artefacts: Sequence[Artefact],
    runtimes: Sequence[str],
    threads: int,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names and what `bench_models` needs: every row in fp32, and the pruned network's other files."""
    for row, model in models.items():
        for runtime in runtimes:
            yield f"{row}|{runtime}", file_spec(runtime, exports[row].folder / PLAIN)
        cfg, weights = str(model.folder / "model.cfg"), str(model.folder / "model.weights")
        yield (
            f"{row}|torch",
            {
                "runtime": "torch",
                "factory": "prunedeploy.evaluation.torch_runner:open_torch_runner",
                "arguments": {"cfg": cfg, "weights": weights, "threads": threads},
            },
        )
    for artefact in artefacts:
        if artefact.target != "gpu" and not artefact.is_plain:
            for runtime in runtimes:
                yield f"pruned|{runner_key(runtime, artefact)}", file_spec(runtime, artefact.file)


def file_spec(runtime: str, path: Path) -> dict[str, Any]:
    """What `bench_models` needs of a file, without how it is called."""
    # An fp32 row is to be fp32: left alone, OpenVINO takes bf16 where the CPU has it.
    return {"runtime": runtime, "path": str(path), "inference_precision": "f32"}
