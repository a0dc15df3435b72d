"""What the doctor says of TensorRT, TensorRT-RTX and cuda-python; no TensorRT object is made."""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Mapping
from pathlib import Path

from prunedeploy_engines.doctor.finding import Finding, install
from prunedeploy_engines.doctor.machine import ROOT, is_jetson
from prunedeploy_engines.errors import RuntimeUnavailableError
from prunedeploy_engines.runtimes.tensorrt.library import (
    EXTRAS,
    LibraryName,
    cuda_device,
    cuda_driver_problem,
    installed_version,
    load_library,
    rtx_targets,
    version_problem,
)
from prunedeploy_engines.runtimes.tensorrt.plan import tensorrt_unavailable_reason

FROM_JETPACK = "TensorRT comes with JetPack, not from pip: sudo apt install nvidia-jetpack"
AS_CUDA_PYTHON_SAYS = "install what is missing, as the line cuda-python says"


def tensorrt_finding() -> Finding:
    """Full TensorRT, which builds and runs on the GPU that is here."""
    name: LibraryName = "tensorrt"
    version = installed_version(name)
    if version is None:
        return Finding(name, "missing", "no engines for this machine's own GPU", tensorrt_advice())
    problem = version_problem(name, version)
    if problem is not None:
        newer = "flash JetPack 6.1 or later" if is_jetson() else install(EXTRAS[name])
        return Finding(name, "limited", problem, newer)
    reason = tensorrt_unavailable_reason(name)
    if reason is not None and cuda_driver_problem() is None:
        return Finding(name, "limited", f"{version}: cannot run engines: {reason}", AS_CUDA_PYTHON_SAYS)
    if reason is not None:
        detail = f"{version}: neither builds nor runs engines here: {reason}"
        return Finding(name, "limited", detail, "use it on a device with an NVIDIA GPU, or tensorrt-rtx here")
    device = cuda_device()
    target = "this GPU" if device is None else device.target
    return Finding(name, "ok", f"{version}: builds engines for {target} and runs them")


def tensorrt_advice(root: Path = ROOT) -> str:
    """How to get full TensorRT on this machine.

    Args:
        root: Where ``/usr`` and ``/etc`` are.
    """
    found = system_tensorrt(root)
    if found is None:
        return FROM_JETPACK if is_jetson(root) else f"on a device with an NVIDIA GPU: {install(EXTRAS['tensorrt'])}"
    folder, python = found
    if python not in ("3", f"{sys.version_info.major}.{sys.version_info.minor}"):
        return f"the system has it for Python {python} ({folder}): use python{python} for the virtual environment"
    how = f"python{python} -m venv --system-site-packages"
    return f"the system has it in {folder}, but this environment does not see it: make the environment with {how}"


def system_tensorrt(root: Path = ROOT) -> tuple[Path, str] | None:
    """TensorRT's Python package as the system's package manager installs it.

    Args:
        root: Where ``/usr`` is.

    Returns:
        Its folder and the Python version that this is for (``"3"`` for any); None if there is none.
    """
    for folder in sorted((root / "usr/lib").glob("python3*/dist-packages/tensorrt"), reverse=True):
        return folder, folder.parents[1].name.removeprefix("python")
    return None


def tensorrt_rtx_finding() -> Finding:
    """TensorRT-RTX, which also builds where no GPU is."""
    name: LibraryName = "tensorrt_rtx"
    version = installed_version(name)
    if version is None:
        advice = install(EXTRAS[name])
        if platform.machine() not in ("x86_64", "AMD64"):
            advice = "build ahead of time on an x86-64 machine; this one builds its own engines with full TensorRT"
        return Finding("tensorrt-rtx", "missing", "no engines ahead of time", advice)
    try:
        load_library(name)
    except RuntimeUnavailableError as error:
        return Finding("tensorrt-rtx", "limited", error.what, install(EXTRAS[name]))
    builds = f"{version}: builds engines ahead of time for {', '.join(rtx_targets())}"
    reason = tensorrt_unavailable_reason(name)
    if reason is not None:
        advice = "copy the bundle to a machine with one of these GPUs to run its engines"
        if cuda_driver_problem() is None:
            advice = AS_CUDA_PYTHON_SAYS
        return Finding("tensorrt-rtx", "limited", f"{builds}, cannot run them here: {reason}", advice)
    device = cuda_device()
    if device is not None and device.target not in rtx_targets():
        detail = f"{builds}, cannot run them on this GPU ({device.target})"
        return Finding("tensorrt-rtx", "limited", detail, f"use full TensorRT for it: {install(EXTRAS['tensorrt'])}")
    return Finding("tensorrt-rtx", "ok", f"{builds}, and runs those of this GPU")


def cuda_python_finding(installed: Mapping[str, str], cuda: tuple[int, int] | None) -> Finding:
    """cuda-python, through which the TensorRT runner reaches GPU memory.

    Args:
        installed: Distribution names and versions, as from `doctor.installed_distributions`.
        cuda: From `driver_cuda_version`.
    """
    version = installed.get("cuda-bindings") or installed.get("cuda-python")
    fitting = "pip install cuda-python"
    if cuda is not None:  # 12.4 is what the extras ask for at least
        oldest = "12.4" if cuda[0] == 12 else f"{cuda[0]}.0"
        fitting = f"pip install 'cuda-python>={oldest},<{cuda[0] + 1}'"
    if version is None:
        where = "" if cuda_driver_problem() is None else ", on a machine with a GPU"
        return Finding("cuda-python", "missing", "TensorRT engines cannot run", fitting + where)
    major = version.partition(".")[0]
    if cuda is not None and major.isdigit() and int(major) > cuda[0]:
        detail = f"{version}: is made for CUDA {major}, the driver has CUDA {cuda[0]}.{cuda[1]}"
        return Finding("cuda-python", "limited", detail, fitting)
    return Finding("cuda-python", "ok", f"{version}: moves images to the GPU for TensorRT")


def driver_cuda_version() -> tuple[int, int] | None:
    """(major, minor) of the newest CUDA that the driver supports; None without a driver."""
    number = ctypes.c_int(0)
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        code = driver.cuDriverGetVersion(ctypes.byref(number))
    except (OSError, AttributeError):
        return None
    return (number.value // 1000, number.value % 1000 // 10) if code == 0 and number.value else None
