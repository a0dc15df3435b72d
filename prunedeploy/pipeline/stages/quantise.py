"""Making an int8 file within its budget: calibrated on training images, measured on others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from onnx import ModelProto

from prunedeploy.attacks import Pgd
from prunedeploy.data import CocoDataset, train_test_subset
from prunedeploy.evaluation import evaluate
from prunedeploy.models import Darknet
from prunedeploy.pipeline.context import BuildContext
from prunedeploy.pipeline.stages.gating import check_gates
from prunedeploy_engines.errors import GateError
from prunedeploy_engines.runtimes.onnxruntime.runner import OnnxRuntimeRunner
from prunedeploy_export import Quantiser
from prunedeploy_export.graph.edit import write_model
from prunedeploy_export.precision.quantisation import Activations


def write_int8(
    context: BuildContext, network: Darknet, source: Path, path: Path, activations: Activations, name: str
) -> None:
    """Calibrate on training images and write an int8 file within its budget.

    Raises:
        GateError: The budget cannot be met.
    """
    config, settings = context.config, context.config.export.int8
    drawn, rest = train_test_subset(context.training, settings.calibration_images, config.seed)
    images = np.concatenate(
        [batch.images.numpy() for batch in context.evaluation_loader(drawn, network, 32, allow_bad_images=True)]
    )
    with context.progress.task(f"int8 for {activations}", 1) as advance:
        quantiser = Quantiser(
            source,
            images,
            seed=config.seed,
            method=settings.method,
            sensitivity_images=settings.sensitivity_images,
            threads=context.threads,
        )
        loss, trial = None, path.with_name("trial.onnx")
        if settings.map_budget is not None:
            held_out = train_test_subset(rest, settings.budget_images, config.seed)[0]
            loss = _map_loss(context, network, source, held_out, trial)

        def accepted(model: ModelProto) -> bool:
            write_model(model, trial)
            try:
                check_gates(context, network, trial, "int8", name)
            except GateError:
                return False
            finally:
                trial.unlink()
            return True

        quantiser.write(path, activations, loss=loss, budget=settings.map_budget, accepted=accepted)
        advance(1)


def _map_loss(
    context: BuildContext, network: Darknet, source: Path, held_out: CocoDataset, trial: Path
) -> Callable[[ModelProto], float]:
    """How much mAP an int8 network loses against the fp32 file, clean or attacked, whichever is more.

    Args:
        context: The build's context.
        network: The PyTorch parent; its gradients make the attacked images, once.
        source: The fp32 file.
        held_out: Training images, not those of the calibration.
        trial: Where networks that are tried are written meanwhile.

    Returns:
        A function of a network: the larger of the two losses, negative if both mAPs rose.
    """
    settings = context.config.evaluation
    batches = list(context.evaluation_loader(held_out, network, settings.batch_size, allow_bad_images=True))
    pgd = Pgd.against(network, context.config.attack, "fp32", context.config.seed)
    attacked = [pgd(batch.images, batch.targets) for batch in batches]

    def maps(path: Path) -> tuple[float, float]:
        in_turn = iter(attacked)
        with OnnxRuntimeRunner(path, threads=context.threads) as engine:
            result = evaluate(
                {"int8": engine},
                batches,
                held_out,
                attack=lambda model, images, targets: next(in_turn),
                attacked_model=network,
                iou_threshold=settings.iou_threshold,
                score_threshold=settings.map_score_threshold,
                resamples=0,
            )["int8"].metrics()
        return result["map_clean"] or 0.0, result["map_pgd"] or 0.0

    reference = maps(source)

    def loss(model: ModelProto) -> float:
        write_model(model, trial)
        try:
            return max(before - after for before, after in zip(reference, maps(trial), strict=True))
        finally:
            trial.unlink()

    return loss
