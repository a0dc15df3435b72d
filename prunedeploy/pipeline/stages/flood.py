"""The stage that times files under floods of candidates, from image to detections; only if it is asked for."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunedeploy.config import BuildConfig
from prunedeploy.pipeline.context import BuildContext, StageResult, load_stage_model
from prunedeploy.pipeline.flooding import write_flooding_images
from prunedeploy.pipeline.stages.deployment import Deployment
from prunedeploy.pipeline.stages.export import Artefact, cpu_runtimes, runner_key
from prunedeploy.pipeline.stages.latency import file_spec, save_images, timed
from prunedeploy.pipeline.store.key import machine_id
from prunedeploy_engines.bench.calls import prepare
from prunedeploy_engines.bench.flood import CASES, flooded_heads
from prunedeploy_engines.bench.images import load_images
from prunedeploy_engines.bench.rows import IMAGES
from prunedeploy_engines.bundle import Bundle, write_bundle
from prunedeploy_engines.errors import ConfigError
from prunedeploy_engines.machine.environment import machine_info
from prunedeploy_engines.runtimes.opening import open_runner
from prunedeploy_engines.runtimes.runner import Float32Array

FILE = "flood.json"
CLEAN = "clean"
_TIMED = ("onnxruntime", "openvino")
_KEPT = ("p50", "p99", "n", "noisy", "candidates", "ratio")
"""Of what `FILE` says of a row, what ``results.json`` has."""


def check_flood(config: BuildConfig) -> None:
    """Refuse floods where there will be nothing to time, before anything is read.

    Raises:
        ConfigError: No runtime of ONNX files is among those that latency is measured on.
    """
    if config.latency.flood and not set(_TIMED) & set(config.latency.runtimes):
        what = "times files on ONNX Runtime and OpenVINO, and latency.runtimes has neither"
        raise ConfigError(what, "latency.flood", "add one, e.g. latency.runtimes=onnxruntime")


def flood_stage(
    context: BuildContext, model: StageResult, artefacts: Sequence[Artefact], deployed: Deployment
) -> StageResult:
    """Latency of files from image to detections, as they are and flooded, interleaved in rounds, at batch 1.

    A file is flooded by every case of `prunedeploy_engines.bench.flood` unless suppression is in its graph, and by
    images of the data that were attacked to that end. ``flood.json`` has under ``rows``, by `runner_key`, the summary
    of ``clean`` and of each row of ``flooded``, with ``candidates`` of an image (pairs of box and class above the score
    that the file is deployed with: ``mean`` and ``largest``, before the bound on them), and of the flooded ones the
    ``ratio`` of their p99 to the clean one.

    Args:
        context: The build.
        model: Stage that made the pruned network.
        artefacts: Its files.
        deployed: How they are deployed.
    """
    config, settings = context.config, context.config.latency
    runtimes = [one for one in cpu_runtimes(context) if one in settings.runtimes]
    files = [one for one in artefacts if one.target != "gpu"]
    threads = settings.threads or context.threads
    key = {
        **settings.model_dump(include={"seconds", "min_calls", "warmup_seconds", "warmup_calls"}),
        "threads": threads,
        "runtimes": runtimes,
        "cases": list(CASES),
        "attack": config.attack.model_dump(),
        "thresholds": {one.name: deployed.score_threshold(one.precision) for one in files},
        **{name: deployed.settings[name] for name in ("input", "nms")},
        "iou_threshold": config.evaluation.iou_threshold,
        "seed": config.seed,
    }
    inputs = {"model": model.digest, "data": context.test_key, **{one.name: one.stage.digest for one in files}}
    with context.stage("flood", 1, key, inputs, machine=machine_id()) as result:
        if result.work:
            with tempfile.TemporaryDirectory() as temporary:
                folder = Path(temporary)
                clean = save_images(context, load_stage_model(model.folder), folder)
                flooded = folder / "flooded.npy"
                cfg, weights = model.folder / "model.cfg", model.folder / "model.weights"
                write_flooding_images(cfg, weights, clean, flooded, config.seed, config.attack)
                specs: dict[str, dict[str, Any]] = {}
                candidates: dict[str, dict[str, float]] = {}
                for file in files:
                    bundle = _bundle_of(file, deployed, folder / "bundles" / file.name)
                    for runtime in runtimes:
                        common = {
                            **file_spec(runtime, bundle.path / file.name),
                            "bundle": str(bundle.path),
                            "threads": threads,
                            "kind": "end_to_end",
                        }
                        name = runner_key(runtime, file)
                        specs[f"{name}|{CLEAN}"] = {**common, "images": str(clean)}
                        specs[f"{name}|{IMAGES}"] = {**common, "images": str(flooded)}
                        for case in () if file.has_nms else CASES:
                            specs[f"{name}|{case}"] = {**common, "images": str(clean), "flood": case}
                        counts = _candidates(file, runtime, bundle, {CLEAN: clean, IMAGES: flooded}, context.threads)
                        candidates |= {f"{name}|{row}": counted for row, counted in counts.items()}
                measured = timed(context, specs, "measure latency under floods")
            rows: dict[str, dict[str, Any]] = {}
            for name, one in measured.items():
                engine, _, row = name.rpartition("|")
                summary = {**one.latency.summary(), "candidates": candidates[name]}
                if row == CLEAN:
                    rows[engine] = {CLEAN: summary, "flooded": {}}
                else:
                    summary["ratio"] = summary["p99"] / rows[engine][CLEAN]["p99"]
                    rows[engine]["flooded"][row] = summary
            document = {
                "rows": rows,
                "samples_ms": {name: one.latency.samples_ms for name, one in measured.items()},
                "machine": machine_info(),
                "threads": threads,
            }
            result.write(FILE, document)
    return result


def flood_figures(document: Mapping[str, Any] | None, runner: str) -> dict[str, Any]:
    """``flood`` of one runner's row in ``results.json``; nothing if it was not flooded.

    ``clean`` and ``flooded``, by what they were flooded with; ``worst``, which of these has the largest p99.
    """
    found = None if document is None else document["rows"].get(runner)
    if found is None:
        return {}
    rows = {name: _without_details(one) for name, one in found["flooded"].items()}
    worst = max(rows, key=lambda name: float(rows[name]["p99"]))
    kind = found[CLEAN]["kind"]
    return {"flood": {"kind": kind, CLEAN: _without_details(found[CLEAN]), "flooded": rows, "worst": worst}}


def _without_details(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: row[key] for key in _KEPT if key in row}


def _bundle_of(file: Artefact, deployed: Deployment, folder: Path) -> Bundle:
    """A bundle of one file, whose own score threshold is the bundle's."""
    thresholds = {**deployed.settings["thresholds"], "score": deployed.score_threshold(file.precision)}
    return write_bundle(
        folder, {file.name: deployed.files[file.name]}, **{**deployed.settings, "thresholds": thresholds}
    )


def _candidates(
    file: Artefact, runtime: str, bundle: Bundle, images: Mapping[str, Path], threads: int
) -> dict[str, dict[str, float]]:
    """How many candidates the images have, by name, and the made-up heads; of a file with suppression, what it left."""
    threshold = bundle.manifest.thresholds.score
    found = {}
    with open_runner(file.file, runtime, threads=threads, allow_spinning=False) as runner:
        for name, path in images.items():
            scores = runner.infer(prepare(load_images(path), runner, bundle))[1]
            found[name] = _counted(scores, threshold)
        if not file.has_nms:
            _, predictions, classes = scores.shape
            for case in CASES:
                heads = flooded_heads(case, predictions, classes, runner.input_size)
                found[case] = _counted(heads[1][None], threshold)
    return found


def _counted(scores: Float32Array, threshold: float) -> dict[str, float]:
    """Mean and most of ``(N, M, C)`` scores per image."""
    counts: NDArray[np.int64] = np.asarray(np.count_nonzero(scores > threshold, (1, 2)))
    return {"mean": float(counts.mean()), "largest": int(counts.max())}
