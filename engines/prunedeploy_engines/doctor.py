"""What is installed, what each runtime can do on this machine, and what to install.

Nothing here imports torch, and no TensorRT object is made: the answer must come in a second, and on machines
where half of it is broken. A runtime counts as usable when it has been seen to run, not when it is listed.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from prunedeploy_engines.errors import RuntimeUnavailableError
from prunedeploy_engines.onnxruntime_runner import import_onnxruntime
from prunedeploy_engines.tensorrt_library import (
    EXTRAS,
    LibraryName,
    cuda_device,
    cuda_driver_problem,
    installed_version,
    load_library,
    rtx_targets,
    version_problem,
)
from prunedeploy_engines.tensorrt_runner import tensorrt_unavailable_reason

Status = Literal["ok", "missing", "limited"]

GIB = 1 << 30
MEMORY_FOR_YOLOV3 = 8 * GIB  # pruning, shrinking and exporting the full YOLOv3
DISK_FOR_A_BUILD = 2 * GIB  # stage store, weights of three models and their ONNX files

# The smallest model there is: y = Identity(x), x float (1,), opset 13. `onnx` is not on a device to make one.
_IDENTITY_ONNX = bytes.fromhex(
    "08083a370a100a017812017922084964656e746974791201675a0f0a0178120a0a"
    "08080112040a020801620f0a0179120a0a08080112040a02080142040a00100d"
)

_CPU_FEATURES = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx_vnni": "VNNI (int8)",
    "avx512_vnni": "VNNI (int8)",
    "avx512_bf16": "bf16",
    "amx_tile": "AMX",
    "amx_bf16": "AMX bf16",
    "amx_int8": "AMX int8",
    "asimd": "NEON",
    "asimddp": "dot product (int8)",
    "i8mm": "int8 matrix",
    "bf16": "bf16",
    "sve": "SVE",
}


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report.

    Attributes:
        name: What was looked at.
        status: ``"ok"``; ``"limited"``: works in part; ``"missing"``: not there.
        detail: What it can do here, and in which version.
        advice: What to do to get more; empty if nothing is to be done.
    """

    name: str
    status: Status
    detail: str
    advice: str = ""


def diagnose() -> list[Finding]:
    """Look at everything that prunedeploy can use, in the order from machine to libraries."""
    installed = installed_distributions()
    conflict = onnxruntime_conflict(installed)
    return [
        python_finding(sys.version_info[:3]),
        cpu_finding(_read("/proc/cpuinfo")),
        memory_finding(_memory_bytes()),
        disk_finding(Path.cwd()),
        cuda_finding(),
        *([conflict] if conflict else []),
        onnxruntime_finding(),
        tensorrt_finding(),
        tensorrt_rtx_finding(),
        cuda_python_finding(),
        torch_finding(),
        _library_finding("onnx", "exports and checks ONNX files", "train"),
        _library_finding("pycocotools", "computes mAP", "train"),
        _library_finding("captum", "computes DeepLIFT scores", "train"),
    ]


def installed_distributions() -> dict[str, str]:
    """Name (lower case, hyphens) and version of every installed distribution."""
    found = {}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]
        if name:
            found[name.lower().replace("_", "-")] = distribution.version
    return found


def python_finding(version: tuple[int, ...]) -> Finding:
    """The interpreter."""
    text = f"{'.'.join(map(str, version))} on {platform.system()} {platform.machine()}"
    if version < (3, 10):
        return Finding("python", "limited", text, "use Python 3.10 or later")
    return Finding("python", "ok", text)


def cpu_finding(cpuinfo: str) -> Finding:
    """The processor and what speeds up inference on it.

    Args:
        cpuinfo: Text of ``/proc/cpuinfo``; empty where there is none.
    """
    fields: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip().lower(), value.strip())
    flags = set(fields.get("flags", fields.get("features", "")).split())
    name = fields.get("model name") or platform.processor() or platform.machine()
    cores = f"{os.cpu_count()} logical cores"
    if not flags:
        return Finding(
            "cpu", "limited", f"{name}, {cores}, features unknown", "measure int8 before choosing it"
        )
    known = list(dict.fromkeys(text for flag, text in _CPU_FEATURES.items() if flag in flags))
    detail = f"{name}, {cores}: {', '.join(known) or 'no vector extension that matters here'}"
    if not flags & {"avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm"}:
        return Finding("cpu", "limited", detail, "expect little from int8: no int8 dot product; use fp32")
    if not flags & {"avx512_bf16", "amx_bf16", "bf16"}:
        return Finding("cpu", "ok", detail, "train in fp32: bf16 would be emulated")
    return Finding("cpu", "ok", detail)


