"""The stages that export: ONNX in every precision with its gates, and TensorRT engines."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from prunedeploy.models import Darknet, FoldedDarknet
from prunedeploy.pipeline.context import BuildContext, StageResult, load_stage_model
from prunedeploy.pipeline.left_out import LeftOut, with_its_limit
from prunedeploy.pipeline.stages.gating import (
    FAILED,
    check_gates,
    check_nms_gate,
    check_twin_gate,
    gate_settings,
    gates_config,
    write_why,
)
from prunedeploy.pipeline.stages.qat import train_for_int8
from prunedeploy.pipeline.stages.quantise import Trained, write_int8
from prunedeploy_engines.builder.from_onnx import engine_from_onnx
from prunedeploy_engines.errors import DataError, EngineError, GateError, RuntimeUnavailableError
from prunedeploy_engines.runtimes.onnx_file import NmsInGraph
from prunedeploy_engines.runtimes.opening import unavailable_reason
from prunedeploy_engines.runtimes.tensorrt.library import installed_version, rtx_targets
from prunedeploy_export import fp16_from_fp32, onnx_from_torch, with_nms, with_uint8_input
from prunedeploy_export.graph.edit import read_model, write_model
from prunedeploy_export.precision.quantisation import Activations

ENGINE = "onnxruntime"
PLAIN = "model.onnx"
WITHOUT_NMS = "without-nms.onnx"
ACTIVATIONS: dict[str, Activations] = {"cpu": "uint8", "gpu": "int8"}


@dataclass(frozen=True)
class Artefact:
    """One ONNX file of the pruned network, as it goes into the bundle.

    Attributes:
        precision: ``fp32``, ``fp16`` or ``int8``.
        target: ``cpu`` or ``gpu`` of an int8 file, None of the others.
        stage: That wrote it.
        file: The ONNX file.
        measured: The file that gate 3 is measured with: the same, but without suppression in the graph, since the gate
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
        return _file_name(self.precision, self.target)

    @property
    def has_nms(self) -> bool:
        """Suppression is in its graph."""
        return self.measured != self.file


def cpu_runtimes(context: BuildContext) -> tuple[str, ...]:
    """Runtimes that run ONNX files on this machine's CPU: ONNX Runtime, and OpenVINO if asked for and there."""
    wanted = "openvino" in context.config.latency.runtimes
    return (ENGINE, *(["openvino"] if wanted and unavailable_reason("openvino") is None else []))


def runner_key(runtime: str, artefact: Artefact) -> str:
    """Name of a file on a runtime in the results of stages; the plain fp32 file goes by the runtime's name."""
    return runtime if artefact.is_plain else f"{runtime}|{artefact.name}"


def export_stage(context: BuildContext, model: StageResult) -> StageResult:
    """Write ``model.onnx`` in fp32 and pass the gates of tensors and detections on test images.

    Raises:
        GateError: It fails one, so there is nothing that other precisions could be made of.
    """
    settings = context.config.export
    config = {
        "opset": settings.opset,
        "gates": gate_settings(settings),
        "thresholds": context.config.evaluation.model_dump(include={"map_score_threshold", "iou_threshold"}),
        "class_names": context.class_names,
        "greyscale": context.config.data.greyscale,
    }
    with context.stage("export", 2, config, {"model": model.digest, "data": context.test_key}) as result:
        if result.work:
            network = load_stage_model(model.folder)
            path = result.work / PLAIN
            onnx_from_torch(FoldedDarknet(network), path, class_names=context.class_names, opset=settings.opset)
            try:
                result.write("gates.json", check_gates(context, network, path, "fp32", PLAIN))
            except GateError as error:
                raise with_its_limit(error, "fp32") from None
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


def artefact_stages(
    context: BuildContext, model: StageResult, export: StageResult
) -> tuple[list[Artefact], list[LeftOut]]:
    """The ONNX files of the bundle, one per precision, of int8 one per kind of target; and what failed its gates."""
    settings = context.config.export
    found: list[Artefact] = []
    left_out: list[LeftOut] = []
    for precision in dict.fromkeys(settings.precisions):
        targets: Sequence[str | None] = [None]
        if precision == "int8":
            targets = ["cpu", *(["gpu"] if any(name != "cpu" for name in context.config.targets) else [])]
        for target in targets:
            if precision == "fp32" and not settings.uint8_input and not settings.nms:
                found.append(Artefact(precision, target, export, export.folder / PLAIN, export.folder / PLAIN))
                continue
            try:
                made = _artefact_stage(context, model, export, precision, target)
            except GateError as error:  # of what its weights were to be trained with
                left_out.append(LeftOut(_file_name(precision, target), precision, target, error.what, error.gate))
                continue
            if (made.stage.folder / FAILED).is_file():
                left_out.append(LeftOut(made.name, precision, target, **made.stage.read(FAILED)))
            else:
                found.append(made)
    return found, left_out


