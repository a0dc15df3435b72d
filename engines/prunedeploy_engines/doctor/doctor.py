"""What is installed, what each runtime can do on this machine, and what to install.

Nothing here imports torch, and no TensorRT object is made: the answer must come in a second or two, and on
machines where half of it is broken. A runtime counts as usable when it has been seen to run, not when it is listed.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from pathlib import Path

from prunedeploy_engines.doctor import machine, runtimes, tensorrt
from prunedeploy_engines.doctor.finding import Finding, install
from prunedeploy_engines.machine.state import device_state
from prunedeploy_engines.runtimes.tensorrt.library import cuda_driver_problem

__all__ = ["Finding", "diagnose", "installed_distributions", "library_finding", "torch_finding"]


def diagnose() -> list[Finding]:
    """Look at everything that prunedeploy can use, in the order from machine to libraries."""
    installed = installed_distributions()
    found = [
        machine.python_finding(sys.version_info[:3]),
        machine.board_finding(),
        machine.cpu_finding(machine.read_cpuinfo()),
        machine.memory_finding(machine.memory_bytes()),
        machine.disk_finding(Path.cwd()),
        machine.state_finding(device_state()),
        machine.cuda_finding(),
        runtimes.onnxruntime_conflict(installed),
        runtimes.onnxruntime_finding(),
        runtimes.openvino_finding(),
        tensorrt.tensorrt_finding(),
        tensorrt.tensorrt_rtx_finding(),
        tensorrt.cuda_python_finding(installed, tensorrt.driver_cuda_version()),
        torch_finding(),
        library_finding("onnx", "exports and checks ONNX files", "train"),
        library_finding("pycocotools", "computes mAP", "train"),
        library_finding("captum", "computes DeepLIFT scores", "train"),
    ]
    return [finding for finding in found if finding is not None]


def installed_distributions() -> dict[str, str]:
    """Name (lower case, hyphens) and version of every installed distribution."""
    named = [(found.metadata["Name"], found.version) for found in importlib.metadata.distributions()]
    return {name.lower().replace("_", "-"): version for name, version in named if name}


def torch_finding() -> Finding:
    """PyTorch, from its metadata: importing it takes seconds and is not needed to answer."""
    version = _version("torch")
    if version is None:
        detail = "bundles run, but nothing can be trained, pruned or attacked"
        return Finding("torch", "missing", detail, install("train"))
    if version.partition("+")[2] != "cpu":
        return Finding("torch", "ok", f"{version}: trains and prunes, on the GPU where the driver fits its CUDA")
    if cuda_driver_problem() is None:
        return Finding("torch", "limited", f"{version}: CPU build beside a GPU", "install a CUDA build of torch")
    return Finding("torch", "ok", f"{version}: trains and prunes on the CPU")


def library_finding(name: str, does: str, extra: str) -> Finding:
    """A library that one part of prunedeploy needs.

    Args:
        name: Name of the module and of the distribution.
        does: What it is for, in the third person.
        extra: Which brings it.
    """
    version = _version(name)
    if version is None:
        return Finding(name, "missing", f"nothing {does}", install(extra))
    return Finding(name, "ok", f"{version}: {does}")


def _version(name: str) -> str | None:
    if importlib.util.find_spec(name) is None:
        return None
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown version"
