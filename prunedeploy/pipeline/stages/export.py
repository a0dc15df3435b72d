"""The stages that export: ONNX in every precision with its gates, and TensorRT engines."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto

from prunedeploy.attacks import Pgd
from prunedeploy.config import GatesConfig
from prunedeploy.data import CocoDataset, train_test_subset
from prunedeploy.evaluation import TorchRunner, evaluate
from prunedeploy.models import Darknet, FoldedDarknet
from prunedeploy.pipeline.context import BuildContext, StageResult, load_stage_model
from prunedeploy_engines.builder.from_onnx import engine_from_onnx
from prunedeploy_engines.detection.nms import detections_from
from prunedeploy_engines.errors import DataError, RuntimeUnavailableError
from prunedeploy_engines.runtimes.onnx_file import NmsInGraph
from prunedeploy_engines.runtimes.onnxruntime.runner import OnnxRuntimeRunner
from prunedeploy_engines.runtimes.opening import unavailable_reason
from prunedeploy_engines.runtimes.tensorrt.library import installed_version, rtx_targets
from prunedeploy_export import (
    Quantiser,
    check_detection_parity,
    check_tensor_parity,
    fp16_from_fp32,
    onnx_from_torch,
    with_nms,
    with_uint8_input,
)
from prunedeploy_export.graph.edit import read_model, write_model
from prunedeploy_export.graph.nms import MAX_CANDIDATES
from prunedeploy_export.precision.quantisation import Activations

ENGINE = "onnxruntime"
GATE_IMAGES = 8
PLAIN = "model.onnx"
WITHOUT_NMS = "without-nms.onnx"
ACTIVATIONS: dict[str, Activations] = {"cpu": "uint8", "gpu": "int8"}

Outputs = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Artefact:
    """One ONNX file of the pruned network, as it goes into the bundle.

    Attributes:
        precision: ``fp32``, ``fp16`` or ``int8``.
        target: ``cpu`` or ``gpu`` of an int8 file, None of the others.
        stage: That wrote it.
        file: The ONNX file.
        measured: The file that mAP is measured with: the same, but without suppression in the graph, since mAP
            counts detections of all scores.
    """

    precision: str
    target: str | None
    stage: StageResult
    file: Path
    measured: Path

    @property
    def is_plain(self) -> bool:
        """It is the fp32 file of `export_stage` itself."""
        return self.stage.name == "export"

    @property
    def name(self) -> str:
        """Name in the bundle."""
        parts = ["model", *([self.precision] if self.precision != "fp32" else [])]
        return ".".join([*parts, *(["gpu"] if self.target == "gpu" else []), "onnx"])


def cpu_runtimes(context: BuildContext) -> tuple[str, ...]:
    """Runtimes that run ONNX files on this machine's CPU: ONNX Runtime, and OpenVINO if asked for and there."""
    wanted = "openvino" in context.config.latency.runtimes
    return (ENGINE, *(["openvino"] if wanted and unavailable_reason("openvino") is None else []))


def runner_key(runtime: str, artefact: Artefact) -> str:
    """Name of a file on a runtime in the results of stages; the plain fp32 file goes by the runtime's name."""
    return runtime if artefact.is_plain else f"{runtime}|{artefact.name}"


def export_stage(context: BuildContext, model: StageResult) -> StageResult:
    """Write ``model.onnx`` in fp32 and pass the gates of tensors and detections on test images."""
    settings = context.config.export
    config = {
        "opset": settings.opset,
        "gates": _gate_settings(settings),
        "thresholds": context.config.evaluation.model_dump(include={"map_score_threshold", "iou_threshold"}),
        "class_names": context.class_names,
        "greyscale": context.config.data.greyscale,
    }
    with context.stage("export", 2, config, {"model": model.digest, "data": context.test_key}) as result:
        if result.work:
            network = load_stage_model(model.folder)
            path = result.work / PLAIN
            onnx_from_torch(FoldedDarknet(network), path, class_names=context.class_names, opset=settings.opset)
            result.write("gates.json", _gates(context, network, path, settings))
    return result


