"""The stages of one cell, and what a result row takes from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from prunedeploy.pipeline.context import BuildContext, StageResult, load_stage_model
from prunedeploy.pipeline.networks import pruned_networks, unpruned_networks
from prunedeploy.pipeline.stages.evaluate import check_images_stage, evaluate_stage
from prunedeploy.pipeline.stages.export import PLAIN, Artefact, cpu_runtimes, export_stage
from prunedeploy.pipeline.stages.latency import file_latency_stage
from prunedeploy.pipeline.stages.robustness import FILE as ROBUSTNESS
from prunedeploy.pipeline.stages.robustness import robustness_stage
from prunedeploy.pipeline.stages.train import original_stage
from prunedeploy.pipeline.store.key import machine_id, read_record
from prunedeploy.pipeline.store.store import read_json
from prunedeploy.pruning.subnet import count_parameters
from prunedeploy.study.rows.rows import MAPS
from prunedeploy.study.sweep.tasks import Phase
from prunedeploy_engines.errors import DataError, RuntimeUnavailableError
from prunedeploy_engines.machine.environment import cpu_info


@dataclass(frozen=True)
class CellStages:
    """Results that a row is made of.

    Attributes:
        network: The finished network.
        export: Its ONNX file.
        evaluation: Its mAP.
        robustness: What other attacks do to it; None unless the configuration asks for it.
        cut: What the achieved ratio is taken from; None of the network as given.
        scoring: The initial importance scores; None of the network as given.
        optimisation: Optimisation of the scores; None where that step is left out.
    """

    network: StageResult
    export: StageResult
    evaluation: StageResult
    robustness: StageResult | None
    cut: StageResult | None = None
    scoring: StageResult | None = None
    optimisation: StageResult | None = None


def trained_stages(
    context: BuildContext,
    is_reference: bool,
    unpruned: Callable[[BuildContext], tuple[StageResult, StageResult]] = unpruned_networks,
) -> CellStages:
    """Everything of a cell but its latency.

    Args:
        context: With the cell's configuration; its results are those of this cell.
        is_reference: It is the network as given.
        unpruned: Gives the original and the robust network.

    Raises:
        PrunedeployError: As the stages.
    """
    check_images_stage(context)
    if is_reference:
        network = original_stage(context)
        export = export_stage(context, network)
        evaluation = evaluate_stage(context, "original", network, export)
        return CellStages(network, export, evaluation, _robustness(context, "original", network, None))
    networks = pruned_networks(context, *unpruned(context))
    export = export_stage(context, networks.pruned)
    evaluation = evaluate_stage(context, "pruned", networks.pruned, export)
    robustness = _robustness(context, "pruned", networks.pruned, networks.robust)
    by_name = {result.name: result for result in context.results}
    return CellStages(
        networks.pruned,
        export,
        evaluation,
        robustness,
        networks.prune,
        by_name["score"],
        by_name.get("optimise-scores"),
    )


def _robustness(
    context: BuildContext, row: str, network: StageResult, parent: StageResult | None
) -> StageResult | None:
    if not context.config.robustness.is_wanted:
        return None
    return robustness_stage(context, row, network, parent)


def timing_runtime(context: BuildContext) -> str | None:
    """What latency is measured with: the first configured runtime that runs ONNX files here; None if there is none."""
    here = cpu_runtimes(context)
    return next((runtime for runtime in context.config.latency.runtimes if runtime in here), None)


def timed_stage(context: BuildContext, stages: CellStages, runtime: str) -> StageResult:
    """Latency of a cell's ONNX file alone."""
    path = stages.export.folder / PLAIN
    return file_latency_stage(context, stages.network, Artefact("fp32", None, stages.export, path, path), runtime)


def row_values(context: BuildContext, phase: Phase, is_reference: bool) -> dict[str, Any]:
    """Do what a task asks for, and return the fields of a row that it gives.

    Raises:
        RuntimeUnavailableError: No configured runtime runs ONNX files here.
        PrunedeployError: As the stages.
    """
    stages = trained_stages(context, is_reference)
    if phase == "train":
        return training_values(stages)
    runtime = timing_runtime(context)
    if runtime is None:
        raise RuntimeUnavailableError("no configured runtime runs here", "latency.runtimes", "install onnxruntime")
    return timing_values(timed_stage(context, stages, runtime), runtime)


def training_values(stages: CellStages) -> dict[str, Any]:
    """The fields of a row that training and evaluation give.

    Raises:
        DataError: There is no mAP, because no test image has a box.
    """
    evaluation = read_json(stages.evaluation.folder / "evaluation.json")["torch"]
    values: dict[str, Any] = {name: evaluation[name] for name in MAPS}
    if values["map_clean"] is None:
        raise DataError("mAP is not defined: the test images have no boxes", "data.path", "give images with boxes")
    if stages.robustness is not None:
        values["map_ensemble"] = read_json(stages.robustness.folder / ROBUSTNESS)["figures"].get("map_ensemble")
    values["params"] = count_parameters(load_stage_model(stages.network.folder))
    if stages.cut is None or stages.scoring is None:
        return values
    values["ratio_achieved"] = read_json(stages.cut.folder / "pruning.json")["ratio_achieved"]
    values["score_seconds"] = read_json(stages.scoring.folder / "score.json")["seconds"]
    values["score_machine"] = computed_on(stages.scoring)
    # One row has one machine for both, so what was computed elsewhere is left out.
    if stages.optimisation is not None and computed_on(stages.optimisation) == values["score_machine"]:
        values["optimise_seconds"] = stages.optimisation.seconds
    return values


def timing_values(timed: StageResult, runtime: str) -> dict[str, Any]:
    """The fields of a row that the measurement of latency gives."""
    summary = read_json(timed.folder / "latency.json")
    return {
        "time_ms": summary["mean"],
        "time_noisy": summary["noisy"],
        "runtime": runtime,
        "machine": machine_id(),
        "machine_name": cpu_info()["name"],
    }


def computed_on(result: StageResult) -> str | None:
    """`machine_id` of the machine that computed a result; None if its record is older than that key."""
    return read_record(result.folder).get("computed_on")
