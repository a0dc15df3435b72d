"""The stages that train networks before and after the cut: the original, pre-training, fine-tuning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from prunedeploy.attacks import Pgd
from prunedeploy.config import result_settings
from prunedeploy.config.blocks import FinetuneConfig
from prunedeploy.data import measured_subset
from prunedeploy.models import Darknet, FoldedDarknet, load_darknet
from prunedeploy.models.normalisation import with_normalisation
from prunedeploy.pipeline.context import BuildContext, StageResult, load_stage_model
from prunedeploy.pipeline.stages.training_run import training_run
from prunedeploy.pruning.semi_structured import NmPattern, check_pattern, patterned_convolutions
from prunedeploy.resources import asset_path
from prunedeploy.training.adversarial import recalibrate_normalisation, robust_objective
from prunedeploy_engines.files import file_sha256


def original_stage(context: BuildContext) -> StageResult:
    """The network as given; where some of it starts fresh, as from scratch, trained on clean images."""
    config, block, network = context.config, context.config.pretrain, context.network
    inputs = {"cfg": network.cfg_sha256}
    # Letterboxed is what it always was before a cfg had a say.
    settings: dict[str, Any] = {} if network.cfg.letterbox else {"letterbox": False}
    if network.weights.path is not None:
        inputs["weights"] = file_sha256(network.weights.path)
    if network.statistics_images:
        of = {"images": network.statistics_images, "threads": context.threads, "greyscale": config.data.greyscale}
        settings["normalisation"] = of
        inputs["data"] = context.training_key
    if block.start != "scratch" and not network.is_transferred:
        model = network.weights.network(config.seed)  # before the store hashes anything: says what is wrong with it
        with context.stage("original", 1, settings, inputs) as result:
            if result.work:
                model = _normalised(context, model)
                model.save(result.work / "model.cfg", result.work / "model.weights")
        return result
    block = block.model_copy(update={"steps": network.clean_steps(block)})
    # A change of the adversarial training alone costs no clean one.
    own = {name: value for name, value in result_settings(block).items() if name not in ("attack", "clean_steps")}
    settings |= {**context.training_settings(), "block": own}
    if network.is_transferred:
        settings["fresh"] = list(network.weights.fresh)
    inputs["data"] = context.training_key
    with context.stage("original", 1, settings, inputs, collective=True) as result:
        if result.work:
            model = _normalised(context, network.weights.network(config.seed)).to(context.device)
            objective = robust_objective(model, block, None, config.seed, context.device)
            with training_run(context, result, "clean", block, model) as train:
                train(model, objective=objective)
            model.save(result.work / "model.cfg", result.work / "model.weights")
    return result


def _normalised(context: BuildContext, model: Darknet) -> Darknet:
    """The network as loaded, with the normalisation that is put back."""
    records, images = context.training, context.network.statistics_images
    if images == 0:
        return model
    if images < len(records.images):
        records = measured_subset(records, images)
    loader = context.evaluation_loader(records, model, 8, allow_bad_images=True)
    return with_normalisation(model, (batch.images for batch in loader))


def pretrain_stage(context: BuildContext, original: StageResult) -> StageResult:
    """Step 1: adversarial training of the original; or the bundled result of it."""
    block = context.config.pretrain
    inputs = {"original": original.digest}
    if block.start == "bundled":
        weights = asset_path("demo-robust.weights")
        with context.stage("pretrain", 1, {}, {**inputs, "bundled": file_sha256(weights)}) as result:
            if result.work:
                model = load_darknet(original.folder / "model.cfg", weights)
                model.save(result.work / "model.cfg", result.work / "model.weights")
        return result
    settings = {**context.training_settings(), "block": result_settings(block)}
    with context.stage("pretrain", 1, settings, {**inputs, "data": context.training_key}, collective=True) as result:
        if result.work:
            model = load_stage_model(original.folder).to(context.device)
            objective = robust_objective(model, block, block.attack, context.config.seed, context.device)
            with training_run(context, result, "pretrain", block, model) as train:
                train(model, objective=objective)
            model.save(result.work / "model.cfg", result.work / "model.weights")
    return result


def finetune_stage(context: BuildContext, robust: StageResult, pruned: StageResult) -> StageResult:
    """Step 5: train the kept weights against PGD."""
    config, block = context.config, context.config.finetune
    settings = {**context.training_settings(), "block": result_settings(block)}
    inputs = {"pruned": pruned.digest, "robust": robust.digest, "data": context.training_key}
    with context.stage("finetune", 1, settings, inputs, collective=True) as result:
        if result.work:
            model = load_stage_model(pruned.folder).to(context.device)
            teacher = None
            if block.distillation_weight > 0:
                teacher = FoldedDarknet(load_stage_model(robust.folder).to(context.device))
            if block.bn_recalibration_images:
                _recalibrate(context, block, model)
            objective = robust_objective(
                model, block, block.attack, config.seed, context.device,
                teacher=teacher, distillation=block.distillation_weight, temperature=block.distillation_temperature,
            )  # fmt: skip
            kept: dict[int, Tensor] = {}
            if config.method != "structured":
                masks = load_file(pruned.folder / "keep.safetensors")
                kept = {int(name): mask for name, mask in masks.items()}
            with kept_weights_only(model, kept), training_run(context, result, "finetune", block, model) as train:
                train(model, objective=objective)
            if config.method == "nm":
                pattern = NmPattern(config.nm.n, config.nm.m)
                for layer in patterned_convolutions(model.cfg, pattern):
                    check_pattern(model.conv(layer.index).weight, pattern, f"layer {layer.index} after fine-tuning")
            model.save(result.work / "model.cfg", result.work / "model.weights")
    return result


def _recalibrate(context: BuildContext, block: FinetuneConfig, model: Darknet) -> None:
    loader = context.loader(block, model.cfg)
    attack = Pgd.against(model, block.attack, "fp32", context.config.seed)
    batches = []
    for step in range(-(-block.bn_recalibration_images // block.batch_size)):
        batch = loader.batch(step)
        pixels, targets = batch.images.to(context.device), batch.targets.to(context.device)
        batches.append(attack(pixels, targets, batch.image_ids, step))
    recalibrate_normalisation(model, batches)


@contextmanager
def kept_weights_only(model: Darknet, kept: Mapping[int, Tensor]) -> Iterator[None]:
    """While it lasts, gradients of removed weights are zero, so that removed weights stay exactly zero.

    Args:
        model: The network.
        kept: By layer index, weight-shaped, True or 1 where a weight lives; layers left out live as a whole.
    """
    hooks = []
    for index, mask in kept.items():
        weight = model.conv(index).weight
        keep = mask.to(weight.device, weight.dtype)
        hooks.append(weight.register_hook(lambda gradient, keep=keep: gradient * keep))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