def check_calibration_images(context: BuildContext) -> None:
    """Refuse int8 without enough training images, before anything is trained.

    Raises:
        DataError: There are too few; the keys to change are named.
    """
    int8, there = context.config.export.int8, len(context.training.images)
    needed = int8.calibration_images + (int8.budget_images if int8.map_budget is not None else 0)
    if "int8" in context.config.export.precisions and there <= needed:
        raise DataError(
            f"int8 needs more than {needed} training images, there are {there}",
            "export.int8",
            "lower export.int8.calibration_images or budget_images",
        )


def artefact_stages(context: BuildContext, model: StageResult, export: StageResult) -> list[Artefact]:
    """The ONNX files of the bundle, one per precision; of int8 one per kind of target."""
    settings = context.config.export
    found = []
    for precision in dict.fromkeys(settings.precisions):
        targets: Sequence[str | None] = [None]
        if precision == "int8":
            targets = ["cpu", *(["gpu"] if any(name != "cpu" for name in context.config.targets) else [])]
        for target in targets:
            if precision == "fp32" and not settings.uint8_input and not settings.nms:
                found.append(Artefact(precision, target, export, export.folder / PLAIN, export.folder / PLAIN))
            else:
                found.append(_artefact_stage(context, model, export, precision, target))
    return found


def engine_stages(
    context: BuildContext, artefacts: Sequence[Artefact]
) -> tuple[list[StageResult], list[dict[str, str]]]:
    """TensorRT engines for the GPU targets; and which could not be built here, and why."""
    built, missing = [], []
    sparse = context.config.sparse_weights
    versions = {name: installed_version(name) for name in ("tensorrt", "tensorrt_rtx")}
    for target, artefact in itertools.product(context.config.targets, artefacts):
        if target == "cpu" or artefact.target == "cpu":
            continue
        settings = {"target": target, "sparse": sparse, "precision": artefact.precision, **versions}
        try:
            _check_it_is_built_here(target, versions)
            with context.stage("engine", 2, settings, {"onnx": artefact.stage.digest}) as result:
                if result.work:
                    onnx = result.work / artefact.name
                    onnx.write_bytes(artefact.file.read_bytes())  # the plan is named after its file
                    engine_from_onnx(onnx, result.work, target=target, sparse=sparse)
                    onnx.unlink()
            built.append(result)
        except RuntimeUnavailableError as error:
            missing.append({"target": target, "precision": artefact.precision, "reason": str(error)})
    return built, missing


def gate_images(context: BuildContext, network: Darknet) -> npt.NDArray[np.float32]:
    """The test images that an artefact is compared with its parent on."""
    return next(iter(context.evaluation_loader(context.test, network, GATE_IMAGES))).images.numpy()


def _check_it_is_built_here(target: str, versions: dict[str, str | None]) -> None:
    if versions["tensorrt"] is None and versions["tensorrt_rtx"] is not None and target not in rtx_targets():
        raise RuntimeUnavailableError(
            f"no engine ahead of time for {target}; build it on the device with `prunedeploy engine`"
        )


def _artefact_stage(
    context: BuildContext, model: StageResult, export: StageResult, precision: str, target: str | None
) -> Artefact:
    settings, config = context.config.export, context.config
    gates_config: GatesConfig = {"fp16": settings.fp16, "int8": settings.int8}.get(precision, settings)
    nms = None
    if settings.nms:
        threshold = settings.nms_score_threshold
        threshold = config.evaluation.score_threshold if threshold is None else threshold
        nms = NmsInGraph(threshold, config.evaluation.iou_threshold, settings.nms_max_detections)

    own = settings.int8.model_dump(mode="json") if precision == "int8" else {}
    key = {
        "precision": precision,
        "target": target,
        "gates": _gate_settings(gates_config),
        "uint8_input": settings.uint8_input,
        "nms": None if nms is None else asdict(nms),
        "int8": own,
        "thresholds": config.evaluation.model_dump(include={"map_score_threshold", "iou_threshold"}),
        "greyscale": config.data.greyscale,
        **({"attack": config.attack.model_dump(), "seed": config.seed} if own else {}),
    }
    inputs = {"model": model.digest, "export": export.digest, "data": context.test_key}
    if precision == "int8":
        inputs["training"] = context.training_key
    measured = WITHOUT_NMS if nms is not None else PLAIN
    with context.stage("precision", 2, key, inputs) as stage:
        if stage.work:
            network = load_stage_model(model.folder)
            source, path = export.folder / PLAIN, stage.work / measured
            if precision == "fp32":
                path.write_bytes(source.read_bytes())
            elif precision == "fp16":
                fp16_from_fp32(source, path)
            else:
                _quantise(context, network, source, path, ACTIVATIONS[str(target)])
            if settings.uint8_input:
                write_model(with_uint8_input(read_model(path)), path)
            gates = _gates(context, network, path, gates_config)
            if nms is not None:
                write_model(with_nms(read_model(path), nms), stage.work / PLAIN)
                gates.append(_nms_gate(context, network, path, stage.work / PLAIN, nms))
            stage.write("gates.json", gates)
    return Artefact(precision, target, stage, stage.folder / PLAIN, stage.folder / measured)


