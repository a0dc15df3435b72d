"""The gates of one ONNX file: tensors, detections, and suppression in the graph against suppression on the host."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from prunedeploy.config import GatesConfig
from prunedeploy.evaluation import TorchRunner
from prunedeploy.models import Darknet
from prunedeploy.pipeline.context import BuildContext, StageResult
from prunedeploy_engines.errors import GateError, PrunedeployError, RuntimeUnavailableError
from prunedeploy_engines.runtimes.onnx_file import NmsInGraph
from prunedeploy_engines.runtimes.onnxruntime.runner import OnnxRuntimeRunner
from prunedeploy_export import check_detection_parity, check_tensor_parity
from prunedeploy_export.gates.suppression import suppressed_on_the_host
from prunedeploy_export.gates.twin import check_twin
from prunedeploy_export.twin.network import OnnxTwin

GATE_IMAGES = 8
FAILED = "failed.json"
"""In the place of its file in the result of a stage that made none: why, so that it is not made again."""


def write_why(result: StageResult, error: PrunedeployError) -> None:
    """Leave in a stage's result why it has no file.

    Raises:
        RuntimeUnavailableError: The error itself, if it is about this machine and not about the file.
    """
    if isinstance(error, RuntimeUnavailableError):
        raise error
    assert result.work is not None
    for file in result.work.glob("*.onnx"):
        file.unlink()
    gate = error.gate if isinstance(error, GateError) else None
    result.write(FAILED, {"reason": error.what, "gate": gate})


def gates_config(context: BuildContext, precision: str) -> GatesConfig:
    """The gates of a precision."""
    settings = context.config.export
    return {"fp16": settings.fp16, "int8": settings.int8}.get(precision, settings)


def gate_settings(settings: GatesConfig) -> dict[str, Any]:
    """What belongs of them in a stage's key."""
    return settings.model_dump(mode="json", include=set(GatesConfig.model_fields))


def gate_images(context: BuildContext, network: Darknet) -> npt.NDArray[np.float32]:
    """The test images that an artefact is compared with its parent on."""
    return next(iter(context.evaluation_loader(context.test, network, GATE_IMAGES))).images.numpy()


def check_gates(context: BuildContext, network: Darknet, path: Path, precision: str, name: str) -> list[dict[str, Any]]:
    """Gates 1 and 2 of a file against the network, passed; what they measured.

    Args:
        context: The build's context.
        network: The PyTorch parent.
        path: The file, without suppression in its graph.
        precision: Whose limits count.
        name: What the file is called in the bundle.

    Raises:
        GateError: It fails one.
    """
    settings = gates_config(context, precision)
    share = context.config.export.int8.match_share if precision == "int8" else 1.0
    images = gate_images(context, network)
    with TorchRunner(network) as parent, OnnxRuntimeRunner(path, threads=context.threads) as engine:
        reference, candidate = parent.infer(images), engine.infer(images)
    tensors = check_tensor_parity(reference, candidate, settings.parity_tolerance, share=share, artefact=name)
    found = check_detection_parity(
        reference,
        candidate,
        score_threshold=context.config.evaluation.map_score_threshold,
        iou_threshold=context.config.evaluation.iou_threshold,
        min_iou=settings.match_iou,
        score_tolerance=settings.match_score,
        share=share,
        artefact=name,
    )
    return [{"gate": "tensor", **asdict(tensors)}, {"gate": "detections", **asdict(found)}]


def check_twin_gate(context: BuildContext, network: Darknet, path: Path) -> dict[str, Any]:
    """The gate of an int8 file's twin, which its weights are trained with; passed, and what it measured.

    Raises:
        EngineError: The file has no twin.
        GateError: The twin computes something else than ONNX Runtime with the file.
    """
    parity, _ = check_twin(OnnxTwin(path), path, gate_images(context, network), context.threads)
    return {"gate": "twin", **asdict(parity)}


def check_nms_gate(
    context: BuildContext, network: Darknet, plain: Path, path: Path, nms: NmsInGraph, name: str
) -> dict[str, Any]:
    """Gate 2 of suppression in the graph: what it gives is what suppression on the host gives, box by box.

    Raises:
        GateError: It is not; no limit of the configuration would let it through.
    """
    images = gate_images(context, network)
    with (
        OnnxRuntimeRunner(plain, threads=context.threads) as without,
        OnnxRuntimeRunner(path, threads=context.threads) as engine,
    ):
        raw, candidate = without.infer(images), engine.infer(images)
    try:
        found = check_detection_parity(
            suppressed_on_the_host(raw, nms, candidate[0].shape[1], context.config.nms.max_candidates),
            candidate,
            score_threshold=nms.score_threshold,
            iou_threshold=nms.iou_threshold,
            artefact=name,
        )
    except GateError as error:
        what = f"suppression in the graph differs from suppression on the host: {error.what}"
        raise GateError(what, name, "leave --nms out") from None
    return {"gate": "detections", "suppression": "in the graph", **asdict(found)}