def memory_finding(total_bytes: int | None) -> Finding:
    """Memory that processes may use here."""
    if total_bytes is None:
        return Finding("memory", "limited", "size unknown", "have 8 GiB for the full YOLOv3")
    text = f"{total_bytes / GIB:.1f} GiB"
    if total_bytes < MEMORY_FOR_YOLOV3:
        advice = "build large networks elsewhere: the full YOLOv3 needs up to 8 GiB; running needs far less"
        return Finding("memory", "limited", text, advice)
    return Finding("memory", "ok", text)


def disk_finding(folder: Path) -> Finding:
    """Free space where runs are written by default."""
    free = shutil.disk_usage(folder).free
    text = f"{free / GIB:.1f} GiB free in the working folder"
    if free < DISK_FOR_A_BUILD:
        return Finding("disk", "limited", text, "free 2 GiB, or point --store and --out to another disk")
    return Finding("disk", "ok", text)


def cuda_finding() -> Finding:
    """The NVIDIA driver and the first GPU."""
    problem = cuda_driver_problem()
    if problem is not None:
        advice = "for GPU runtimes use a machine with an NVIDIA GPU and driver; all else runs on the CPU"
        return Finding("cuda driver", "missing", problem, advice)
    try:
        device = cuda_device()
    except RuntimeUnavailableError as error:
        return Finding("cuda driver", "limited", str(error), "reinstall the NVIDIA driver")
    return Finding(
        "cuda driver", "ok", "no GPU" if device is None else f"{device.name}, target {device.target}"
    )


def onnxruntime_conflict(installed: dict[str, str]) -> Finding | None:
    """Two builds of ONNX Runtime in one environment; they share files, and the last one installed wins.

    Args:
        installed: Distribution names and versions, as from `installed_distributions`.
    """
    builds = sorted(name for name in installed if name == "onnxruntime" or _is_other_onnxruntime(name))
    if len(builds) < 2:
        return None
    detail = f"{' and '.join(f'{name} {installed[name]}' for name in builds)} overwrite each other's files"
    advice = f"pip uninstall {' '.join(builds)}, then install one of prunedeploy[cpu] and prunedeploy[gpu]"
    return Finding("onnxruntime conflict", "limited", detail, advice)


def _is_other_onnxruntime(name: str) -> bool:
    return name in {
        f"onnxruntime-{kind}" for kind in ("gpu", "directml", "openvino", "qnn", "rocm", "silicon")
    }


def onnxruntime_finding() -> Finding:
    """ONNX Runtime, with the providers it lists set against those that really ran a model."""
    if importlib.util.find_spec("onnxruntime") is None:
        return Finding("onnxruntime", "missing", "bundles cannot run on the CPU", _install("cpu"))
    try:
        ort = import_onnxruntime()
    except (RuntimeUnavailableError, OSError, AttributeError) as error:
        return Finding("onnxruntime", "limited", f"is installed but does not load ({error})", _install("cpu"))
    listed = list(ort.get_available_providers())
    usable = [provider for provider in listed if provider_runs(ort, provider)]
    unusable = [provider for provider in listed if provider not in usable]
    detail = f"{ort.__version__}: runs bundles on {', '.join(map(_short, usable)) or 'nothing'}"
    if unusable:
        detail += f"; listed but unusable here: {', '.join(map(_short, unusable))}"
    if not usable:
        return Finding("onnxruntime", "limited", detail, f"reinstall it: {_install('cpu')}")
    if any(_short(provider) in ("CUDA", "Tensorrt") for provider in unusable):
        advice = (
            f"without a GPU use {_install('cpu')}; with one install driver, CUDA and cuDNN of its version"
        )
        return Finding("onnxruntime", "limited", detail, advice)
    return Finding("onnxruntime", "ok", detail)


def provider_runs(ort: Any, provider: str) -> bool:
    """Whether ONNX Runtime computes something with this provider, and not by falling back to the CPU.

    Args:
        ort: The ``onnxruntime`` module.
        provider: E.g. ``"CUDAExecutionProvider"``.
    """
    needs_gpu = _short(provider) in ("CUDA", "Tensorrt", "NvTensorRTRTX")
    if provider == "AzureExecutionProvider" or (needs_gpu and cuda_driver_problem() is not None):
        return False  # Azure sends the input to a service; it does not run models here
    import numpy as np

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        session = ort.InferenceSession(_IDENTITY_ONNX, sess_options=options, providers=[provider])
        output = session.run(None, {"x": np.ones(1, np.float32)})[0]
    except Exception:  # noqa: BLE001  whatever it raises, the provider does not run
        return False
    return provider in session.get_providers() and output.tolist() == [1.0]


