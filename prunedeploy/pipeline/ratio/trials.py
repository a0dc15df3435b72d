"""What a trial of a ratio search measures, with the stages of a build.

A trial for an mAP is what the build does at that ratio, so the build of the chosen one finds everything stored. A
file's size and latency depend on its shape only. Where that follows from the ratio alone, as it does where all layers
are narrowed alike, nothing is trained for a trial; where it follows from scores too (which filters happen to be dead,
which layers give more), a trial has the trained scores. What was found is confirmed with the finished file.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

from prunedeploy.config import BuildConfig, QatConfig
from prunedeploy.config.ratio_target import RatioTarget
from prunedeploy.pipeline.context import BuildContext, StageResult
from prunedeploy.pipeline.left_out import check_something_is_left
from prunedeploy.pipeline.networks import all_networks, unpruned_networks
from prunedeploy.pipeline.ratio.search import Measured, RatioSearch, search_ratio
from prunedeploy.pipeline.results import BuildResults
from prunedeploy.pipeline.stages.evaluate import evaluate_stage
from prunedeploy.pipeline.stages.export import Artefact, artefact_stages, export_stage, runner_key
from prunedeploy.pipeline.stages.granularity import check_reachable
from prunedeploy.pipeline.stages.latency import file_latency_stage
from prunedeploy.pipeline.stages.robustness import FILE as ROBUSTNESS
from prunedeploy.pipeline.stages.robustness import robustness_stage
from prunedeploy.pipeline.stages.score import score_stage
from prunedeploy_engines.errors import ConfigError, DataError, PruningError
from prunedeploy_engines.runtimes.opening import unavailable_reason

FILE_RUNTIMES = ("onnxruntime", "openvino")
PROBES = (0.99, 0.95, 0.9, 0.8)
"""Ratios at which it is seen whether shapes follow scores; at lower ones few filters die by chance."""


def check_target(config: BuildConfig, target: RatioTarget) -> None:
    """Refuse a target that this configuration has no search for, before anything is read.

    Raises:
        ConfigError: The method has one ratio only, or no configured runtime times files on this machine's CPU.
    """
    if config.method == "nm":
        what = "has nothing to search: the pattern of nm pruning fixes the ratio"
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

    def value_of(trial: BuildContext) -> Measured:
        if target.is_accuracy:
            return _map(trial, target.measure)
        return _latency_ms(trial) if target.measure == "latency_ms" else _smallest(_files(trial)[1])

    def trained(ratio: float) -> BuildContext:
        config = context.config.model_copy(update={"ratio": ratio})
        return replace(context, config=config, results=stages)

    def untrained(ratio: float) -> BuildContext:
        config = trained(ratio).config
        return replace(trained(ratio), config=without_training(config, but_scores=ratio > 0 and follows_scores()))

    @cache
    def follows_scores() -> bool:
        found = _shape_follows_scores(replace(context, results=stages))
        if found:
            context.progress.message(
                "search: shapes depend on scores here, so every trial uses the scores of its ratio"
            )
        return found

    def measure(ratio: float) -> Measured:
        check_reachable(trained(ratio).config)
        return value_of(trained(ratio) if target.is_accuracy else untrained(ratio))

    def confirm(ratio: float) -> Measured:
        if target.measure == "latency_ms" and _same_shape(_timed(trained(ratio)), _timed(untrained(ratio))):
            return measure(ratio)  # stored: there is nothing new to measure
        return value_of(trained(ratio))

    search = search_ratio(
        target,
        measure,
        method=context.config.method,
        confirm=None if target.is_accuracy else confirm,
        say=context.progress.message,
    )
    return search, stages


def final_value(context: BuildContext, built: BuildResults, target: RatioTarget) -> Measured | None:
    """The finished network's value, from the results of the build; None if it was not measured."""
    if target.measure == "map_ensemble":
        return _map_under_ensemble(built.robustness["pruned"])
    if target.is_accuracy:
        return _map_of(built.evaluations["pruned"], target.measure)
    if target.measure == "onnx_bytes":
        return _smallest(built.artefacts)
    rows = built.latency.read("latency.json")["rows"]
    wanted = context.config.export.precisions[0]
    timed = [one for one in built.artefacts if one.precision == wanted and one.target != "gpu"]
    if not timed:  # it is left out
        return None
    engine = runner_key(trial_runtime(context.config), timed[0])
    row = rows.get(f"pruned|{engine}|1")
    return None if row is None else Measured(row["p50"], row["noisy"])


def without_training(config: BuildConfig, *, but_scores: bool = False) -> BuildConfig:
    """The configuration with trainings of no steps and files that need to be right in nothing but their shape.

    Calibration and its budget are left out of int8: the files have the size and speed of those in which no convolution
    is left in fp32.

    Args:
        config: The build's configuration.
        but_scores: Keep what scores depend on: pre-training and their optimisation.
    """

    def changed(block: Any, **values: Any) -> Any:
        return block.model_copy(update=values)

    gates = {"parity_tolerance": 1e6, "match_iou": 0.0, "match_score": 1.0, "map_tolerance": 1.0}
    export = config.export
    int8 = changed(export.int8, **gates, calibration_images=1, sensitivity_images=1, map_budget=None, qat=QatConfig())
    config = changed(
        config,
        finetune=changed(config.finetune, steps=0, bn_recalibration_images=0),
        export=changed(export, **gates, fp16=changed(export.fp16, **gates), int8=int8),
    )
    if but_scores:
        return config
    return changed(
        config,
        pretrain=changed(config.pretrain, steps=0, clean_steps=0),
        score_optimization=changed(config.score_optimization, steps=0),
    )


