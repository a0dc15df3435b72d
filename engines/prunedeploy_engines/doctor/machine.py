"""What the doctor says of the machine: interpreter, board, processor, memory, disk, its state, and the GPU."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunedeploy_engines.doctor.finding import Finding, install
from prunedeploy_engines.errors import RuntimeUnavailableError
from prunedeploy_engines.machine.environment import cpu_name, usable_cpus
from prunedeploy_engines.runtimes.tensorrt.library import cuda_device, cuda_driver_problem

ROOT = Path("/")
GIB = 1 << 30
MEMORY_FOR_YOLOV3 = 8 * GIB  # pruning, shrinking and exporting the full YOLOv3
DISK_FOR_A_BUILD = 2 * GIB  # stage store, weights of three models and their ONNX files

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
_SLOW_GOVERNORS = ("powersave", "conservative", "ondemand")  # clocks follow the load, or stay low
_32_BIT_ARM = ("armv6l", "armv7l", "armv8l")


def python_finding(version: tuple[int, ...], machine: str | None = None) -> Finding:
    """The interpreter.

    Args:
        version: Its parts.
        machine: As ``platform.machine`` says; None asks it.
    """
    machine = machine or platform.machine()
    text = f"{'.'.join(map(str, version))} on {platform.system()} {machine}"
    if version < (3, 10):
        return Finding("python", "limited", text, "use Python 3.10 or later")
    if machine in _32_BIT_ARM:
        return Finding("python", "limited", text, "install the 64-bit system: no runtime has packages for this one")
    return Finding("python", "ok", text)


def board_name(root: Path = ROOT) -> str | None:
    """Name of a single-board computer, e.g. ``"Raspberry Pi 5 Model B Rev 1.0"``; None where it has no device tree."""
    return _read(root / "proc/device-tree/model").strip("\0\n ") or None


def is_jetson(root: Path = ROOT) -> bool:
    """Whether this is an NVIDIA Jetson."""
    return "Jetson" in (board_name(root) or "") or (root / "etc/nv_tegra_release").is_file()


def board_finding(root: Path = ROOT) -> Finding | None:
    """The board, and which way of running bundles is for it; None on other machines.

    Args:
        root: Where ``/proc`` and ``/etc`` are.
    """
    if is_jetson(root):
        way = "bundles run on TensorRT from JetPack; see docs/guides/jetson.md"
        return Finding("board", "ok", f"{board_name(root) or 'NVIDIA Jetson'}: {way}")
    name = board_name(root)
    if name is None:
        return None
    guide = "; see docs/guides/raspberry-pi.md" if "Raspberry Pi" in name else ""
    return Finding("board", "ok", f"{name}: bundles run on the CPU, with {install('cpu')}{guide}")


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
    name = cpu_name(cpuinfo)
    cores = f"{os.cpu_count()} logical cores"
    if not flags:
        return Finding("cpu", "limited", f"{name}, {cores}, features unknown", "measure int8 before choosing it")
    known = list(dict.fromkeys(text for flag, text in _CPU_FEATURES.items() if flag in flags))
    detail = f"{name}, {cores}: {', '.join(known) or 'no vector extension that matters here'}"
    if not flags & {"avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm"}:
        advice = "expect little from int8: no int8 dot product; use fp32"
        if "avx2" in flags:  # two products of 8 bits are added in 16 bits there, which may overflow
            advice += (
                "; programs other than prunedeploy need ONNX Runtime's session.x64quantprecision=1, or sums saturate"
            )
        return Finding("cpu", "limited", detail, advice)
    if not flags & {"avx512_bf16", "amx_bf16", "bf16"}:
        return Finding("cpu", "ok", detail, "train in fp32: bf16 would be emulated")
    return Finding("cpu", "ok", detail)


def memory_finding(total_bytes: int | None) -> Finding:
    """Memory that processes may use here."""
    if total_bytes is None:
        return Finding("memory", "limited", "size unknown", "have 8 GiB for the full YOLOv3")
    text = f"{total_bytes / GIB:.1f} GiB"
    if total_bytes < MEMORY_FOR_YOLOV3:
        advice = "build large networks elsewhere: the full YOLOv3 needs up to 8 GiB; running them needs far less"
        return Finding("memory", "limited", text, advice)
    return Finding("memory", "ok", text)


def disk_finding(folder: Path) -> Finding:
    """Free space where runs are written by default."""
    free = shutil.disk_usage(folder).free
    text = f"{free / GIB:.1f} GiB free in the working folder"
    if free < DISK_FOR_A_BUILD:
        return Finding("disk", "limited", text, "free 2 GiB, or point --store and --out to another disk")
    return Finding("disk", "ok", text)


def state_finding(state: Mapping[str, Any], cpus: int | None = None) -> Finding:
    """What makes latencies measured now higher than they need be.

    Args:
        state: From `machine.state.device_state`.
        cpus: That processes may use, to judge the load by; None asks the system.
    """
    told, advice = [], []
    mode = state.get("power_mode")
    if mode:
        told.append(f"power mode {mode}")
        if not mode.upper().startswith("MAXN"):
            numbers = "/etc/nvpmodel.conf has the numbers"
            advice.append(f"while measuring: sudo nvpmodel -m with the fastest mode ({numbers}), sudo jetson_clocks")
    governors = state.get("governors") or []
    if governors:
        told.append(f"governor {', '.join(governors)}")
    if set(governors) & set(_SLOW_GOVERNORS) and not mode:  # jetson_clocks sees to it on a Jetson
        files = "/sys/devices/system/cpu/cpufreq/policy*/scaling_governor"
        advice.append(f"use performance while measuring: echo performance | sudo tee {files}")
    clocks, most = state.get("cpu_mhz"), state.get("cpu_max_mhz")
    if clocks:
        told.append(f"CPU at {max(clocks):.0f}{f' of {max(most):.0f}' if most else ''} MHz")
    temperatures = [*(state.get("temperatures_c") or {}).values()]
    temperatures += [gpu["temperature_c"] for gpu in state.get("gpus") or [] if gpu.get("temperature_c")]
    if temperatures:
        told.append(f"hottest sensor {max(temperatures):.0f} °C")
    told += _slowed_down(state, advice)
    readable = bool(told)
    load = (state.get("load_average") or [None])[0]
    if load is not None:
        told.append(f"load {load:.1f}")
        if load > (cpus or usable_cpus()):
            advice.append("other programs use the CPUs: measure when they have ended")
    if not readable:
        told.insert(0, "clocks, governor and temperature are not readable")
        advice.append("repeat measurements: what the clocks did meanwhile is not known")
    return Finding("device state", "limited" if advice else "ok", ", ".join(told), "; ".join(advice))


def _slowed_down(state: Mapping[str, Any], advice: list[str]) -> list[str]:
    """What slowed the machine down, now or since it was started; what to do about it goes to ``advice``."""
    told = []
    throttled = state.get("throttled") or {}
    now, before = throttled.get("now") or [], throttled.get("since_start") or []
    if now:
        told.append(f"slowed down now: {', '.join(now)}")
    elif before:
        told.append(f"was slowed down since its start: {', '.join(before)}")
    if "under-voltage" in [*now, *before]:
        advice.append("use a stronger power supply")
    if {*now, *before} - {"under-voltage"}:
        advice.append("cool the board")
    count = state.get("thermal_throttle_count")
    if count:
        told.append(f"slowed down {count} times by its temperature since its start")
    return told


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
    return Finding("cuda driver", "ok", "no GPU" if device is None else f"{device.name}, target {device.target}")


def memory_bytes() -> int | None:
    """Installed memory, or less if a control group allows less."""
    limits = []
    with contextlib.suppress(AttributeError, ValueError, OSError):
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = _read(path).strip()
        if text.isdigit():
            limits.append(int(text))
    return min(limits) if limits else None


def read_cpuinfo() -> str:
    """Text of ``/proc/cpuinfo``; empty where there is none."""
    return _read("/proc/cpuinfo")


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
