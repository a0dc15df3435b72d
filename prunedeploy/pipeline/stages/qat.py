"""The stages of quantisation-aware training: weights of an int8 file's own, trained with its roundings.

What is trained starts from the fine-tuned network and the file as post-training calibration makes it, with no more
convolutions in fp32 than it always has. Ranges are kept from then on: docs/decisions/0015-qat-keeps-its-ranges.md.
"""

from __future__ import annotations

from dataclasses import asdict

from prunedeploy.config import BuildConfig, TrainingConfig, result_settings
from prunedeploy.evaluation.engine_twin import EngineTwin
from prunedeploy.models import FoldedDarknet
from prunedeploy.pipeline.context import BuildContext, StageResult, load_stage_model
from prunedeploy.pipeline.stages.gating import FAILED, check_twin_gate, write_why
from prunedeploy.pipeline.stages.quantise import Trained, calibration_images
from prunedeploy.pipeline.stages.train import kept_weights_only
from prunedeploy.pipeline.stages.training_run import training_run
from prunedeploy.training.adversarial import robust_objective
from prunedeploy.training.quantised import QuantisedDarknet
from prunedeploy_engines.errors import EngineError, GateError
from prunedeploy_export import Quantiser
from prunedeploy_export.precision.files import Calibration
from prunedeploy_export.precision.quantisation import Activations

CALIBRATED, CALIBRATION = "model.onnx", "calibration.json"
_OF_CALIBRATION = ("method", "calibration_images", "sensitivity_images")


def qat_block(config: BuildConfig) -> TrainingConfig:
    """Settings of the training: those of fine-tuning but for what `QatConfig` says."""
    block, qat = config.finetune, config.export.int8.qat
    own = {
        "steps": qat.steps,
        "lr": block.lr / 10 if qat.lr is None else qat.lr,
        "warmup_steps": 0,
        "precision": "fp32",  # sums of 8-bit products are exact in it
        "bn_recalibration_images": 0,
    }
    return block.model_copy(update=own)


def train_for_int8(context: BuildContext, model: StageResult, export: StageResult, activations: Activations) -> Trained:
    """Calibrate an int8 file and train weights for it.

    Args:
        context: The build.
        model: Stage that made the fine-tuned network.
        export: Its fp32 file.
        activations: Kind of the int8 file; each kind rounds elsewhere and has weights of its own.

    Raises:
        GateError: The file's twin in PyTorch computes something else, so that nothing can be trained by it.
    """
    calibrated = calibration_stage(context, model, export, activations)
    if (calibrated.folder / FAILED).is_file():
        raise GateError(calibrated.read(FAILED)["reason"], gate="twin")
    stage = qat_stage(context, model, calibrated, activations)
    calibration = Calibration.from_dict(calibrated.read(CALIBRATION))
    return Trained(stage, calibration, context.config.export.int8.qat.steps)


def calibration_stage(
    context: BuildContext, model: StageResult, export: StageResult, activations: Activations
) -> StageResult:
    """The int8 file that a training starts from, its ranges, and what its twin's gate measured."""
    settings, seed = context.config.export.int8, context.config.seed
    key = {
        "activations": activations,
        "seed": seed,
        "greyscale": context.config.data.greyscale,
        **settings.model_dump(include=set(_OF_CALIBRATION)),
    }
    inputs = {
        "model": model.digest,
        "export": export.digest,
        "training": context.training_key,
        "data": context.test_key,
    }
    with context.stage("calibration", 1, key, inputs) as result:
        if result.work:
            network, path = load_stage_model(model.folder), result.work / CALIBRATED
            quantiser = Quantiser(
                export.folder / "model.onnx",
                calibration_images(context, network)[0],
                seed=seed,
                method=settings.method,
                sensitivity_images=settings.sensitivity_images,
                threads=context.threads,
            )
            _, record = quantiser.write(path, activations)
            result.write(CALIBRATION, asdict(Calibration(quantiser.ranges(activations), record.skipped)))
            try:
                result.write("gates.json", [check_twin_gate(context, network, path)])
            except (GateError, EngineError) as error:
                write_why(result, error)
    return result


def qat_stage(
    context: BuildContext, model: StageResult, calibrated: StageResult, activations: Activations
) -> StageResult:
    """Train the network with the roundings of the calibrated file, against the attack of fine-tuning."""
    config, block = context.config, qat_block(context.config)
    settings = {**context.training_settings(), "block": result_settings(block)}
    inputs = {"model": model.digest, "calibration": calibrated.digest, "data": context.training_key}
    with context.stage("qat", 1, settings, inputs, collective=True) as result:
        if result.work:
            network = load_stage_model(model.folder).to(context.device)
            twin = EngineTwin(calibrated.folder / CALIBRATED, network.cfg).to(context.device)
            teacher = None
            if config.finetune.distillation_weight > 0:
                teacher = FoldedDarknet(load_stage_model(model.folder).to(context.device))
            objective = robust_objective(
                QuantisedDarknet(network, twin), block, block.attack, config.seed, context.device,
                teacher=teacher, distillation=config.finetune.distillation_weight,
                temperature=config.finetune.distillation_temperature,
            )  # fmt: skip
            name = "qat" if activations == "uint8" else "qat-gpu"
            convs = [] if config.method == "structured" else network.cfg.convolutions
            kept = {layer.index: network.conv(layer.index).weight.detach() != 0 for layer in convs}
            with kept_weights_only(network, kept), training_run(context, result, name, block, network) as train:
                train(network, objective=objective)
            network.save(result.work / "model.cfg", result.work / "model.weights")
    return result
