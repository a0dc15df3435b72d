"""The state a device is in while it measures: what makes the same board fast on one day and slow on another.

Everything is read from files of the system and from the makers' own programs; what cannot be read is None.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prunedeploy_engines.machine.reading import answer_of, nvidia_gpus, read_text

ROOT = Path("/")

# Bits of `vcgencmd get_throttled`; bit + 16 says that it has happened since the start.
# Reference: Raspberry Pi documentation, "vcgencmd".
_PI_FLAGS = {0: "under-voltage", 1: "frequency capped", 2: "throttled", 3: "soft temperature limit"}
_GPU_FIELDS = {
    "name": "name",
    "clocks.sm": "sm_mhz",
    "clocks.mem": "memory_mhz",
    "temperature.gpu": "temperature_c",
    "clocks_throttle_reasons.active": "throttle_reasons",
}


def device_state(root: Path = ROOT) -> dict[str, Any]:
    """Power mode, governor, clocks, temperatures, throttling and load, as JSON values.

    Args:
        root: Where ``/sys`` and ``/proc`` are.

    Returns:
        ``power_mode`` (of a Jetson), ``governors``, ``cpu_mhz`` (of each clock domain), ``cpu_max_mhz``,
        ``gpu_mhz`` (of a GPU on the board), ``temperatures_c`` by sensor, ``throttled`` (``now`` and
        ``since_start``, of a Raspberry Pi), ``thermal_throttle_count`` (since the start, of an x86 CPU), ``gpus``
        (NVIDIA's, beside the CPU) and ``load_average``.
    """
    policies = sorted((root / "sys/devices/system/cpu/cpufreq").glob("policy*"))
    governors = {text for policy in policies if (text := read_text(policy / "scaling_governor"))}
    return {
        "power_mode": power_mode(answer_of("nvpmodel", "-q")),
        "governors": sorted(governors) or None,
        "cpu_mhz": _megahertz(policies, "scaling_cur_freq", 1e3),
        "cpu_max_mhz": _megahertz(policies, "scaling_max_freq", 1e3),
        "gpu_mhz": _board_gpu_mhz(root),
        "temperatures_c": _temperatures(root),
        "throttled": pi_throttled(answer_of("vcgencmd", "get_throttled")),
        "thermal_throttle_count": _throttle_count(root),
        "gpus": _gpus(),
        "load_average": _load(root),
    }


def power_mode(answer: str | None) -> str | None:
    """The name in the answer of ``nvpmodel -q``, e.g. ``MAXN``."""
    match = re.search(r"Power Mode:\s*(\S+)", answer or "")
    return match.group(1) if match else None


def pi_throttled(answer: str | None) -> dict[str, Any] | None:
    """What ``vcgencmd get_throttled`` says, e.g. ``throttled=0x50005``: the flags' names, now and since the start."""
    match = re.search(r"throttled=(0x[0-9a-fA-F]+)", answer or "")
    if match is None:
        return None
    bits = int(match.group(1), 16)
    return {
        "raw": match.group(1),
        "now": [name for bit, name in _PI_FLAGS.items() if bits >> bit & 1],
        "since_start": [name for bit, name in _PI_FLAGS.items() if bits >> (bit + 16) & 1],
    }


def state_notes(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> list[str]:
    """What in the states before and after a measurement makes its figures doubtful, one line each."""
    before, after = before or {}, after or {}
    notes = []
    slow = [name for name in before.get("governors") or [] if name in ("powersave", "conservative", "ondemand")]
    if slow:
        notes.append(f"the CPU governor is {', '.join(slow)}: clocks follow the load; `performance` holds them")
    throttled = after.get("throttled") or {}
    if throttled.get("now"):
        notes.append(f"the board was slowed down while it measured: {', '.join(throttled['now'])}")
    first, last = before.get("thermal_throttle_count"), after.get("thermal_throttle_count")
    if first is not None and last is not None and last > first:
        notes.append(f"the CPU was slowed down {last - first} times by its temperature while it measured")
    if before.get("power_mode") != after.get("power_mode"):
        notes.append(f"the power mode changed from {before.get('power_mode')} to {after.get('power_mode')}")
    return notes


def _megahertz(folders: Sequence[Path], name: str, divisor: float) -> list[float] | None:
    texts = [read_text(folder / name) for folder in folders]
    return [int(text) / divisor for text in texts if text and text.isdigit()] or None


def _board_gpu_mhz(root: Path) -> float | None:
    devices = [path for path in (root / "sys/class/devfreq").glob("*") if re.search("gpu|gv11b|gp10b|ga10b", path.name)]
    clocks = _megahertz(sorted(devices), "cur_freq", 1e6)
    return clocks[0] if clocks else None


def _temperatures(root: Path) -> dict[str, float] | None:
    found: dict[str, float] = {}
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        text = read_text(zone / "temp")
        if text and text.lstrip("-").isdigit():
            name = read_text(zone / "type") or zone.name
            found[f"{name} ({zone.name})" if name in found else name] = int(text) / 1000
    return found or None


def _throttle_count(root: Path) -> int | None:
    files = sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/core_throttle_count"))
    counts = [int(text) for file in files if (text := read_text(file)) and text.isdigit()]
    return sum(counts) if counts else None


def _gpus() -> list[dict[str, Any]] | None:
    gpus = nvidia_gpus(_GPU_FIELDS, "csv,noheader,nounits")
    return [{key: _value(gpu[field]) for field, key in _GPU_FIELDS.items()} for gpu in gpus] or None


def _value(text: str) -> float | str | None:
    if text.startswith("["):  # "[N/A]", "[Not Supported]"
        return None
    return float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else text


def _load(root: Path) -> list[float] | None:
    fields = (read_text(root / "proc/loadavg") or "").split()
    try:
        return [float(field) for field in fields[:3]] or None
    except ValueError:
        return None
