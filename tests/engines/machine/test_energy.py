from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunedeploy_engines.machine.energy import (
    PowerSampler,
    PowerSamples,
    RaplMeter,
    RaplZone,
    find_board_rail,
    integrated,
    open_rapl,
)


def add_zone(folder: Path, zone: str, name: str, energy: int, wraps_at: int = 262_143_328_850) -> Path:
    path = folder / zone
    path.mkdir(parents=True)
    (path / "name").write_text(f"{name}\n")
    (path / "energy_uj").write_text(f"{energy}\n")
    (path / "max_energy_range_uj").write_text(f"{wraps_at}\n")
    return path


def test_packages_and_memory_are_counted_and_their_parts_are_not(tmp_path: Path) -> None:
    zones = {
        "intel-rapl:0": ("package-0", 1_000_000),
        "intel-rapl:0:0": ("core", 7),
        "intel-rapl:0:1": ("dram", 500_000),
        "intel-rapl:1": ("package-1", 2_000_000),
        "intel-rapl:2": ("psys", 9),
    }
    folders = {zone: add_zone(tmp_path, zone, name, energy) for zone, (name, energy) in zones.items()}
    meter, reason = open_rapl(tmp_path)
    assert reason is None
    assert meter is not None
    assert meter.source == "RAPL package-0, dram, package-1"
    before = meter.read()
    assert before == (1_000_000, 500_000, 2_000_000)
    for zone, spent in (("intel-rapl:0", 3_000_000), ("intel-rapl:0:0", 10**9), ("intel-rapl:0:1", 250_000)):
        file = folders[zone] / "energy_uj"
        file.write_text(str(int(file.read_text()) + spent))
    assert meter.joules(before, meter.read()) == pytest.approx(3.25)


def test_a_counter_that_starts_again_loses_nothing(tmp_path: Path) -> None:
    # It stands at 990 of 999, counts 10 up to 999 and over to 0, and 5 more: 15 microjoules.
    zone = add_zone(tmp_path, "intel-rapl:0", "package-0", 990, wraps_at=999)
    meter, _ = open_rapl(tmp_path)
    assert meter is not None
    before = meter.read()
    (zone / "energy_uj").write_text("5")
    assert meter.joules(before, meter.read()) == pytest.approx(15e-6)


@given(start=st.integers(0, 999), spent=st.integers(0, 999))
def test_counted_energy_is_what_was_spent_wherever_the_counter_stands(start: int, spent: int) -> None:
    meter = RaplMeter([RaplZone("package-0", Path("energy_uj"), 999)])
    assert meter.joules([start], [(start + spent) % 1000]) == pytest.approx(spent / 1e6)


def test_a_counter_that_only_root_may_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zone = add_zone(tmp_path, "intel-rapl:0", "package-0", 1)
    read_text = Path.read_text

    def refused(path: Path, *args: object, **options: object) -> str:
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied", str(path))
        return read_text(path, *args, **options)

    monkeypatch.setattr(Path, "read_text", refused)
    meter, reason = open_rapl(tmp_path)
    assert meter is None
    assert reason == f"{zone / 'energy_uj'} may be read by root only"


def test_a_machine_without_counters_says_so(tmp_path: Path) -> None:
    assert open_rapl(tmp_path / "absent") == (None, "this machine has no energy counter (RAPL)")
    zone = add_zone(tmp_path, "intel-rapl:0", "package-0", 1)
    (zone / "energy_uj").write_text("garbage")
    meter, reason = open_rapl(tmp_path)
    assert meter is None
    assert "cannot be read" in str(reason)


def test_power_is_integrated_linearly_between_samples() -> None:
    # 0 W at 0 s to 10 W at 1 s, then 10 W until 3 s. From .5 s (5 W) to 2 s: 7.5 W x .5 s + 10 W x 1 s = 13.75 J.
    times, watts = [0.0, 1.0, 3.0], [0.0, 10.0, 10.0]
    assert integrated(times, watts, 0.5, 2.0) == pytest.approx(13.75)
    assert integrated(times, watts, 0.0, 3.0) == pytest.approx(25.0)
    assert integrated(times, watts, 1.25, 1.5) == pytest.approx(2.5)


@pytest.mark.parametrize(("start", "end"), [(-0.1, 1.0), (2.0, 3.1)])
def test_time_that_was_not_sampled_has_no_energy(start: float, end: float) -> None:
    assert integrated([0.0, 3.0], [1.0, 1.0], start, end) is None
    assert PowerSamples().joules(start, end) is None


def add_rail(folder: Path, label: str, number: int, millivolts: int, milliamperes: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"in{number}_label").write_text(f"{label}\n")
    (folder / f"in{number}_input").write_text(f"{millivolts}\n")
    (folder / f"curr{number}_input").write_text(f"{milliamperes}\n")


def test_the_rail_of_the_whole_board_is_found_among_the_others(tmp_path: Path) -> None:
    add_rail(tmp_path / "hwmon1", "VDD_CPU_GPU_CV", 2, 5000, 400)
    add_rail(tmp_path / "hwmon1", "VDD_IN", 1, 5000, 1500)
    rail = find_board_rail(tmp_path)
    assert rail is not None
    assert rail.name == "VDD_IN"
    assert rail.watts() == pytest.approx(7.5)
    assert find_board_rail(tmp_path / "absent") is None


def test_the_board_is_sampled_while_the_sampler_is_open(tmp_path: Path) -> None:
    add_rail(tmp_path / "hwmon0", "VDD_IN", 1, 5000, 1500)
    with PowerSampler(tmp_path) as power:
        assert power.whole_board
        assert power.source == "INA3221 VDD_IN, the whole board"
        time.sleep(0.15)
        start = time.monotonic()
        time.sleep(0.1)
        end = time.monotonic()
        assert power.joules(start, end, patience_s=60) == pytest.approx(7.5 * (end - start))


def test_a_gpu_is_sampled_by_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        '#!/bin/sh\necho "$@" >> "$0.calls"\necho 100.0\n'
        'case "$*" in *loop-ms*) while true; do sleep 0.02; echo 100.0; echo "[N/A]"; done;; esac\n'
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    with PowerSampler(tmp_path / "absent") as power:
        assert power.source == "nvidia-smi power.draw, GPU 1"
        assert not power.whole_board
        start = time.monotonic()
        time.sleep(0.1)
        end = time.monotonic()
        assert power.joules(start, end, patience_s=60) == pytest.approx(100 * (end - start))
    assert "--id=1" in (tmp_path / "nvidia-smi.calls").read_text()


def test_nothing_to_sample_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with PowerSampler(tmp_path) as power:
        assert power.source is None
        assert power.joules(0.0, 1.0) is None
