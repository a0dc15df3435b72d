"""From the results of the stages to what lies in the output folder: results.json, bundle, CSVs, report."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from prunedeploy.config import as_dict
from prunedeploy.data.left_out import left_out
from prunedeploy.pipeline.context import BuildContext, StageResult
from prunedeploy.pipeline.engine_rows import EngineMeasurements, engine_rows
from prunedeploy.pipeline.left_out import LeftOut
from prunedeploy.pipeline.model_rows import model_row, speedup
from prunedeploy.pipeline.networks import Networks
from prunedeploy.pipeline.output_folder import ENTRIES, OutputFolder
from prunedeploy.pipeline.stages.adaptive import FILE as ADAPTIVE
from prunedeploy.pipeline.stages.corruptions import FILE as CORRUPTIONS
from prunedeploy.pipeline.stages.dead_channels import NAME as DEAD_CHANNELS
from prunedeploy.pipeline.stages.deployment import deployment
from prunedeploy.pipeline.stages.evaluate import csv_name
from prunedeploy.pipeline.stages.export import ENGINE, Artefact
from prunedeploy.pipeline.stages.flood import FILE as FLOOD
from prunedeploy.pipeline.stages.latency import PEAK
from prunedeploy.pipeline.stages.operating_point import FILE as POINTS
from prunedeploy.pipeline.stages.operating_point import NETWORK
from prunedeploy.pipeline.stages.robustness import FILE as ROBUSTNESS
from prunedeploy.pipeline.stages.square import FILE as SQUARE
from prunedeploy.pipeline.stages.training_run import SKIPPED
from prunedeploy.report.page import write_report
from prunedeploy_engines.builder.from_onnx import read_engine_file, sidecar_path
from prunedeploy_engines.bundle import BundleFile, load_bundle, write_bundle
from prunedeploy_engines.errors import BundleError
from prunedeploy_engines.files import file_sha256, write_atomically
from prunedeploy_engines.machine.environment import library_versions, machine_info

SCHEMA_VERSION = 1
TRAININGS = ("original", "pretrain", "optimise-scores", "finetune", "qat")
RECORDED_BY_THEIR_STAGES = ("map", "pattern", "engine")
MAKE_THE_PRUNED = ("finetune", DEAD_CHANNELS)


@dataclass(frozen=True)
class BuildResults:
    """The results of one build's stages, by what they are of.

    Attributes:
        networks: The three networks, and the cut.
        exports: ONNX of each network, in fp32.
        artefacts: ONNX files of the bundle, in every precision.
        pattern: The gate of n:m pruning; None for other methods.
        engines: GPU engines.
        missing_engines: Target and reason of those that could not be built.
        left_out: What failed a gate or cannot be built; ``artefacts`` and ``engines`` are what is delivered.
        evaluations: mAP of each network.
        comparison: Pruned against robust.
        robustness: What other attacks do to each network; empty unless asked for.
        corruptions: What weather, noise, blur and compression do to each network; empty unless asked for.
        adaptive: Attacks on the pruned network's files; None unless they were asked for.
        square: Those by their answers, by `runner_key`; empty unless asked for.
        points: Operating points of each network, and of the files of the pruned one.
        gallery: Pictures.
        latency: All networks.
        flood: Latency of the files under floods; None unless asked for.
    """

    networks: Networks
    exports: dict[str, StageResult]
    artefacts: list[Artefact]
    left_out: list[LeftOut]
    pattern: StageResult | None
    engines: list[StageResult]
    missing_engines: list[dict[str, str]]
    evaluations: dict[str, StageResult]
    comparison: StageResult
    robustness: dict[str, StageResult]
    corruptions: dict[str, StageResult]
    adaptive: StageResult | None
    square: dict[str, StageResult]
    points: dict[str, StageResult]
    gallery: StageResult
    latency: StageResult
    flood: StageResult | None

    @property
    def figures(self) -> dict[str, Any]:
        """The mAP of the pruned network and of its files."""
        return self.evaluations["pruned"].read("evaluation.json")


def collect_results(context: BuildContext, built: BuildResults, command: str | None) -> dict[str, Any]:
    """The document of ``results.json``."""
    config = context.config
    pruning = built.networks.prune.read("pruning.json")
    latency = built.latency.read("latency.json")
    corruptions = {row: stage.read(CORRUPTIONS) for row, stage in built.corruptions.items()}
    rows = {
        row: model_row(
            row,
            built.networks.rows[row],
            export,
            built.evaluations[row],
            latency,
            built.robustness.get(row),
            corruptions.get(row),
        )
        for row, export in built.exports.items()
    }
    return {
        "schema_version": SCHEMA_VERSION,
        "name": config.name,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        "ratio_requested": config.ratio,
        "ratio_achieved": pruning["ratio_achieved"],
        "method": config.method,
        "scores": config.scores.name,
        "seed": config.seed,
        "network": context.network.as_dict(config.pretrain),
        "models": list(rows.values()),
        "speedup": speedup(rows),
        "engines": engine_rows(
            built.artefacts,
            built.engines,
            built.missing_engines,
            built.left_out,
            EngineMeasurements(
                built.figures,
                latency["rows"],
                corruptions.get("pruned"),
                {} if built.adaptive is None else built.adaptive.read(ADAPTIVE),
                {name: stage.read(SQUARE) for name, stage in built.square.items()},
                None if built.flood is None else built.flood.read(FLOOD),
            ),
        ),
        "left_out": [one.as_dict() for one in built.left_out],
        "gates": [{"model": row, **gate} for row in built.exports for gate in _gates(built, row)],
        "operating_points": [
            {"model": row, "file": None if name == NETWORK else name, **point}
            for row, stage in built.points.items()
            for name, point in stage.read(POINTS).items()
        ],
        "pruning": pruning,
        "dead_channels": _stage_document(context, DEAD_CHANNELS, "dead_channels.json"),
        "score_report": _stage_document(context, "score", "score.json"),
        "comparisons": built.comparison.read("comparison.json"),
        "attack": {"name": "pgd", **dict(config.attack), "precision": "fp32"},
        "robustness": {row: stage.read(ROBUSTNESS) for row, stage in built.robustness.items()},
        "corruptions": corruptions,
        "data": {
            "path": config.data.path,
            "train_images": len(context.training.images),
            "test_images": len(context.test.images),
            "greyscale": config.data.greyscale,
            **_left_out(context, built),
        },
        "latency_method": _latency_method(context, latency),
        "environment": {**machine_info(), "training_device": context.device.type, "training_threads": context.threads},
        "configuration": as_dict(config),
        "stages": {
            result.name + _suffix(context.results, i): {"digest": result.digest, "seconds": result.seconds}
            for i, result in enumerate(context.results)
        },
    }


def write_output(context: BuildContext, built: BuildResults, out: OutputFolder, results: dict[str, Any]) -> None:
    """Write everything that a build leaves; ``results.json`` last, so that it stands for a whole folder."""
    out.file("results.json").unlink(missing_ok=True)
    pruned = built.networks.pruned
    for name in ("model.cfg", "model.weights"):
        write_atomically(out.file(name), (pruned.folder / name).read_bytes())
    engines = built.figures.keys() - {"torch", "gates", "skipped"}
    for kind in ("clean", "pgd"):
        for row, evaluation in built.evaluations.items():
            source = evaluation.folder / csv_name("torch", kind)
            write_atomically(out.file(f"detections/{row}-{kind}.csv"), source.read_bytes())
        for name in (csv_name(engine, kind) for engine in engines):
            source = built.evaluations["pruned"].folder / name
            write_atomically(out.file(f"detections/pruned-{name}"), source.read_bytes())
    for row, stage in built.robustness.items():
        for path in sorted(stage.folder.glob("torch-*.csv")):
            write_atomically(out.file(f"detections/{row}-{path.stem.removeprefix('torch-')}.csv"), path.read_bytes())
    logs = [result.folder / "log.jsonl" for result in context.results if result.name in TRAININGS]
    log = "".join(path.read_text(encoding="utf-8") for path in logs if path.is_file())
    write_atomically(out.file("log.jsonl"), log.encode())
    _write_bundle(context, built, out, results)
    rows = [json.loads(line) for line in log.splitlines()]
    write_report(results, rows, built.gallery.folder, out.file("report.html"))
    write_atomically(out.file("results.json"), (json.dumps(results, indent=2) + "\n").encode())


def is_complete(out: OutputFolder, context: BuildContext) -> bool:
    """Whether the folder already holds exactly the results of these stages, with nothing missing or changed."""
    if not all((out.path / name).exists() for name in ENTRIES):
        return False
    try:
        stored = {stage["digest"] for stage in json.loads((out.path / "results.json").read_bytes())["stages"].values()}
        load_bundle(out.path / "bundle")
    except (ValueError, KeyError, TypeError, AttributeError, BundleError):
        return False
    pruned = next(result for result in reversed(context.results) if result.name in MAKE_THE_PRUNED).folder
    whole = all(file_sha256(out.path / name) == file_sha256(pruned / name) for name in ("model.cfg", "model.weights"))
    return whole and stored == {result.digest for result in context.results}


def _write_bundle(context: BuildContext, built: BuildResults, out: OutputFolder, results: dict[str, Any]) -> None:
    deployed = deployment(context, built.networks.pruned, built.points["pruned"], built.artefacts)
    files = dict(deployed.files)
    for engine in built.engines:
        for plan in sorted(engine.folder.glob("*.plan")):
            about = read_engine_file(plan)
            name = f"engines/{about.target}/{plan.name}"
            files[name] = BundleFile(plan, "engine", about.precision, about.target)
            files[f"{name}.json"] = BundleFile(sidecar_path(plan), "metadata", None, about.target)
    rows = {model["name"]: model for model in results["models"]}
    engines = [engine for engine in results["engines"] if engine["file"] is not None]
    write_bundle(
        out.file("bundle"),
        files,
        **deployed.settings,
        pruning={
            **results["pruning"],
            "scores": context.config.scores.name,
            # Beside the metrics' ``filters`` it says how many left, the dead ones too, which ``layers`` do not know.
            "filters_before": rows["robust"]["filters"],
            "layers": results["pruning"].get("layers"),
        },
        metrics={
            **_without("name", rows["pruned"]),
            # The file's SHA-256 stands under ``files`` and nowhere else.
            "engines": [
                {**_without("sha256", engine), "file": engine["file"].removeprefix("bundle/")} for engine in engines
            ],
        },
        provenance={
            "commit": _commit(),
            "configuration": as_dict(context.config),
            "seeds": {"seed": context.config.seed},
            "versions": library_versions(),
        },
        created=results["created"],
        overwrite=True,
    )


def _without(key: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != key}


def _gates(built: BuildResults, row: str) -> list[dict[str, Any]]:
    gates: list[dict[str, Any]] = built.exports[row].read("gates.json")
    if row == "pruned":
        made = [artefact for artefact in built.artefacts if not artefact.is_plain]
        gates += [{"artefact": one.name, **gate} for one in made for gate in one.stage.read("gates.json")]
        gates += [one.as_gate() for one in built.left_out if one.gate not in RECORDED_BY_THEIR_STAGES]
        gates += [] if built.pattern is None else built.pattern.read("pattern.json")
    return gates + list(built.evaluations[row].read("evaluation.json")["gates"])


def _latency_method(context: BuildContext, latency: Mapping[str, Any]) -> dict[str, Any]:
    found = {runtime: latency["rows"].get(PEAK.format(runtime=runtime)) for runtime in ("onnxruntime", "openvino")}
    peaks = {name: 2 * peak["engine"]["macs"] / peak["p50"] / 1e6 for name, peak in found.items() if peak is not None}
    return {
        **context.config.latency.model_dump(mode="json"),
        "threads": latency["threads"],
        "input_size": latency["input_size"],
        "kind": "host: tensors in, tensors out; on a CPU the same as compute",
        "how": "a process per model, interleaved in rounds, every sample kept",
        "peak_matmul_gflops": peaks.get(ENGINE),
        "peaks_matmul_gflops": peaks,
        "machine": latency["machine"],
    }


def _stage_document(context: BuildContext, stage: str, name: str) -> Any:
    """A JSON file of a stage; None if the build has no such stage."""
    return next((result.read(name) for result in reversed(context.results) if result.name == stage), None)


def _left_out(context: BuildContext, built: BuildResults) -> dict[str, Any]:
    """What of the data was not used: images by path with the reason, and what was wrong with records, counted."""
    in_training = dict((_stage_document(context, "score", "score.json") or {}).get("skipped") or {})
    for result in context.results:
        if result.name in TRAININGS and (result.folder / SKIPPED).is_file():
            in_training |= result.read(SKIPPED)
    return {
        "skipped": {**in_training, **built.figures["skipped"]},
        "skipped_in_training": sorted(in_training),
        "left_out": [asdict(row) for row in left_out(context.training, context.test)],
    }


def _suffix(results: Sequence[StageResult], index: int) -> str:
    """Number the stages that a build runs more than once: export, evaluate, engine."""
    same = [i for i, result in enumerate(results) if result.name == results[index].name]
    return f"-{same.index(index) + 1}" if len(same) > 1 else ""


def _commit() -> str | None:
    """Commit of the checkout that this runs from; None for an installed package."""
    folder = Path(__file__).parents[2]
    if not (folder / ".git").exists() or shutil.which("git") is None:
        return None
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None