def engine_stages(
    context: BuildContext, artefacts: Sequence[Artefact]
) -> tuple[list[StageResult], list[dict[str, str]], list[LeftOut]]:
    """TensorRT engines for the GPU targets; which cannot be built on this machine; and which cannot be built at all."""
    built, missing, left_out = [], [], []
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
                    try:
                        engine_from_onnx(onnx, result.work, target=target, sparse=sparse)
                    except EngineError as error:
                        write_why(result, error)
                    onnx.unlink(missing_ok=True)
        except RuntimeUnavailableError as error:
            missing.append({"target": target, "precision": artefact.precision, "reason": str(error)})
            continue
        if (result.folder / FAILED).is_file():
            reason = f"{_installed(versions)} cannot build it"
            said = result.read(FAILED)["reason"]
            left_out.append(LeftOut(artefact.name, artefact.precision, target, reason, "engine", detail=said))
        else:
            built.append(result)
    return built, missing, left_out


def _installed(versions: dict[str, str | None]) -> str:
    return " or ".join(f"{name} {version}" for name, version in versions.items() if version is not None)


def _file_name(precision: str, target: str | None) -> str:
    parts = ["model", *([precision] if precision != "fp32" else [])]
    return ".".join([*parts, *(["gpu"] if target == "gpu" else []), "onnx"])


def _check_it_is_built_here(target: str, versions: dict[str, str | None]) -> None:
    if versions["tensorrt"] is None and versions["tensorrt_rtx"] is not None and target not in rtx_targets():
        raise RuntimeUnavailableError(
            f"no engine ahead of time for {target}; build it on the device with `prunedeploy engine`"
        )


def _artefact_stage(
    context: BuildContext, model: StageResult, export: StageResult, precision: str, target: str | None
) -> Artefact:
    settings, config = context.config.export, context.config
    nms = None
    if settings.nms:
        threshold = settings.nms_score_threshold
        threshold = config.evaluation.score_threshold if threshold is None else threshold
        nms = NmsInGraph(threshold, config.evaluation.iou_threshold, settings.nms_max_detections)

    own = settings.int8.model_dump(mode="json") if precision == "int8" else {}
    key = {
        "precision": precision,
        "target": target,
        "gates": gate_settings(gates_config(context, precision)),
        "uint8_input": settings.uint8_input,
        "nms": None if nms is None else {**asdict(nms), **config.nms.model_dump()},
        "int8": own,
        "thresholds": config.evaluation.model_dump(include={"map_score_threshold", "iou_threshold"}),
        "greyscale": config.data.greyscale,
        **({"attack": config.attack.model_dump(), "seed": config.seed} if own else {}),
    }
    inputs = {"model": model.digest, "export": export.digest, "data": context.test_key}
    trained = None
    if precision == "int8":
        inputs["training"] = context.training_key
        if settings.int8.qat.steps:
            trained = train_for_int8(context, model, export, ACTIVATIONS[str(target)])
            inputs["trained"] = trained.stage.digest
    measured = WITHOUT_NMS if nms is not None else PLAIN
    with context.stage("precision", 2, key, inputs) as stage:
        if stage.work:
            network = load_stage_model(model.folder)
            path = stage.work / measured
            try:
                _write_file(context, network, export.folder / PLAIN, path, precision, target, trained)
                parent = network if trained is None else trained.network
                gates = check_gates(context, parent, path, precision, _file_name(precision, target))
                if trained is not None:
                    gates = [*({**gate, "parent": "qat"} for gate in gates), check_twin_gate(context, network, path)]
                if nms is not None:
                    write_model(with_nms(read_model(path), nms, config.nms.max_candidates), stage.work / PLAIN)
                    name = _file_name(precision, target)
                    gates.append(check_nms_gate(context, network, path, stage.work / PLAIN, nms, name))
                stage.write("gates.json", gates)
            except (GateError, EngineError) as error:
                write_why(stage, error)
    return Artefact(precision, target, stage, stage.folder / PLAIN, stage.folder / measured)


def _write_file(
    context: BuildContext,
    network: Darknet,
    source: Path,
    path: Path,
    precision: str,
    target: str | None,
    trained: Trained | None,
) -> None:
    """Write a precision's file, without suppression in its graph."""
    if precision == "fp32":
        path.write_bytes(source.read_bytes())
    elif precision == "fp16":
        fp16_from_fp32(source, path)
    else:
        write_int8(context, network, source, path, ACTIVATIONS[str(target)], _file_name(precision, target), trained)
    if context.config.export.uint8_input:
        write_model(with_uint8_input(read_model(path)), path)
