"""What a trial of a ratio search measures, with the stages of a build.

A trial for an mAP is what the build does at that ratio, so the build of the chosen one finds everything stored. A
file's size and latency depend on its shape, not on the values of its weights, so these trials train nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from prunedeploy.config import BuildConfig
from prunedeploy.pipeline.context import BuildContext, StageResult
from prunedeploy.pipeline.export_stages import Artefact, artefact_stages, engine_key, export_stage
from prunedeploy.pipeline.latency_stage import file_latency_stage
from prunedeploy.pipeline.measure_stages import evaluate_stage
from prunedeploy.pipeline.networks import all_networks, check_reachable, unpruned_networks
from prunedeploy.pipeline.ratio_search import Measured, RatioSearch, search_ratio
from prunedeploy.pipeline.ratio_target import RatioTarget
from prunedeploy.pipeline.results import BuildResults
from prunedeploy.pipeline.score_stages import score_stage
from prunedeploy_engines.errors import ConfigError, DataError
from prunedeploy_engines.runtimes import unavailable_reason

FILE_RUNTIMES = ("onnxruntime", "openvino")


def check_target(config: BuildConfig, target: RatioTarget) -> None:
    """Refuse a target that this configuration has no search for, before anything is read.

    Raises:
        ConfigError: The method has one ratio only, or no configured runtime times files on this machine's CPU.
    """
    if config.method == "nm":
        what = "has nothing to search: the pattern of nm pruning gives the ratio"
        raise ConfigError(what, target.option, "leave it out, or choose another --method")
    if target.measure == "latency_ms":
        trial_runtime(config)


def trial_runtime(config: BuildConfig) -> str:
    """The runtime whose latency is searched: the first of the configuration's that runs ONNX files on this CPU.

    Raises:
        ConfigError: There is none.
    """
    for runtime in config.latency.runtimes:
        if runtime in FILE_RUNTIMES and unavailable_reason(runtime) is None:
            return runtime
    raise ConfigError(
        f"none of {', '.join(config.latency.runtimes)} runs ONNX files on this CPU",
        "--target-latency",
        "use --set latency.runtimes=onnxruntime",
    )


def find_ratio(context: BuildContext, target: RatioTarget) -> tuple[RatioSearch, list[StageResult]]:
    """Search for the ratio, with this context's configuration for everything else.

    Returns:
        The search, and the results of all its stages.

    Raises:
        PruningError: No ratio meets the target.
        DataError: An mAP is searched for and the test images have no boxes.
    """
    stages: list[StageResult] = []
    measures: dict[str, Callable[[BuildContext], Measured]] = {
        "latency_ms": _latency_ms,
        "onnx_bytes": _onnx_bytes,
        "map_pgd": lambda trial: _map(trial, target.measure),
        "map_clean": lambda trial: _map(trial, target.measure),
    }

    def measure(ratio: float) -> Measured:
        config = context.config.model_copy(update={"ratio": ratio})
        check_reachable(config)
        if not target.is_accuracy:
            config = without_training(config)
        return measures[target.measure](replace(context, config=config, results=stages))

    search = search_ratio(target, measure, method=context.config.method, say=context.progress.message)
    return search, stages


def final_value(context: BuildContext, built: BuildResults, target: RatioTarget) -> Measured | None:
    """The finished network's value, from the results of the build; None if it was not measured."""
    if target.is_accuracy:
        return _map_of(built.evaluations["pruned"], target.measure)
    if target.measure == "onnx_bytes":
        return _smallest(built.artefacts)
    rows = json.loads((built.latency.folder / "latency.json").read_text())["rows"]
    engine = engine_key(trial_runtime(context.config), _timed(built.artefacts))
    row = rows.get(f"pruned|{engine}|1")
    return None if row is None else Measured(row["p50"], row["noisy"])


def without_training(config: BuildConfig) -> BuildConfig:
    """The configuration with trainings of no steps and files that need to be right in nothing but their shape.

    Calibration and its budget are left out of int8: the files have the size and speed of those in which no convolution
    is left in fp32.
    """

    def changed(block: Any, **values: Any) -> Any:
        return block.model_copy(update=values)

    gates = {"parity_tolerance": 1e6, "match_iou": 0.0, "match_score": 1.0, "map_tolerance": 1.0}
    export = config.export
    int8 = changed(export.int8, **gates, calibration_images=1, sensitivity_images=1, map_budget=None)
    return changed(
        config,
        pretrain=changed(config.pretrain, steps=0, clean_steps=0),
        score_optimization=changed(config.score_optimization, steps=0),
        finetune=changed(config.finetune, steps=0, bn_recalibration_images=0),
        export=changed(export, **gates, fp16=changed(export.fp16, **gates), int8=int8),
    )


def _map(context: BuildContext, measure: str) -> Measured:
    """MAP in PyTorch of the network that a build has at this ratio; at ratio 0 of the robust one."""
    if context.config.ratio == 0:
        _, robust = unpruned_networks(context)
        score_stage(context, robust)  # what is wrong with the scores is wrong with every ratio: said before a trial
        return _map_of(evaluate_stage(context, "robust", robust, export_stage(context, robust)), measure)
    pruned = all_networks(context).pruned
    export = export_stage(context, pruned)
    # As the build does with fp32 alone; its files in other precisions are made for the chosen ratio only.
    plain = [name for name in context.config.export.precisions if name == "fp32"]
    settings = context.config.export.model_copy(update={"precisions": tuple(plain)})
    fp32_only = replace(context, config=context.config.model_copy(update={"export": settings}))
    artefacts = artefact_stages(fp32_only, pruned, export)
    return _map_of(evaluate_stage(fp32_only, "pruned", pruned, export, artefacts), measure)


def _map_of(evaluation: StageResult, measure: str) -> Measured:
    value = json.loads((evaluation.folder / "evaluation.json").read_text())["torch"][measure]
    if value is None:
        raise DataError("the test images have no boxes, so mAP is undefined", "--target-map", "give other images")
    return Measured(value)


def _onnx_bytes(context: BuildContext) -> Measured:
    _, artefacts = _files(context)
    return _smallest(artefacts)


def _latency_ms(context: BuildContext) -> Measured:
    first = context.config.export.model_copy(update={"precisions": context.config.export.precisions[:1]})
    context = replace(context, config=context.config.model_copy(update={"export": first}))
    network, artefacts = _files(context)
    measured = file_latency_stage(context, network, _timed(artefacts), trial_runtime(context.config))
    summary = json.loads((measured.folder / "latency.json").read_text())
    return Measured(summary["p50"], summary["noisy"])


def _files(context: BuildContext) -> tuple[StageResult, list[Artefact]]:
    pruned = all_networks(context).pruned
    return pruned, artefact_stages(context, pruned, export_stage(context, pruned))


def _smallest(artefacts: list[Artefact]) -> Measured:
    return Measured(min(artefact.file.stat().st_size for artefact in artefacts))


def _timed(artefacts: list[Artefact]) -> Artefact:
    """The file whose latency counts: that of the first precision which was asked for, for a CPU."""
    return next(artefact for artefact in artefacts if artefact.target != "gpu")