def _gates(context: BuildContext, network: Darknet, path: Path, settings: GatesConfig) -> list[dict[str, Any]]:
    """Gates 1 and 2 of a file against the network, passed; what they measured."""
    images = gate_images(context, network)
    with TorchRunner(network) as parent, OnnxRuntimeRunner(path, threads=context.threads) as engine:
        reference, candidate = parent.infer(images), engine.infer(images)
    tensors = check_tensor_parity(reference, candidate, settings.parity_tolerance, artefact=path.name)
    found = check_detection_parity(
        reference,
        candidate,
        score_threshold=context.config.evaluation.map_score_threshold,
        iou_threshold=context.config.evaluation.iou_threshold,
        min_iou=settings.match_iou,
        score_tolerance=settings.match_score,
        artefact=path.name,
    )
    return [{"gate": "tensor", **asdict(tensors)}, {"gate": "detections", **asdict(found)}]


def _nms_gate(context: BuildContext, network: Darknet, plain: Path, path: Path, nms: NmsInGraph) -> dict[str, Any]:
    """Gate 2 of suppression in the graph: what it gives is what suppression on the host gives, box by box."""
    images = gate_images(context, network)
    with (
        OnnxRuntimeRunner(plain, threads=context.threads) as without,
        OnnxRuntimeRunner(path, threads=context.threads) as engine,
    ):
        raw, candidate = without.infer(images), engine.infer(images)
    found = check_detection_parity(
        _suppressed_on_the_host(raw, nms, candidate[0].shape[1]),
        candidate,
        score_threshold=nms.score_threshold,
        iou_threshold=nms.iou_threshold,
        artefact=path.name,
    )
    return {"gate": "detections", "suppression": "in the graph", **asdict(found)}


def _suppressed_on_the_host(outputs: Outputs, nms: NmsInGraph, rows: int) -> Outputs:
    """Detections in the form of boxes ``(N, rows, 4)`` and scores ``(N, rows, C)``."""
    images, classes = len(outputs[0]), outputs[1].shape[2]
    boxes = np.zeros((images, rows, 4), np.float32)
    scores = np.zeros((images, rows, classes), np.float32)
    for i in range(images):
        found, found_scores, class_ids = detections_from(
            outputs[0][i],
            outputs[1][i],
            score_threshold=nms.score_threshold,
            iou_threshold=nms.iou_threshold,
            max_detections=rows,
            pre_nms_top_k=MAX_CANDIDATES,
        )
        boxes[i, : len(found)] = found
        scores[i, np.arange(len(found)), class_ids] = found_scores
    return boxes, scores


def _quantise(context: BuildContext, network: Darknet, source: Path, path: Path, activations: Activations) -> None:
    """Calibrate on training images and write an int8 file within its budget."""
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
        loss = None
        if settings.map_budget is not None:
            held_out = train_test_subset(rest, settings.budget_images, config.seed)[0]
            loss = _map_loss(context, network, source, held_out, path.with_name("trial.onnx"))
        quantiser.write(path, activations, loss=loss, budget=settings.map_budget)
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


def _gate_settings(settings: GatesConfig) -> dict[str, Any]:
    return settings.model_dump(mode="json", include=set(GatesConfig.model_fields))
