from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from prunedeploy_engines.machine import environment
from prunedeploy_engines.machine.environment import cpu_info, cpu_name, gpu_info, library_versions, machine_info

CPUINFO = """processor\t: 0
model name\t: Some CPU @ 2.00GHz
cpu MHz\t\t: 1999.998
physical id\t: 0
core id\t\t: 0

processor\t: 1
model name\t: Some CPU @ 2.00GHz
cpu MHz\t\t: 1999.998
physical id\t: 0
core id\t\t: 0

processor\t: 2
physical id\t: 0
core id\t\t: 1
"""


def test_machine_info_is_json_with_what_a_reader_needs() -> None:
    info = json.loads(json.dumps(machine_info()))
    needed = {"cpu", "gpus", "os", "python", "libraries", "temperature_c", "memory_bytes", "prunedeploy"}
    assert needed <= set(info)
    assert info["libraries"]["numpy"] == np.__version__
    assert info["cpu"]["logical_cpus"] == os.cpu_count()
    assert info["cpu"]["name"]


def test_cpuinfo_is_read_as_the_kernel_writes_it() -> None:
    # Two logical CPUs on core 0 and one on core 1: two cores.
    assert cpu_name(CPUINFO) == "Some CPU @ 2.00GHz"
    assert environment._physical_cores(CPUINFO) == 2
    assert environment._cpuinfo_mhz(CPUINFO) == pytest.approx(1999.998)
    assert environment._physical_cores("") is None


def test_what_cannot_be_read_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "read_text", lambda path: None)
    info = cpu_info()
    assert info["mhz"] is None
    assert info["governor"] is None
    assert info["cores"] is None


def test_gpus_are_those_of_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA A10, 550.54, 8.6, 23028 MiB, 210 MHz, 31'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert [(gpu["name"], gpu["compute_cap"]) for gpu in gpu_info()] == [("NVIDIA A10", "8.6")]
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert gpu_info() == []


def test_only_installed_libraries_have_a_version() -> None:
    versions = library_versions()
    assert "onnxruntime" in versions
    assert all(versions.values())