def tensorrt_finding() -> Finding:
    """Full TensorRT, which builds and runs on the GPU that is here."""
    name: LibraryName = "tensorrt"
    version = installed_version(name)
    if version is None:
        detail = "no engines for this machine's own GPU"
        return Finding(name, "missing", detail, f"on a device with an NVIDIA GPU: {_install(EXTRAS[name])}")
    problem = version_problem(name, version)
    if problem is not None:
        return Finding(name, "limited", problem, _install(EXTRAS[name]))
    reason = tensorrt_unavailable_reason(name)
    if reason is not None:
        detail = f"{version}: neither builds nor runs engines here: {reason}"
        return Finding(name, "limited", detail, "use it on a device with an NVIDIA GPU, or tensorrt-rtx here")
    device = cuda_device()
    target = "this GPU" if device is None else device.target
    return Finding(name, "ok", f"{version}: builds engines for {target} and runs them")


def tensorrt_rtx_finding() -> Finding:
    """TensorRT-RTX, which also builds where no GPU is."""
    name: LibraryName = "tensorrt_rtx"
    version = installed_version(name)
    if version is None:
        return Finding("tensorrt-rtx", "missing", "no engines ahead of time", _install(EXTRAS[name]))
    try:
        load_library(name)
    except RuntimeUnavailableError as error:
        return Finding("tensorrt-rtx", "limited", error.what, _install(EXTRAS[name]))
    builds = f"{version}: builds engines ahead of time for {', '.join(rtx_targets())}"
    reason = tensorrt_unavailable_reason(name)
    if reason is not None:
        advice = "copy the bundle to a machine with one of these GPUs to run its engines"
        return Finding("tensorrt-rtx", "limited", f"{builds}, cannot run them here: {reason}", advice)
    device = cuda_device()
    if device is not None and device.target not in rtx_targets():
        return Finding(
            "tensorrt-rtx",
            "limited",
            f"{builds}, cannot run them on this GPU ({device.target})",
            f"use full TensorRT for it: {_install(EXTRAS['tensorrt'])}",
        )
    return Finding("tensorrt-rtx", "ok", f"{builds}, and runs those of this GPU")


def cuda_python_finding() -> Finding:
    """cuda-python, through which the TensorRT runner reaches GPU memory."""
    version = installed_distributions().get("cuda-bindings") or installed_distributions().get("cuda-python")
    if version is None:
        return Finding(
            "cuda-python", "missing", "TensorRT engines cannot run", "pip install cuda-python, with a GPU"
        )
    return Finding("cuda-python", "ok", f"{version}: moves images to the GPU for TensorRT")


def torch_finding() -> Finding:
    """PyTorch, from its metadata: importing it takes seconds and is not needed to answer."""
    version = _version("torch")
    if version is None:
        detail = "bundles run, but nothing can be trained, pruned or attacked"
        return Finding("torch", "missing", detail, _install("train"))
    build = version.partition("+")[2]
    if build == "cpu":
        if cuda_driver_problem() is None:
            return Finding(
                "torch", "limited", f"{version}: CPU build beside a GPU", "install a CUDA build of torch"
            )
        return Finding("torch", "ok", f"{version}: trains and prunes on the CPU")
    return Finding("torch", "ok", f"{version}: trains and prunes, on the GPU where the driver fits its CUDA")


def _library_finding(name: str, does: str, extra: str) -> Finding:
    version = _version(name)
    if version is None:
        return Finding(name, "missing", f"nothing {does}", _install(extra))
    return Finding(name, "ok", f"{version}: {does}")


def _version(name: str) -> str | None:
    if importlib.util.find_spec(name) is None:
        return None
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown version"


def _install(extra: str) -> str:
    return f"pip install 'prunedeploy[{extra}]'"


def _short(provider: str) -> str:
    return provider.removesuffix("ExecutionProvider")


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _memory_bytes() -> int | None:
    """Installed memory, or less if a control group allows less."""
    limits = []
    with contextlib.suppress(AttributeError, ValueError, OSError):
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = _read(path).strip()
        if text.isdigit():
            limits.append(int(text))
    return min(limits) if limits else None
