"""Keeping ONNX Runtime's optimised graph, so that the next start does not optimise again.

It pays for float32: measured in fresh processes in turns, on two busy cores, YOLOv3 at 416 (62 M parameters) opens in
0.80 s instead of 1.19 s and needs at most 359 MB instead of 738 MB, the slim YOLOv3 at 160 opens in 0.12 s instead of
0.16 s. It does not pay for int8 (0.6 s either way). Making sure that the file is still the right one is in these
figures: 0.15 s for the SHA-256 of 248 MB.

The graph is laid out for this CPU's vector registers and must not be used on another, so the file carries the
key of all that it depends on, as metadata at its very end: a file that was cut short has none.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prunedeploy_engines.errors import EngineError, StoreError
from prunedeploy_engines.files import file_sha256
from prunedeploy_engines.runtimes.onnx_file import read_onnx_header
from prunedeploy_engines.runtimes.onnx_wire import metadata_entry
from prunedeploy_engines.runtimes.onnxruntime.session import (
    SHORT_NAMES,
    TENSORRT,
    SessionSpec,
    import_onnxruntime,
    provider_names,
)

_ENTRY = "prunedeploy_optimised_for"


def optimised_model_path(
    model: str | Path, providers: Sequence[str] = ("cpu",), folder: str | Path | None = None
) -> Path:
    """Where the optimised graph of a model is kept: ``<model>.<providers>.ort-optimised.onnx``.

    Args:
        model: ONNX file.
        providers: As for `OnnxRuntimeRunner`.
        folder: None is beside the model. Not inside a bundle: it refuses files that it does not list.
    """
    model = Path(model)
    short = {name: key for key, name in SHORT_NAMES.items()}
    names = "-".join(short.get(name, name) for name in provider_names(providers))
    return Path(folder or model.parent) / f"{model.stem}.{names}.ort-optimised.onnx"


def open_optimised(spec: SessionSpec, saved: Path) -> tuple[Any, SessionSpec]:
    """Open the optimised graph; where there is none or a stale one, optimise and write it.

    Args:
        spec: The model as it was exported, in one file: weights in files of their own are not looked at.
        saved: The file that keeps the optimised graph.

    Returns:
        The session, and the specification that it was opened with.

    Raises:
        EngineError: The model does not load, or its provider compiles the graph, so that there is none to save.
        StoreError: The file cannot be written.
    """
    if TENSORRT in spec.providers:
        raise EngineError(
            "TensorRT's provider compiles the graph; there is no optimised one to save",
            where=spec.path,
            fix="leave it out and set TensorRT's own trt_engine_cache_enable and trt_engine_cache_path",
        )
    if not spec.path.is_file():
        raise EngineError("there is no such ONNX file", where=spec.path)
    key = optimisation_key(spec)
    kept = SessionSpec(saved, True, spec.threads, spec.providers, spec.provider_options, spec.allow_spinning)
    if saved_key(saved) == key:
        return kept.open(), kept
    temporary = saved.with_name(f".{saved.name}.{uuid.uuid4().hex}.tmp")
    try:
        saved.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch(exist_ok=False)  # ONNX Runtime's own error says neither why nor where
        session = spec.open(save_optimised=temporary)
        with temporary.open("ab") as file:
            file.write(metadata_entry(_ENTRY, key))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(saved)
    except OSError as error:
        raise StoreError(
            f"cannot be written ({error.strerror})", saved, "free space or choose another folder"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return session, spec


def optimisation_key(spec: SessionSpec) -> str:
    """All that an optimised graph depends on, as text."""
    return json.dumps(
        {
            "model_sha256": file_sha256(spec.path),
            "onnxruntime": import_onnxruntime().__version__,
            "providers": list(spec.providers),
            "cpu": cpu_fingerprint(),
        }
    )


def saved_key(saved: Path) -> str | None:
    """The key in an optimised file; None if there is no such file, or not a whole one."""
    try:
        return read_onnx_header(saved).metadata.get(_ENTRY)
    except EngineError:
        return None


def cpu_fingerprint() -> str:
    """Architecture and instruction sets of this CPU; equal on CPUs that ONNX Runtime treats alike."""
    flags = ""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    text = " ".join(sorted(set(flags.partition(":")[2].split()))) or platform.processor()
    return f"{platform.machine()}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
