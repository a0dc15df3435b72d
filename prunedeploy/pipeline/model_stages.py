"""The stages that make networks: pre-train, score, optimise scores, prune, fine-tune."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from prunedeploy.attacks import Pgd
from prunedeploy.config import BuildConfig, TrainingConfig, result_settings
from prunedeploy.models import Darknet, FoldedDarknet, load_darknet
from prunedeploy.pipeline.context import (
    BuildContext,
    StageResult,
    load_stage_model,
    loop_settings,
    original_cfg_path,
    original_weights_path,
)
from prunedeploy.pruning.coupling import coupling_groups
from prunedeploy.pruning.importance import unit_importance
from prunedeploy.pruning.masks import apply_structured, apply_unstructured
from prunedeploy.pruning.ratio import solve_structured, solve_widths
from prunedeploy.pruning.semi_structured import NmPattern, check_pattern, patterned_convolutions, solve_nm
from prunedeploy.pruning.shrink import shrink
from prunedeploy.pruning.subnet import nm_record, pruning_record, unstructured_record
from prunedeploy.pruning.unstructured import keep_counts, solve_unstructured
from prunedeploy.resources import asset_path
from prunedeploy.scores import Scores, magnitude_scores, random_scores, scaled_scores
from prunedeploy.training.adversarial import recalibrate_normalisation, robust_objective
from prunedeploy.training.hydra import ScoredDarknet, score_objective
from prunedeploy.training.loop import Objective, train
from prunedeploy_engines.errors import GateError
from prunedeploy_engines.files import file_sha256

SHRINK_TOLERANCE = 1e-5


def original_stage(context: BuildContext) -> StageResult:
    """The network as given, or trained on clean images from random weights with ``pretrain.from: scratch``."""
    config = context.config
    cfg, weights = original_cfg_path(config), original_weights_path(config)
    inputs = {"cfg": file_sha256(cfg)}
    if config.pretrain.start != "scratch":
        assert weights is not None, "the configuration refuses a start without weights"
        model = load_darknet(cfg, weights)  # before the store hashes anything: says what is wrong with the files

        def copy(work: Path, _: Path) -> None:
            model.save(work / "model.cfg", work / "model.weights")

        return context.run("original", 1, {}, {**inputs, "weights": file_sha256(weights)}, copy)

    block = config.pretrain

    def compute(work: Path, checkpoints: Path) -> None:
        model = load_darknet(cfg, seed=config.seed).to(context.device)
        settings = loop_settings(block, block.clean_steps)
        objective = robust_objective(model, settings, None, config.seed, context.device)
        _train(context, "clean", block, model, model, objective, work, checkpoints, steps=block.clean_steps)
        model.save(work / "model.cfg", work / "model.weights")

    settings = {**context.training_settings(), "block": result_settings(block)}
    return context.run("original", 1, settings, {**inputs, "data": context.training_key}, compute, collective=True)


def pretrain_stage(context: BuildContext, original: StageResult) -> StageResult:
    """Step 1: adversarial training of the original; or the bundled result of it."""
    block = context.config.pretrain
    if block.start == "bundled":
        weights = asset_path("demo-robust.weights")

        def copy(work: Path, _: Path) -> None:
            model = load_darknet(original.folder / "model.cfg", weights)
            model.save(work / "model.cfg", work / "model.weights")

        return context.run("pretrain", 1, {}, {"original": original.digest, "bundled": file_sha256(weights)}, copy)

    def compute(work: Path, checkpoints: Path) -> None:
        model = load_stage_model(original.folder).to(context.device)
        attack = context.threat_model(block.attack)
        objective = robust_objective(model, loop_settings(block), attack, context.config.seed, context.device)
        _train(context, "pretrain", block, model, model, objective, work, checkpoints)
        model.save(work / "model.cfg", work / "model.weights")

    settings = {**context.training_settings(), "block": result_settings(block)}
    inputs = {"original": original.digest, "data": context.training_key}
    return context.run("pretrain", 1, settings, inputs, compute, collective=True)


def score_stage(context: BuildContext, robust: StageResult) -> StageResult:
    """Step 2: one importance score per weight."""
    name, seed = context.config.scores.name, context.config.seed

    def compute(work: Path, _: Path) -> None:
        model = load_stage_model(robust.folder)
        functions: dict[str, Callable[[Darknet], Scores]] = {
            "scaled": scaled_scores,
            "magnitude": magnitude_scores,
            "random": lambda network: random_scores(network, seed),
        }
        _save_scores(work / "scores.safetensors", functions[name](model))

    settings = {"name": name, **({"seed": seed} if name == "random" else {})}
    return context.run("score", 1, settings, {"robust": robust.digest}, compute)


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
        _train(context, "optimise-scores", block, model, scored, objective, work, checkpoints)
        _save_scores(work / "scores.safetensors", scored.score_tensors())

    settings = {
        **context.training_settings(),
        "block": result_settings(block),
        **_cut_settings(config),
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
            record["shrunk_deviation"] = _check_shrunk(apply_structured(model, plan.keep), pruned)
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

    return context.run("prune", 1, _cut_settings(config), {"robust": robust.digest, "scores": scores.digest}, compute)


def finetune_stage(context: BuildContext, robust: StageResult, pruned: StageResult) -> StageResult:
    """Step 5: train the kept weights against PGD."""
    config, block = context.config, context.config.finetune

    def compute(work: Path, checkpoints: Path) -> None:
        model = load_stage_model(pruned.folder).to(context.device)
        teacher = None
        if block.distillation_weight > 0:
            teacher = FoldedDarknet(load_stage_model(robust.folder).to(context.device))
        attack = context.threat_model(block.attack)
        if block.bn_recalibration_images:
            _recalibrate(context, block.bn_recalibration_images, block, model)
        objective = robust_objective(
            model, loop_settings(block), attack, config.seed, context.device,
            teacher=teacher, distillation=block.distillation_weight, temperature=block.distillation_temperature,
        )
        with _kept_weights_only(model, None if config.method == "structured" else pruned.folder):
            _train(context, "finetune", block, model, model, objective, work, checkpoints)
        if config.method == "nm":
            pattern = nm_pattern(config)
            for layer in patterned_convolutions(model.cfg, pattern):
                check_pattern(model.conv(layer.index).weight, pattern, f"layer {layer.index} after fine-tuning")
        model.save(work / "model.cfg", work / "model.weights")

    settings = {**context.training_settings(), "block": result_settings(block)}
    inputs = {"pruned": pruned.digest, "robust": robust.digest, "data": context.training_key}
    return context.run("finetune", 1, settings, inputs, compute, collective=True)


def nm_pattern(config: BuildConfig) -> NmPattern:
    """The pattern that a configuration asks for."""
    return NmPattern(config.nm.n, config.nm.m)


def _cut_settings(config: BuildConfig) -> dict[str, Any]:
    """What decides which weights go, for the keys of stages."""
    settings = {"method": config.method, "ratio": config.ratio, "channels": config.channels.model_dump()}
    return {**settings, "nm": config.nm.model_dump()} if config.method == "nm" else settings


def load_scores(folder: Path) -> Scores:
    """The scores that a stage has written."""
    return {int(name): value for name, value in load_file(folder / "scores.safetensors").items()}


def _save_scores(path: Path, scores: Scores) -> None:
    save_file({str(index): value.cpu().contiguous() for index, value in scores.items()}, path)


def _train(
    context: BuildContext,
    stage: str,
    block: TrainingConfig,
    model: Darknet,
    trained: torch.nn.Module,
    objective: Objective,
    work: Path,
    checkpoints: Path,
    steps: int | None = None,
) -> None:
    """Run the loop with a progress bar; leaves ``log.jsonl`` in the result and bad images named on the way."""
    settings = loop_settings(block, steps)
    log = checkpoints / "log.jsonl"
    if trained is model:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # its stubs do not know it
    loader = context.loader(block, model.cfg, 0, clean=stage == "clean")
    with context.progress.task(stage, settings.steps) as advance:

        def batches(start: int) -> Iterator:
            loader.start_step = start
            return iter(loader)

        train(
            trained, [p for p in trained.parameters() if p.requires_grad], batches, objective, settings,
            stage=stage, work=checkpoints, log=log,
            advance=lambda count, loss: advance(count, loss=loss) if loss == loss else advance(count),
        )
    for path, reason in loader.skipped.items():
        context.progress.message(f"skipped in training: {path}: {reason}")
    if loader.skipped:
        context.progress.message(f"{len(loader.skipped)} images were skipped in training")
    model.eval()
    if log.is_file():
        shutil.copyfile(log, work / "log.jsonl")


def _recalibrate(context: BuildContext, images: int, block: TrainingConfig, model: Darknet) -> None:
    loader = context.loader(block, model.cfg, 0)
    attack = Pgd.against(model, context.threat_model(block.attack), "fp32", context.config.seed)
    batches = []
    for step in range(-(-images // block.batch_size)):
        batch = loader.batch(step)
        pixels, targets = batch.images.to(context.device), batch.targets.to(context.device)
        batches.append(attack(pixels, targets, batch.image_ids, step))
    recalibrate_normalisation(model, batches)


@contextmanager
def _kept_weights_only(model: Darknet, folder: Path | None) -> Iterator[None]:
    """While it lasts, gradients of removed weights are zero, so that removed weights stay exactly zero."""
    hooks = []
    if folder is not None:
        for name, mask in load_file(folder / "keep.safetensors").items():
            weight = model.conv(int(name)).weight
            keep = mask.to(weight.device, weight.dtype)
            hooks.append(weight.register_hook(lambda gradient, keep=keep: gradient * keep))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def _check_shrunk(masked: Darknet, shrunk: Darknet) -> float:
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
