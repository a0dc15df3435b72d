from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from prunedeploy_engines.machine.state import device_state, pi_throttled, power_mode, state_notes


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def add_program(folder: Path, name: str, answer: str) -> None:
    write(folder / name, f"#!/bin/sh\ncat <<'END'\n{answer}\nEND\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs that comes first on the path; what is not in it and is ours to ask is hidden."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Files as a Jetson has them."""
    root = tmp_path / "root"
    cpu = root / "sys/devices/system/cpu"
    for policy, mhz, governor in (("policy0", 1_510_400, "schedutil"), ("policy4", 729_600, "performance")):
        write(cpu / "cpufreq" / policy / "scaling_governor", f"{governor}\n")
        write(cpu / "cpufreq" / policy / "scaling_cur_freq", f"{mhz}\n")
        write(cpu / "cpufreq" / policy / "scaling_max_freq", "1510400\n")
    for number, count in enumerate((3, 4)):
        write(cpu / f"cpu{number}" / "thermal_throttle" / "core_throttle_count", f"{count}\n")
    for number, (name, value) in enumerate((("cpu-thermal", "48250"), ("gpu-thermal", "-256"), ("x", "no number"))):
        write(root / "sys/class/thermal" / f"thermal_zone{number}" / "type", f"{name}\n")
        write(root / "sys/class/thermal" / f"thermal_zone{number}" / "temp", f"{value}\n")
    write(root / "sys/class/devfreq/17000000.ga10b/cur_freq", "624750000\n")
    write(root / "sys/class/devfreq/other/cur_freq", "1\n")
    write(root / "proc/loadavg", "0.52 0.58 0.59 1/467 12345\n")
    return root


def test_everything_that_a_jetson_tells_is_read(root: Path, programs: Path) -> None:
    add_program(programs, "nvpmodel", "NV Power Mode: 15W\n0")
    state = json.loads(json.dumps(device_state(root)))
    assert state["power_mode"] == "15W"
    assert state["governors"] == ["performance", "schedutil"]
    assert state["cpu_mhz"] == [1510.4, 729.6]
    assert state["cpu_max_mhz"] == [1510.4, 1510.4]
    assert state["gpu_mhz"] == 624.75
    assert state["temperatures_c"] == {"cpu-thermal": 48.25, "gpu-thermal": -0.256}
    assert state["thermal_throttle_count"] == 7
    assert state["load_average"] == [0.52, 0.58, 0.59]


def test_what_cannot_be_read_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    state = device_state(tmp_path / "absent")
    assert set(state.values()) == {None}
    assert {"power_mode", "governors", "temperatures_c", "throttled", "gpus", "load_average"} <= set(state)


def test_throttling_of_a_raspberry_pi_is_told_in_words(root: Path, programs: Path) -> None:
    # Bits 0 and 2 now, 16 and 18 since the start: 0x1 + 0x4 + 0x10000 + 0x40000.
    add_program(programs, "vcgencmd", "throttled=0x50005")
    assert device_state(root)["throttled"] == {
        "raw": "0x50005",
        "now": ["under-voltage", "throttled"],
        "since_start": ["under-voltage", "throttled"],
    }
    assert pi_throttled("throttled=0x20000") == {"raw": "0x20000", "now": [], "since_start": ["frequency capped"]}
    assert pi_throttled("error=1") is None
    assert pi_throttled(None) is None


def test_gpus_are_what_nvidia_smi_says_and_unsupported_fields_are_none(root: Path, programs: Path) -> None:
    add_program(
        programs, "nvidia-smi", "NVIDIA A10, 210, 405, 31, 0x0000000000000001\nOrin (nvgpu), [N/A], [N/A], [N/A], [N/A]"
    )
    assert device_state(root)["gpus"] == [
        {"name": "NVIDIA A10", "sm_mhz": 210.0, "memory_mhz": 405.0, "temperature_c": 31.0,
         "throttle_reasons": "0x0000000000000001"},
        {"name": "Orin (nvgpu)", "sm_mhz": None, "memory_mhz": None, "temperature_c": None, "throttle_reasons": None},
    ]  # fmt: skip


def test_power_mode_of_another_answer_is_none() -> None:
    assert power_mode("NV Power Mode: MAXN\n0\n") == "MAXN"
    assert power_mode("nvpmodel: no such mode") is None


def test_doubtful_states_are_named() -> None:
    calm = {"governors": ["performance"], "throttled": {"now": [], "since_start": ["throttled"]}, "power_mode": "15W"}
    assert state_notes(calm, calm) == []
    assert state_notes(None, None) == []
    before = {"governors": ["powersave"], "thermal_throttle_count": 2, "power_mode": "15W"}
    after = {"throttled": {"now": ["under-voltage"]}, "thermal_throttle_count": 5, "power_mode": "MAXN"}
    notes = state_notes(before, after)
    assert len(notes) == 4
    assert "governor is powersave" in notes[0]
    assert "slowed down while it measured: under-voltage" in notes[1]
    assert "3 times by its temperature" in notes[2]
    assert "from 15W to MAXN" in notes[3]
