"""Making an int8 file within its budget: calibrated on training images, measured on others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from onnx import ModelProto

from prunedeploy.attacks import Pgd
from prunedeploy.data import CocoDataset, train_test_subset
from prunedeploy.evaluation import evaluate
from prunedeploy.models import Darknet, FoldedDarknet
from prunedeploy.pipeline.context import BuildContext, StageResult, load_stage_model
from prunedeploy.pipeline.stages.gating import check_gates
from prunedeploy_engines.errors import GateError
from prunedeploy_engines.runtimes.onnxruntime.runner import OnnxRuntimeRunner
from prunedeploy_export import Quantiser, onnx_from_torch
from prunedeploy_export.graph.edit import write_model
from prunedeploy_export.precision.files import Calibration
from prunedeploy_export.precision.quantisation import Activations

Float32Images = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Trained:
    """Weights of an int8 file's own; see `prunedeploy.pipeline.stages.qat`.

    Attributes:
        stage: The stage that trained them.
        calibration: What they were trained for.
        steps: How long.
    """

    stage: StageResult
    calibration: Calibration
    steps: int

    @property
    def network(self) -> Darknet:
        """The network with these weights, in fp32."""
        return load_stage_model(self.stage.folder)


def calibration_images(context: BuildContext, network: Darknet) -> tuple[Float32Images, CocoDataset]:
    """Training images that int8 is calibrated on, ``(K, C, H, W)`` in [0, 1], and the other ones."""
    drawn, rest = train_test_subset(
        context.training, context.config.export.int8.calibration_images, context.config.seed
    )
    loader = context.evaluation_loader(drawn, network, 32, allow_bad_images=True)
    return np.concatenate([batch.images.numpy() for batch in loader]), rest


def write_int8(
    context: BuildContext,
    network: Darknet,
    source: Path,
    path: Path,
    activations: Activations,
    name: str,
    trained: Trained | None = None,
) -> None:
    """Calibrate on training images and write an int8 file within its budget.

    Args:
        context: The build's context.
        network: The fine-tuned network, whose fp32 file the budget compares with.
        source: That file.
        path: The int8 file.
        activations: Its kind.
        name: What it is called in the bundle.
        trained: The weights that it gets in the place of the network's, and the ranges that they were trained for.

    Raises:
        GateError: The budget cannot be met.
    """
    config, settings = context.config, context.config.export.int8
    images, rest = calibration_images(context, network)
    parent, weights = network, source
    if trained is not None:
        parent, weights = trained.network, path.with_name("trained.onnx")
        onnx_from_torch(FoldedDarknet(parent), weights, class_names=context.class_names, opset=config.export.opset)
    with context.progress.task(f"int8 for {activations}", 1) as advance:
        quantiser = Quantiser(
            weights,
            images,
            seed=config.seed,
            method=settings.method,
            sensitivity_images=settings.sensitivity_images,
            threads=context.threads,
            kept=None if trained is None else trained.calibration,
        )
        if trained is not None:
            weights.unlink()
        loss, trial = None, path.with_name("trial.onnx")
        if settings.map_budget is not None:
            held_out = train_test_subset(rest, settings.budget_images, config.seed)[0]
            loss = _map_loss(context, network, source, held_out, trial)

        def accepted(model: ModelProto) -> bool:
            write_model(model, trial)
            try:
                check_gates(context, parent, trial, "int8", name)
            except GateError:
                return False
            finally:
                trial.unlink()
            return True

        quantiser.write(
            path,
            activations,
            loss=loss,
            budget=settings.map_budget,
            accepted=accepted,
            trained_steps=0 if trained is None else trained.steps,
        )
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
