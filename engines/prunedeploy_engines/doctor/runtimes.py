"""What the doctor says of ONNX Runtime and OpenVINO: each is made to run the smallest model there is."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunedeploy_engines.doctor.finding import Finding, install
from prunedeploy_engines.doctor.machine import is_jetson
from prunedeploy_engines.doctor.openvino_probe import IDENTITY_ONNX, probe_openvino
from prunedeploy_engines.errors import RuntimeUnavailableError
from prunedeploy_engines.runtimes.onnxruntime.session import import_onnxruntime
from prunedeploy_engines.runtimes.tensorrt.library import cuda_driver_problem

_BUILDS = {f"onnxruntime{kind}" for kind in ("", "-gpu", "-directml", "-openvino", "-qnn", "-rocm", "-silicon")}
_GPU = ("CUDA", "Tensorrt", "NvTensorRTRTX")


def onnxruntime_conflict(installed: Mapping[str, str]) -> Finding | None:
    """Two builds of ONNX Runtime in one environment; they share files, and the last one installed wins.

    Args:
        installed: Distribution names and versions, as from `doctor.installed_distributions`.
    """
    builds = sorted(installed.keys() & _BUILDS)
    if len(builds) < 2:
        return None
    detail = f"{' and '.join(f'{name} {installed[name]}' for name in builds)} overwrite each other's files"
    advice = f"pip uninstall {' '.join(builds)}, then install one of prunedeploy[cpu] and prunedeploy[gpu]"
    return Finding("onnxruntime conflict", "limited", detail, advice)


def onnxruntime_finding() -> Finding:
    """ONNX Runtime, with the providers it lists set against those that really ran a model."""
    if importlib.util.find_spec("onnxruntime") is None:
        return Finding(
            "onnxruntime", "missing", "the runtime that runs bundles on any CPU is not installed", install("cpu")
        )
    try:
        ort = import_onnxruntime()
    except (RuntimeUnavailableError, OSError, AttributeError) as error:
        return Finding("onnxruntime", "limited", f"is installed but does not load ({error})", install("cpu"))
    listed = list(ort.get_available_providers())
    usable = [provider for provider in listed if provider_runs(ort, provider)]
    libraries = Path(str(ort.__file__)).parent / "capi"
    gpu_is_here = cuda_driver_problem() is None
    return providers_finding(ort.__version__, listed, usable, gpu_is_here, libraries, jetson=is_jetson())


def providers_finding(
    version: str, listed: list[str], usable: list[str], gpu_is_here: bool, libraries: Path, *, jetson: bool = False
) -> Finding:
    """Judge what ran.

    Args:
        version: Version of ONNX Runtime.
        listed: Providers that it was built with.
        usable: Those that ran a model.
        gpu_is_here: With a driver that starts.
        libraries: Folder of its shared libraries, to see what a GPU provider misses.
        jetson: The GPU is a Jetson's, for which the builds with GPU providers are not made.
    """
    unusable = [provider for provider in listed if provider not in usable]
    detail = f"{version}: runs bundles on {', '.join(map(_short, usable)) or 'nothing'}"
    if unusable:
        detail += f"; listed but unusable here: {', '.join(map(_short, unusable))}"
    if not usable:
        return Finding("onnxruntime", "limited", detail, f"reinstall it: {install('cpu')}")
    broken = [provider for provider in unusable if _short(provider) in _GPU]
    if broken and not gpu_is_here:
        return Finding("onnxruntime", "limited", detail, f"there is no GPU for them; smaller: {install('cpu')}")
    if broken:
        names = sorted({name for provider in broken for name in missing_libraries(libraries, provider)})
        what = f"the libraries they miss: {', '.join(names)}" if names else "CUDA and cuDNN of its version"
        return Finding("onnxruntime", "limited", detail, f"install {what}, or use TensorRT")
    if gpu_is_here and not jetson and not any(_short(provider) in _GPU for provider in listed):
        advice = f"for the GPU: pip uninstall onnxruntime, then {install('gpu')}"
        return Finding("onnxruntime", "limited", f"{detail}; this build has no provider for the GPU", advice)
    return Finding("onnxruntime", "ok", detail)


def provider_runs(ort: Any, provider: str) -> bool:
    """Whether ONNX Runtime computes something with this provider, and not by falling back to the CPU.

    Args:
        ort: The ``onnxruntime`` module.
        provider: E.g. ``"CUDAExecutionProvider"``.
    """
    if provider == "AzureExecutionProvider" or (_short(provider) in _GPU and cuda_driver_problem() is not None):
        return False  # Azure sends the input to a service; it does not run models here
    import numpy as np

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        session = ort.InferenceSession(IDENTITY_ONNX, sess_options=options, providers=[provider])
        output = session.run(None, {"x": np.ones(1, np.float32)})[0]
    except Exception:  # noqa: BLE001  whatever it raises, the provider does not run
        return False
    return provider in session.get_providers() and output.tolist() == [1.0]


def missing_libraries(folder: Path, provider: str) -> list[str]:
    """Shared libraries that a provider's own library needs and the loader does not find, as ``ldd`` tells it.

    ONNX Runtime itself only prints why a provider does not load. Nothing is loaded to find out.

    Args:
        folder: Folder of ONNX Runtime's shared libraries.
        provider: E.g. ``"CUDAExecutionProvider"``.
    """
    library = folder / f"libonnxruntime_providers_{_short(provider).lower()}.so"
    try:
        told = subprocess.run(["ldd", str(library)], capture_output=True, text=True, timeout=5, check=False).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return re.findall(r"^\s*(\S+) => not found", told, re.MULTILINE)


def openvino_finding() -> Finding:
    """OpenVINO: whether it runs a model, on which devices, and what it computes float layers in by itself."""
    if importlib.util.find_spec("openvino") is None:
        return Finding("openvino", "missing", "no second runtime for the CPU to compare with", install("openvino"))
    told = probe_openvino()
    reinstall = f"reinstall it: {install('openvino')}"
    if "unavailable" in told:
        return Finding("openvino", "limited", told["unavailable"], reinstall)
    version = importlib.metadata.version("openvino")
    if "failed" in told:
        return Finding("openvino", "limited", f"{version}: cannot run a model here: {told['failed']}", reinstall)
    others = [device for device in told["devices"] if device != "CPU"]
    detail = f"{version}: runs bundles on CPU, float layers in {told['floats']}"
    if told["floats"] != "fp32":
        detail += " if it is left to choose; prunedeploy asks for fp32 unless told otherwise"
    if others:
        detail += f"; it also sees {', '.join(others)}"
    return Finding("openvino", "ok", detail)


def _short(provider: str) -> str:
    return provider.removesuffix("ExecutionProvider")