def _shape_follows_scores(context: BuildContext) -> bool:
    """Whether other scores would leave a network of another shape: tried with random ones at `PROBES`.

    Not seeing it there costs time later and nothing else, since what is found is confirmed.
    """
    untrained = without_training(context.config)
    random = untrained.scores.model_copy(update={"name": "random"})
    other = untrained.model_copy(update={"scores": random, "seed": untrained.seed + 1})

    def cfg(config: BuildConfig, ratio: float) -> bytes:
        config = config.model_copy(update={"ratio": ratio})
        check_reachable(config)
        return (all_networks(replace(context, config=config)).pruned.folder / "model.cfg").read_bytes()

    for ratio in PROBES:
        try:
            if cfg(untrained, ratio) != cfg(other, ratio):
                return True
        except PruningError:  # not a ratio that can be reached
            continue
    return False


def _map(context: BuildContext, measure: str) -> Measured:
    """MAP in PyTorch of the network that a build has at this ratio; at ratio 0 of the robust one."""
    if context.config.ratio == 0:
        _, robust = unpruned_networks(context)
        score_stage(context, robust)  # what is wrong with the scores is wrong with every ratio: said before a trial
        if measure == "map_ensemble":
            return _map_under_ensemble(robustness_stage(context, "robust", robust, None))
        return _map_of(evaluate_stage(context, "robust", robust, export_stage(context, robust)), measure)
    networks = all_networks(context)
    pruned = networks.pruned
    if measure == "map_ensemble":
        return _map_under_ensemble(robustness_stage(context, "pruned", pruned, networks.rows["robust"]))
    export = export_stage(context, pruned)
    # As the build does with fp32 alone; its files in other precisions are made for the chosen ratio only.
    plain = [name for name in context.config.export.precisions if name == "fp32"]
    settings = context.config.export.model_copy(update={"precisions": tuple(plain)})
    fp32_only = replace(context, config=context.config.model_copy(update={"export": settings}))
    artefacts, _ = artefact_stages(fp32_only, pruned, export)
    return _map_of(evaluate_stage(fp32_only, "pruned", pruned, export, artefacts), measure)


def with_what_is_searched(config: BuildConfig, target: RatioTarget) -> BuildConfig:
    """The configuration, with the ensemble among its attacks if a target asks for mAP under it."""
    block = config.robustness
    if target.measure != "map_ensemble" or "ensemble" in block.attacks:
        return config
    attacks = (*block.attacks, "ensemble")
    return config.model_copy(update={"robustness": block.model_copy(update={"attacks": attacks})})


def _map_under_ensemble(robustness: StageResult) -> Measured:
    return _defined(robustness.read(ROBUSTNESS)["figures"]["map_ensemble"])


def _map_of(evaluation: StageResult, measure: str) -> Measured:
    return _defined(evaluation.read("evaluation.json")["torch"][measure])


def _defined(value: float | None) -> Measured:
    if value is None:
        raise DataError("the test images have no boxes, so mAP is undefined", "--target-map", "give other images")
    return Measured(value)


def _files(context: BuildContext) -> tuple[StageResult, list[Artefact]]:
    """The pruned network, and the files that are deployed of it."""
    pruned = all_networks(context).pruned
    artefacts, left_out = artefact_stages(context, pruned, export_stage(context, pruned))
    check_something_is_left(artefacts, left_out)
    return pruned, artefacts


def _latency_ms(context: BuildContext) -> Measured:
    network, artefact = _timed(context)
    summary = file_latency_stage(context, network, artefact, trial_runtime(context.config)).read("latency.json")
    return Measured(summary["p50"], summary["noisy"])


def _timed(context: BuildContext) -> tuple[StageResult, Artefact]:
    """The pruned network, and of its files the one whose latency counts; the others are not made."""
    export = context.config.export
    first = export.model_copy(update={"precisions": export.precisions[:1]})
    network, artefacts = _files(replace(context, config=context.config.model_copy(update={"export": first})))
    return network, _first_for_cpu(artefacts)


def _same_shape(one: tuple[StageResult, Artefact], other: tuple[StageResult, Artefact]) -> bool:
    """Whether two files are the same but for their values: equal cfgs, and as many convolutions in int8."""
    (network, artefact), (other_network, other_artefact) = one, other
    same_cfg = (network.folder / "model.cfg").read_bytes() == (other_network.folder / "model.cfg").read_bytes()
    return same_cfg and artefact.file.stat().st_size == other_artefact.file.stat().st_size


def _smallest(artefacts: list[Artefact]) -> Measured:
    return Measured(min(artefact.file.stat().st_size for artefact in artefacts))


def _first_for_cpu(artefacts: list[Artefact]) -> Artefact:
    """The file of the first precision that was asked for; of int8, the one for CPUs."""
    return next(artefact for artefact in artefacts if artefact.target != "gpu")
