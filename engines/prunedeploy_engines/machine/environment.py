"""What a measurement ran on: read from the system, never guessed; what cannot be read is None."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from pathlib import Path
from typing import Any

from prunedeploy_engines.machine.reading import nvidia_gpus, read_text

LIBRARIES = "numpy pillow onnxruntime onnxruntime-gpu openvino onnx torch tensorrt tensorrt-rtx cuda-python".split()

_GPU_FIELDS = ("name", "driver_version", "compute_cap", "memory.total", "clocks.sm", "temperature.gpu")


def machine_info() -> dict[str, Any]:
    """CPU, GPU, clocks, temperature, operating system and library versions, as JSON values."""
    from prunedeploy_engines.version import __version__

    return {
        "cpu": cpu_info(),
        "memory_bytes": _memory_bytes(),
        "gpus": gpu_info(),
        "temperature_c": _temperature_c(),
        "load_average": _load_average(),
        "os": platform.platform(),
        "python": platform.python_version(),
        "prunedeploy": __version__,
        "libraries": library_versions(),
    }


def cpu_info() -> dict[str, Any]:
    """Name, physical cores, logical CPUs, CPUs this process may use, clock and governor."""
    text = read_text("/proc/cpuinfo") or ""
    clock = Path("/sys/devices/system/cpu/cpu0/cpufreq")
    return {
        "name": cpu_name(text),
        "architecture": platform.machine(),
        "cores": _physical_cores(text),
        "logical_cpus": os.cpu_count(),
        "usable_cpus": usable_cpus(),
        "mhz": _mhz(clock / "scaling_cur_freq") or _cpuinfo_mhz(text),
        "max_mhz": _mhz(clock / "cpuinfo_max_freq"),
        "governor": read_text(clock / "scaling_governor"),
    }


def usable_cpus() -> int:
    """How many CPUs this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_name(cpuinfo: str) -> str:
    """The CPU's name from the text of /proc/cpuinfo, or from the device tree, or what Python knows."""
    match = re.search(r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    if match:
        return match.group(1).strip()
    board = read_text("/proc/device-tree/model")
    return board or platform.processor() or platform.machine()


def gpu_info() -> list[dict[str, str]]:
    """One entry per NVIDIA GPU, as ``nvidia-smi`` tells it; empty where there is none."""
    return nvidia_gpus(_GPU_FIELDS, "csv,noheader")


def library_versions() -> dict[str, str]:
    """Versions of the libraries that are installed, without importing them."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _physical_cores(cpuinfo: str) -> int | None:
    cores = set()
    for block in cpuinfo.split("\n\n"):
        fields = dict(re.findall(r"^([\w ]+?)\s*:\s*(.*)$", block, re.MULTILINE))
        if "core id" in fields:
            cores.add((fields.get("physical id", "0"), fields["core id"]))
    return len(cores) or None


def _cpuinfo_mhz(cpuinfo: str) -> float | None:
    match = re.search(r"^cpu MHz\s*:\s*([\d.]+)", cpuinfo, re.MULTILINE)
    return float(match.group(1)) if match else None


def _mhz(file: Path) -> float | None:
    kilohertz = read_text(file)
    return float(kilohertz) / 1000 if kilohertz and kilohertz.isdigit() else None


def _memory_bytes() -> int | None:
    match = re.search(r"^MemTotal:\s*(\d+) kB", read_text("/proc/meminfo") or "", re.MULTILINE)
    return int(match.group(1)) * 1024 if match else None


def _temperature_c() -> float | None:
    """The hottest thermal zone."""
    zones = [read_text(zone) for zone in Path("/sys/class/thermal").glob("thermal_zone*/temp")]
    degrees = [int(zone) / 1000 for zone in zones if zone and zone.lstrip("-").isdigit()]
    return max(degrees, default=None)


def _load_average() -> list[float] | None:
    return [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None
