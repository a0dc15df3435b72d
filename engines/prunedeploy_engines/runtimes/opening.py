"""The runtimes a model can run on, by name; nothing is imported before it is asked for."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from prunedeploy_engines.errors import ConfigError
from prunedeploy_engines.runtimes.runner import Runner

RUNTIMES = ("onnxruntime", "openvino", "tensorrt")


def open_runner(
    path: str | Path,
    runtime: str,
    *,
    threads: int | None = None,
    providers: Sequence[str] = ("cpu",),
    allow_spinning: bool = True,
    inference_precision: str | None = "f32",
    in_process: bool = False,
) -> Runner:
    """Open a model; the caller closes it.

    Args:
        path: ONNX file; for TensorRT a plan with its sidecar.
        runtime: One of `RUNTIMES`.
        threads: Threads of one operator, on a CPU; None leaves it to the runtime.
        providers: ONNX Runtime only: execution providers, in order of preference.
        allow_spinning: ONNX Runtime only: let waiting threads spin.
        inference_precision: OpenVINO only: what float layers are computed in; None lets OpenVINO choose.
        in_process: OpenVINO only: load it into this process, in which there must be no PyTorch (decision 0008). By
            default it has a process of its own, which takes half a second to start and receives images by a pipe.

    Raises:
        ConfigError: No such runtime.
        RuntimeUnavailableError: The runtime, a provider or the device is not there.
        EngineError: The file does not load.
    """
    check_runtime(runtime)
    if runtime == "onnxruntime":
        from prunedeploy_engines.runtimes.onnxruntime.runner import OnnxRuntimeRunner

        return OnnxRuntimeRunner(path, threads=threads, providers=providers, allow_spinning=allow_spinning)
    if runtime == "openvino":
        if in_process:
            from prunedeploy_engines.runtimes.openvino.runner import OpenVinoRunner

            return OpenVinoRunner(path, threads=threads, inference_precision=inference_precision)
        from prunedeploy_engines.runtimes.openvino.process import OpenVinoProcess

        return OpenVinoProcess(path, threads=threads, inference_precision=inference_precision)
    from prunedeploy_engines.runtimes.tensorrt.runner import TensorRTRunner

    return TensorRTRunner(path)


def unavailable_reason(runtime: str) -> str | None:
    """Why a runtime cannot run here, or None if it can as far as is seen without loading it.

    Args:
        runtime: One of `RUNTIMES`.

    Raises:
        ConfigError: No such runtime.
    """
    check_runtime(runtime)
    if runtime == "tensorrt":
        from prunedeploy_engines.runtimes.tensorrt.plan import tensorrt_unavailable_reason

        return tensorrt_unavailable_reason()
    if importlib.util.find_spec(runtime) is None:
        name, extra = {"onnxruntime": ("ONNX Runtime", "cpu"), "openvino": ("OpenVINO", "openvino")}[runtime]
        return f"{name} is not installed; pip install 'prunedeploy[{extra}]'"
    return None


def model_target(runtime: str, providers: Sequence[str] = ("cpu",)) -> Literal["cpu", "gpu"]:
    """Which of two int8 files a runtime is fast with.

    Args:
        runtime: One of `RUNTIMES`.
        providers: ONNX Runtime's; the first decides.

    Returns:
        ``"cpu"``: unsigned activations; ``"gpu"``: signed symmetric ones.

    Raises:
        ConfigError: No such runtime.
    """
    check_runtime(runtime)
    if runtime == "tensorrt":
        return "gpu"
    if runtime == "openvino":
        return "cpu"
    from prunedeploy_engines.runtimes.onnxruntime.session import GPU_PROVIDERS, provider_names

    return "gpu" if provider_names(providers)[0] in GPU_PROVIDERS else "cpu"


def check_runtime(runtime: str) -> None:
    """Refuse a name that is not in `RUNTIMES`.

    Raises:
        ConfigError: As above.
    """
    if runtime not in RUNTIMES:
        raise ConfigError(f"there is no runtime {runtime!r}", fix=f"use one of {', '.join(RUNTIMES)}")
