"""The stages that decide what goes and cut it: optimise scores, prune."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from prunedeploy.config import BuildConfig, result_settings
from prunedeploy.models import Darknet
from prunedeploy.pipeline.context import BuildContext, StageResult, load_stage_model, loop_settings
from prunedeploy.pipeline.score_stages import load_scores, save_scores
from prunedeploy.pipeline.training_run import run_training
from prunedeploy.pruning.coupling import coupling_groups
from prunedeploy.pruning.importance import unit_importance
from prunedeploy.pruning.masks import apply_structured, apply_unstructured
from prunedeploy.pruning.ratio import solve_structured, solve_widths
from prunedeploy.pruning.semi_structured import NmPattern, solve_nm
from prunedeploy.pruning.shrink import shrink
from prunedeploy.pruning.subnet import nm_record, pruning_record, unstructured_record
from prunedeploy.pruning.unstructured import keep_counts, solve_unstructured
from prunedeploy.training.hydra import ScoredDarknet, score_objective
from prunedeploy_engines.errors import GateError

SHRINK_TOLERANCE = 1e-5


def optimise_stage(context: BuildContext, robust: StageResult, scores: StageResult) -> StageResult:
    """Step 3: optimise the scores for this ratio and method with frozen weights; nothing with 0 steps."""
    config, block = context.config, context.config.score_optimization
    if block.steps == 0 or config.ratio == 0:
        return scores

    def compute(work: Path, checkpoints: Path) -> None:
        model = load_stage_model(robust.folder).to(context.device)
        start = {index: value.to(context.device) for index, value in load_scores(scores.folder).items()}
        if config.method == "structured":
            widths = solve_widths(model.cfg, config.ratio, config.channels.minimum, config.channels.multiple)
            scored = ScoredDarknet(model, start, unit_counts=widths.counts)
        elif config.method == "nm":
            scored = ScoredDarknet(model, start, pattern=nm_pattern(config))
        else:
            scored = ScoredDarknet(model, start, weight_counts=keep_counts(model.cfg, config.ratio))
        attack = context.threat_model(block.attack)
        objective = score_objective(scored, model, loop_settings(block), attack, config.seed, context.device)
        run_training(context, "optimise-scores", block, model, scored, objective, work, checkpoints)
        save_scores(work / "scores.safetensors", scored.score_tensors())

    settings = {
        **context.training_settings(),
        "block": result_settings(block),
        **cut_settings(config),
    }
    inputs = {"robust": robust.digest, "scores": scores.digest, "data": context.training_key}
    return context.run("optimise-scores", 1, settings, inputs, compute, collective=True)


def prune_stage(context: BuildContext, robust: StageResult, scores: StageResult) -> StageResult:
    """Step 4: cut what the scores say; a structured network leaves it physically smaller."""
    config = context.config

    def compute(work: Path, _: Path) -> None:
        model = load_stage_model(robust.folder)
        values = load_scores(scores.folder)
        if config.method == "structured":
            importance = unit_importance(values, coupling_groups(model.cfg))
            plan = solve_structured(
                model.cfg, importance, config.ratio, config.channels.minimum, config.channels.multiple
            )
            pruned, record = shrink(model, plan.keep), pruning_record(plan)
            masks = {str(index): keep for index, keep in plan.keep.items()}
            record["shrunk_deviation"] = check_shrunk(apply_structured(model, plan.keep), pruned)
        elif config.method == "nm":
            pattern = nm_pattern(config)
            keep = solve_nm(values, model.cfg, pattern)
            pruned, record = apply_unstructured(model, keep), nm_record(model.cfg, keep, pattern, config.ratio)
            record["sparse_weights"] = config.sparse_weights
            masks = {str(index): mask for index, mask in keep.items()}
        else:
            keep = solve_unstructured(values, model.cfg, config.ratio)
            pruned, record = apply_unstructured(model, keep), unstructured_record(model.cfg, keep, config.ratio)
            masks = {str(index): mask for index, mask in keep.items()}
        save_file({name: mask.contiguous() for name, mask in masks.items()}, work / "keep.safetensors")
        (work / "pruning.json").write_text(json.dumps(record, indent=2))
        pruned.save(work / "model.cfg", work / "model.weights")

    return context.run("prune", 1, cut_settings(config), {"robust": robust.digest, "scores": scores.digest}, compute)


def nm_pattern(config: BuildConfig) -> NmPattern:
    """The pattern that a configuration asks for."""
    return NmPattern(config.nm.n, config.nm.m)


def cut_settings(config: BuildConfig) -> dict[str, Any]:
    """What decides which weights go, for the keys of stages."""
    settings = {"method": config.method, "ratio": config.ratio, "channels": config.channels.model_dump()}
    return {**settings, "nm": config.nm.model_dump()} if config.method == "nm" else settings


@torch.no_grad()
def check_shrunk(masked: Darknet, shrunk: Darknet) -> float:
    """Largest relative difference of the heads of a masked and its shrunk network on random pixels.

    Raises:
        GateError: It is above `SHRINK_TOLERANCE`.
    """
    height, width = masked.cfg.input_size
    images = torch.rand(1, masked.cfg.input_shape[0], height, width, generator=torch.Generator().manual_seed(0))
    worst = 0.0
    pairs: Iterator[tuple[Tensor, Tensor]] = zip(masked(images), shrunk(images), strict=True)
    for a, b in pairs:
        worst = max(worst, float((a - b).abs().max() / a.abs().max().clamp(min=1e-12)))
    if not worst <= SHRINK_TOLERANCE:
        raise GateError(f"the shrunk network deviates from the masked one by {worst:.2e}", "prune")
    return worst
