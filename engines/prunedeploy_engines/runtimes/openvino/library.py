"""Loading OpenVINO without its telemetry, and its errors in one line."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from prunedeploy_engines.errors import EngineError, RuntimeUnavailableError

_TELEMETRY = "openvino_telemetry"


def import_openvino() -> ModuleType:
    """Import OpenVINO so that nothing is sent anywhere.

    ``import openvino`` reports the import to a web service, unless the user has opted out before. With its package
    ``openvino_telemetry`` out of sight it takes a stand-in of its own that does nothing. Where somebody else has
    imported OpenVINO before, that has happened already.

    Raises:
        RuntimeUnavailableError: It is not installed, or does not load.
    """
    try:
        with _without_telemetry():
            import openvino
    except (ImportError, OSError) as error:
        raise RuntimeUnavailableError(
            f"OpenVINO is not installed or does not load ({error})", fix="pip install 'prunedeploy[openvino]'"
        ) from error
    return openvino


@contextlib.contextmanager
def _without_telemetry() -> Iterator[None]:
    if _TELEMETRY in sys.modules:
        yield
        return
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # makes the import fail
    try:
        yield
    finally:
        del sys.modules[_TELEMETRY]


def cpu_settings(threads: int | None, inference_precision: str | None = "f32") -> dict[str, Any]:
    """How models are compiled for a CPU: for the latency of one stream.

    Args:
        threads: None leaves it to OpenVINO.
        inference_precision: What float layers are computed in; None lets OpenVINO choose.
    """
    settings: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        # With pinning every process takes the same first cores, whoever else runs there: YOLOv3 on a busy machine
        # 740 ms pinned, 580 ms not; on a quiet one the same.
        "ENABLE_CPU_PINNING": False,
    }
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    if inference_precision is not None:
        settings["INFERENCE_PRECISION_HINT"] = inference_precision
    return settings


def load_error(error: BaseException, where: Path) -> EngineError:
    """OpenVINO's exception while reading or compiling a model, as one line that names what is wrong.

    Args:
        error: What it raised.
        where: The file.
    """
    text = str(error)
    operators = re.search(r"No conversion rule found for operations: (.+)", text)
    if operators:
        return EngineError(
            f"OpenVINO has no operator {operators[1].strip()} (operator-opset)",
            where=where,
            fix="export it again without this operator, or use runtime onnxruntime",
        )
    missing = re.search(r"invalid external data: ExternalDataInfo\(data_full_path: ([^,)]+)", text)
    if missing:
        return EngineError(
            f"the file {missing[1]} with its weights is missing", where=where, fix="copy it beside the model"
        )
    if out_of_memory(error):
        return EngineError("out of memory while loading", where=where, fix="use a smaller batch or model")
    return EngineError(f"OpenVINO cannot load this model: {clean(error)}", where=where, fix="export it again")


def run_error(error: BaseException, where: Path) -> EngineError:
    """OpenVINO's exception during a run, as one line."""
    if out_of_memory(error):
        return EngineError("out of memory during a run", where=where, fix="use a smaller batch, or free memory")
    return EngineError(f"OpenVINO failed: {clean(error)}", where=where)


def out_of_memory(error: BaseException) -> bool:
    """Whether that is what the exception is about."""
    return isinstance(error, MemoryError) or bool(re.search(r"bad_alloc|allocate|out of memory", str(error), re.I))


def clean(error: BaseException) -> str:
    """What OpenVINO has to say, without the places in its source that it starts with."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not re.match(r"Exception from |Check '.*' failed at ", line)]
    return " ".join(telling or lines or [type(error).__name__])[:300]
