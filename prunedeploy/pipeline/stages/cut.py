"""The stages that decide what goes and cut it: optimise scores, prune.

How much of every layer lives is decided once, from the scores of the score stage as they are.
Optimising the scores changes which weights, kernels or filters of a layer those are, not how many; it leaves
``allocation.json`` for the cut. Without it the cut allocates by the scores it is given, which then are the same.
Optimising also leaves ``normalisation.safetensors``: scale, shift and statistics that fit the network under its masks,
which is what is cut.
"""

from __future__ import annotations

import json

import torch
from safetensors.torch import load_file, save_file

from prunedeploy.config import result_settings
from prunedeploy.models import Darknet
from prunedeploy.models.darknet_cfg import DarknetCfg
from prunedeploy.pipeline.context import BuildContext, StageResult, load_stage_model
from prunedeploy.pipeline.stages.convolution_times import convolution_times_stage, load_convolution_times
from prunedeploy.pipeline.stages.granularity import cut_settings, granularity_of
from prunedeploy.pipeline.stages.score import load_scores, save_scores
from prunedeploy.pipeline.stages.training_run import training_run
from prunedeploy.pruning.cut import make_cut
from prunedeploy.pruning.deviation import largest_deviation
from prunedeploy.pruning.granularity import Allocation, Evidence
from prunedeploy.scores.interface import Scores
from prunedeploy.training.hydra import ScoredDarknet, score_objective, starting_scores
from prunedeploy_engines.errors import GateError

SHRINK_TOLERANCE = 1e-5
ALLOCATION = "allocation.json"
NORMALISATION = "normalisation.safetensors"


def optimise_stage(context: BuildContext, robust: StageResult, scores: StageResult) -> StageResult:
    """Step 3: optimise the scores for this ratio and method with frozen convolution weights.

    Returns:
        ``scores`` as they are, where the step is not taken: see ``score_optimization.enabled``.
    """
    config, block = context.config, context.config.score_optimization
    if not config.optimises_scores or config.ratio == 0:
        return scores
    granularity, times = granularity_of(config), _times(context, robust)

    trained = {key: value for key, value in result_settings(block).items() if key != "enabled"}
    settings = {**context.training_settings(), "block": trained, **cut_settings(config)}
    inputs = {"robust": robust.digest, "scores": scores.digest, "data": context.training_key, **_times_input(times)}
    with context.stage("optimise-scores", 4, settings, inputs, collective=True) as result:
        if result.work:
            model, values = load_stage_model(robust.folder), load_scores(scores.folder)
            start = {index: value.to(context.device) for index, value in starting_scores(values, model).items()}
            allocation = granularity.allocate(model.cfg, _evidence(model.cfg, values, times))
            model.to(context.device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in its stubs
            scored = ScoredDarknet(model, start, granularity.selection(model.cfg, allocation), block.freeze_bn)
            objective = score_objective(scored, block, block.attack, config.seed, context.device)
            with training_run(context, result, "optimise-scores", block, model) as train:
                train(scored, sets=scored.parameter_sets(block.bn_lr), objective=objective)
            save_scores(result.work / "scores.safetensors", scored.score_tensors())
            state = scored.network.state_dict()
            alive = {name: value for name, value in state.items() if not name.endswith(".weight")}
            save_file(alive, result.work / NORMALISATION)
            (result.work / ALLOCATION).write_text(json.dumps(allocation.as_json()))
    return result


def prune_stage(context: BuildContext, robust: StageResult, scores: StageResult) -> StageResult:
    """Step 4: cut what the scores say; where filters leave, the network leaves it physically smaller.

    ``keep.safetensors`` has the filters that live of a structured network; of the others the weights that were not
    zeroed, in the shapes of the network that is left.
    """
    config, granularity, times = context.config, granularity_of(context.config), _times(context, robust)
    inputs = {"robust": robust.digest, "scores": scores.digest, **_times_input(times)}
    with context.stage("prune", 2, cut_settings(config), inputs) as result:
        if result.work:
            model, values = load_stage_model(robust.folder), load_scores(scores.folder)
            if (scores.folder / NORMALISATION).is_file():
                model.load_state_dict(model.state_dict() | load_file(scores.folder / NORMALISATION))
            if (scores.folder / ALLOCATION).is_file():
                allocation = Allocation.from_json(scores.read(ALLOCATION))
            else:
                allocation = granularity.allocate(model.cfg, _evidence(model.cfg, values, times))
            masks = granularity.selection(model.cfg, allocation)(values).as_bool()
            cut = make_cut(model, masks)
            record = granularity.record(model.cfg, cut, allocation)
            if config.allocation != "uniform":
                record["allocation"] = config.allocation
            if config.method == "nm":
                record["sparse_weights"] = config.sparse_weights
            if masks.filters:
                record["shrunk_deviation"] = check_shrunk(cut.masked, cut.network)
            keep = cut.filters if config.method == "structured" else cut.weights
            masks_kept = {str(index): mask.contiguous() for index, mask in keep.items()}
            save_file(masks_kept, result.work / "keep.safetensors")
            result.write("pruning.json", record)
            cut.network.save(result.work / "model.cfg", result.work / "model.weights")
    return result


def _times(context: BuildContext, robust: StageResult) -> StageResult | None:
    """What an allocation by latency goes by."""
    config = context.config
    return convolution_times_stage(context, robust) if config.allocation == "latency" and config.ratio > 0 else None


def _times_input(times: StageResult | None) -> dict[str, str]:
    return {} if times is None else {"times": times.digest}


def _evidence(cfg: DarknetCfg, scores: Scores, times: StageResult | None) -> Evidence:
    return Evidence(scores, None if times is None else load_convolution_times(cfg, times))


def check_shrunk(masked: Darknet, shrunk: Darknet) -> float:
    """How far a masked network and its shrunk one are apart, as `largest_deviation` measures it.

    Raises:
        GateError: It is above `SHRINK_TOLERANCE`.
    """
    worst = largest_deviation(masked, shrunk)
    if not worst <= SHRINK_TOLERANCE:
        raise GateError(f"the shrunk network deviates from the masked one by {worst:.2e}", "prune")
    return worst
