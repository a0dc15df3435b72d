"""The stages that train networks before and after the cut: the original, pre-training, fine-tuning."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import load_file

from prunedeploy.attacks import Pgd
from prunedeploy.config import TrainingConfig, result_settings
from prunedeploy.models import Darknet, FoldedDarknet, load_darknet
from prunedeploy.pipeline.context import (
    BuildContext,
    StageResult,
    load_stage_model,
    loop_settings,
    original_cfg_path,
    original_weights_path,
)
from prunedeploy.pipeline.stages.granularity import nm_pattern
from prunedeploy.pipeline.stages.training_run import run_training
from prunedeploy.pruning.semi_structured import check_pattern, patterned_convolutions
from prunedeploy.resources import asset_path
from prunedeploy.training.adversarial import recalibrate_normalisation, robust_objective
from prunedeploy_engines.files import file_sha256


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
        run_training(context, "clean", block, model, model, objective, work, checkpoints, steps=block.clean_steps)
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
        run_training(context, "pretrain", block, model, model, objective, work, checkpoints)
        model.save(work / "model.cfg", work / "model.weights")

    settings = {**context.training_settings(), "block": result_settings(block)}
    inputs = {"original": original.digest, "data": context.training_key}
    return context.run("pretrain", 1, settings, inputs, compute, collective=True)


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
            model,
            loop_settings(block),
            attack,
            config.seed,
            context.device,
            teacher=teacher,
            distillation=block.distillation_weight,
            temperature=block.distillation_temperature,
        )
        with _kept_weights_only(model, None if config.method == "structured" else pruned.folder):
            run_training(context, "finetune", block, model, model, objective, work, checkpoints)
        if config.method == "nm":
            pattern = nm_pattern(config)
            for layer in patterned_convolutions(model.cfg, pattern):
                check_pattern(model.conv(layer.index).weight, pattern, f"layer {layer.index} after fine-tuning")
        model.save(work / "model.cfg", work / "model.weights")

    settings = {**context.training_settings(), "block": result_settings(block)}
    inputs = {"pruned": pruned.digest, "robust": robust.digest, "data": context.training_key}
    return context.run("finetune", 1, settings, inputs, compute, collective=True)


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
