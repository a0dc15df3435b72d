"""The doctor's statements against what this machine and independent libraries say."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import warnings
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest

from prunedeploy_engines.doctor import doctor
from prunedeploy_engines.doctor import openvino_probe as doctor_openvino
from prunedeploy_engines.doctor import runtimes as doctor_runtimes
from prunedeploy_engines.doctor import tensorrt as doctor_tensorrt
from prunedeploy_engines.doctor.doctor import Finding, diagnose
from prunedeploy_engines.doctor.machine import (
    board_finding,
    cpu_finding,
    disk_finding,
    is_jetson,
    memory_finding,
    python_finding,
    state_finding,
)
from prunedeploy_engines.doctor.tensorrt import cuda_python_finding, system_tensorrt, tensorrt_advice
from prunedeploy_engines.runtimes.tensorrt.library import cuda_driver_problem, installed_version, rtx_targets

needs_no_gpu = pytest.mark.skipif(cuda_driver_problem() is None, reason="a GPU is here")

XEON = """processor\t: 0
model name\t: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
flags\t\t: fpu sse4_2 avx avx2 avx512f avx_vnni avx512_bf16 avx512_vnni amx_bf16 avx512_fp16 amx_tile amx_int8
processor\t: 1
model name\t: another
"""
HASWELL = "model name\t: Intel(R) Core(TM) i7-4770 CPU @ 3.40GHz\nflags\t\t: fpu sse4_2 avx avx2\n"
JETSON_ORIN = """processor\t: 0
BogoMIPS\t: 62.50
Features\t: fp asimd evtstrm aes crc32 atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp uscat
CPU implementer\t: 0x41
"""


@pytest.fixture(scope="module")
def findings() -> dict[str, Finding]:
    return {finding.name: finding for finding in diagnose()}


def test_report_has_every_part_once_and_advice_where_something_lacks(findings):
    listed = diagnose()
    assert len(listed) == len(findings)
    expected = "python cpu memory disk onnxruntime openvino tensorrt tensorrt-rtx cuda-python torch onnx pycocotools"
    assert {*expected.split(), "captum", "cuda driver", "device state"} <= set(findings)
    for finding in listed:
        assert finding.status in ("ok", "missing", "limited")
        assert finding.detail
        assert finding.status == "ok" or finding.advice, finding
        assert "\n" not in finding.detail + finding.advice
    with pytest.raises(FrozenInstanceError):
        listed[0].status = "ok"


def test_versions_are_those_installed(findings):
    for name in ("torch", "onnx", "onnxruntime", "openvino", "pycocotools", "captum", "tensorrt-rtx"):
        if importlib.util.find_spec(name.replace("-", "_")) is None:
            assert findings[name].status == "missing"
            assert "prunedeploy[" in findings[name].advice
        else:
            assert importlib.metadata.version(name) in findings[name].detail


def test_missing_library_is_said_with_the_extra_that_brings_it():
    found = doctor.library_finding("a_library_nobody_has", "does something", "train")
    assert found == Finding(
        "a_library_nobody_has", "missing", "nothing does something", "pip install 'prunedeploy[train]'"
    )


def test_diagnosis_imports_neither_torch_nor_onnx_nor_openvino():
    program = (
        "import sys, json; from prunedeploy_engines.doctor.doctor import diagnose; diagnose();"
        "unwanted = ('torch', 'onnx', 'captum', 'pycocotools', 'openvino', 'openvino_telemetry');"
        "print(json.dumps([m for m in unwanted if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_probe_model_is_valid_and_the_identity():
    onnx = pytest.importorskip("onnx")
    from onnx.reference import ReferenceEvaluator

    model = onnx.load_from_string(doctor_runtimes.IDENTITY_ONNX)
    onnx.checker.check_model(model, full_check=True)
    (output,) = ReferenceEvaluator(model).run(None, {"x": np.array([3.5], np.float32)})
    assert output.tolist() == [3.5]


def test_onnxruntime_providers_are_tried_not_believed(findings):
    ort = pytest.importorskip("onnxruntime")
    assert doctor_runtimes.provider_runs(ort, "CPUExecutionProvider")
    assert "runs bundles on" in findings["onnxruntime"].detail
    assert "CPU" in findings["onnxruntime"].detail
    # Listed by the CPU wheel, but it sends images to a service: nothing runs here.
    assert not doctor_runtimes.provider_runs(ort, "AzureExecutionProvider")
    # ONNX Runtime only warns of a provider it does not have, and falls back to the CPU.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fell_back = not doctor_runtimes.provider_runs(ort, "CoreMLExecutionProvider")
    assert fell_back or sys.platform == "darwin"


@needs_no_gpu
def test_gpu_providers_do_not_run_without_a_gpu(findings):
    ort = pytest.importorskip("onnxruntime")
    for provider in ("CUDAExecutionProvider", "TensorrtExecutionProvider"):
        assert not doctor_runtimes.provider_runs(ort, provider)
    assert findings["cuda driver"].status == "missing"


@pytest.mark.parametrize(
    ("listed", "usable", "gpu", "status", "said"),
    [
        (["CPU", "Azure"], ["CPU"], False, "ok", ""),
        (["CUDA", "CPU"], ["CUDA", "CPU"], True, "ok", ""),
        (["CUDA", "CPU"], ["CPU"], False, "limited", "there is no GPU for them; smaller: pip install"),
        (["Tensorrt", "CUDA", "CPU"], ["CPU"], True, "limited", "install CUDA and cuDNN of its version"),
        (["CPU", "Azure"], ["CPU"], True, "limited", "pip uninstall onnxruntime, then pip install 'prunedeploy[gpu]'"),
        (["CPU"], [], False, "limited", "reinstall it: pip install 'prunedeploy[cpu]'"),
    ],
)
def test_onnxruntime_is_judged_by_what_ran_and_by_the_gpu(listed, usable, gpu, status, said, tmp_path):
    names = [[f"{name}ExecutionProvider" for name in given] for given in (listed, usable)]
    found = doctor_runtimes.providers_finding("1.99", *names, gpu, tmp_path)
    assert (found.name, found.status) == ("onnxruntime", status)
    assert said in found.advice
    assert bool(said) == bool(found.advice)
    assert found.detail.startswith(f"1.99: runs bundles on {', '.join(usable) or 'nothing'}")


def test_onnxruntime_on_a_jetson_is_not_told_to_take_a_servers_build(tmp_path):
    cpu = ["CPUExecutionProvider"]
    assert doctor_runtimes.providers_finding("1.99", cpu, cpu, True, tmp_path, jetson=True).status == "ok"
    assert doctor_runtimes.providers_finding("1.99", cpu, cpu, True, tmp_path).status == "limited"


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt_rtx"])
def test_tensorrt_beside_a_gpu_but_without_cuda_python_points_at_it(monkeypatch, name):
    monkeypatch.setattr(doctor_tensorrt, "installed_version", lambda name: "10.3.0" if name == "tensorrt" else "1.7.1")
    monkeypatch.setattr(doctor_tensorrt, "load_library", lambda name: None)
    monkeypatch.setattr(doctor_tensorrt, "cuda_driver_problem", lambda: None)
    monkeypatch.setattr(doctor_tensorrt, "tensorrt_unavailable_reason", lambda name: "cuda-python is not installed")
    found = getattr(doctor_tensorrt, f"{name}_finding")()
    assert found.status == "limited"
    assert "cuda-python is not installed" in found.detail
    assert found.advice == "install what is missing, as the line cuda-python says"


@pytest.mark.skipif(shutil.which("ldd") is None, reason="needs ldd")
def test_libraries_that_a_provider_misses_are_named(tmp_path):
    content = Path(np._core._multiarray_umath.__file__).read_bytes()
    assert b"\0libm.so.6\0" in content
    # A real shared library that now asks for one nobody has; the name is as long as the one it replaces.
    (tmp_path / "libonnxruntime_providers_cuda.so").write_bytes(content.replace(b"\0libm.so.6\0", b"\0libq.so.9\0"))
    missing = doctor_runtimes.missing_libraries(tmp_path, "CUDAExecutionProvider")
    assert "libq.so.9" in missing
    assert "libc.so.6" not in missing
    found = doctor_runtimes.providers_finding(
        "1.99", ["CUDAExecutionProvider", "CPUExecutionProvider"], ["CPUExecutionProvider"], True, tmp_path
    )
    assert found.advice == f"install the libraries they miss: {', '.join(sorted(missing))}, or use TensorRT"
    assert doctor_runtimes.missing_libraries(tmp_path, "TensorrtExecutionProvider") == []


def test_openvino_is_seen_to_run_and_its_precision_is_the_cpus(findings):
    if importlib.util.find_spec("openvino") is None:
        pytest.skip("needs openvino")
    program = (
        "from prunedeploy_engines.runtimes.openvino.library import import_openvino; core = import_openvino().Core();"
        "print('BF16' in core.get_property('CPU', 'OPTIMIZATION_CAPABILITIES'))"
    )
    asked = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    probed = doctor_openvino.probe_openvino()
    floats = probed["floats"]
    assert "CPU" in probed["devices"]
    assert floats in (("bf16",) if asked.stdout == "True\n" else ("fp32", "fp16"))  # fp16 on Arm
    assert findings["openvino"].status == "ok"
    assert f"runs bundles on CPU, float layers in {floats}" in findings["openvino"].detail
    assert ("asks for fp32" in findings["openvino"].detail) == (floats != "fp32")


@pytest.mark.parametrize(
    ("program", "said"),
    [
        (
            "def Core(): raise RuntimeError('Exception from src/core.cpp:1:\\nno such instruction')",
            "1.2.3: cannot run a model here: no such instruction",
        ),
        (
            "def Core(): import os, signal; os.kill(os.getpid(), signal.SIGILL)",
            "1.2.3: cannot run a model here: its process ended with signal SIGILL",
        ),
        ("print('loading'); raise OSError('no libtbb')", "OpenVINO is not installed or does not load (no libtbb)"),
    ],
)
def test_openvino_that_does_not_run_is_limited(monkeypatch, tmp_path, program, said):
    (tmp_path / "openvino.py").write_text(program)
    metadata = tmp_path / "openvino-1.2.3.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: openvino\nVersion: 1.2.3\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = doctor_runtimes.openvino_finding()
    assert found == Finding("openvino", "limited", said, "reinstall it: pip install 'prunedeploy[openvino]'")


def test_openvino_that_is_not_installed_is_said_with_its_extra(monkeypatch):
    monkeypatch.setattr(doctor_runtimes.importlib.util, "find_spec", lambda name: None)
    found = doctor_runtimes.openvino_finding()
    assert (found.status, found.advice) == ("missing", "pip install 'prunedeploy[openvino]'")


def test_two_builds_of_onnxruntime_are_a_conflict():
    both = {"onnxruntime": "1.20.0", "onnxruntime-gpu": "1.21.0", "numpy": "2.0"}
    found = doctor_runtimes.onnxruntime_conflict(both)
    assert found is not None
    assert found.status == "limited"
    assert "onnxruntime 1.20.0 and onnxruntime-gpu 1.21.0 overwrite each other" in found.detail
    assert "pip uninstall onnxruntime onnxruntime-gpu" in found.advice
    for alone in (
        {"onnxruntime": "1"},
        {"onnxruntime-gpu": "1"},
        {"onnxruntime": "1", "onnxruntime-tools": "1"},
        {},
    ):
        assert doctor_runtimes.onnxruntime_conflict(alone) is None


def test_installed_distributions_agree_with_metadata():
    installed = doctor.installed_distributions()
    assert installed["numpy"] == np.__version__
    assert all(name == name.lower() and "_" not in name for name in installed)


@pytest.mark.skipif(installed_version("tensorrt_rtx") is None, reason="needs tensorrt-rtx")
@needs_no_gpu
def test_rtx_without_a_gpu_builds_but_does_not_run(findings):
    found = findings["tensorrt-rtx"]
    assert found.status == "limited"
    assert f"builds engines ahead of time for {', '.join(rtx_targets())}, cannot run them here" in found.detail
    assert "sm75" in found.detail


@pytest.fixture
def jetson(tmp_path):
    model = tmp_path / "proc/device-tree/model"
    model.parent.mkdir(parents=True)
    model.write_bytes(b"NVIDIA Jetson Orin Nano Developer Kit\0")
    return tmp_path


def test_boards_are_told_how_bundles_run_on_them(jetson, tmp_path_factory):
    assert is_jetson(jetson)
    found = board_finding(jetson)
    assert found.detail.startswith("NVIDIA Jetson Orin Nano Developer Kit: bundles run on TensorRT from JetPack")
    pi = tmp_path_factory.mktemp("pi")
    (pi / "proc/device-tree").mkdir(parents=True)
    (pi / "proc/device-tree/model").write_bytes(b"Raspberry Pi 5 Model B Rev 1.0\0")
    found = board_finding(pi)
    assert not is_jetson(pi)
    assert found.status == "ok"
    assert found.detail.startswith("Raspberry Pi 5 Model B Rev 1.0: bundles run on the CPU")
    assert "prunedeploy[cpu]" in found.detail
    assert board_finding(tmp_path_factory.mktemp("server")) is None


def test_jetson_gets_tensorrt_from_jetpack_and_sees_it_through_the_system_site_packages(jetson):
    assert tensorrt_advice(jetson) == doctor_tensorrt.FROM_JETPACK
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    folder = jetson / f"usr/lib/python{here}/dist-packages/tensorrt"
    folder.mkdir(parents=True)
    assert system_tensorrt(jetson) == (folder, here)
    assert f"python{here} -m venv --system-site-packages" in tensorrt_advice(jetson)


def test_tensorrt_of_another_python_is_named_with_that_python(jetson):
    (jetson / "usr/lib/python3.99/dist-packages/tensorrt").mkdir(parents=True)
    assert "the system has it for Python 3.99" in tensorrt_advice(jetson)


def test_tensorrt_elsewhere_comes_with_the_extra(tmp_path):
    assert tensorrt_advice(tmp_path) == "on a device with an NVIDIA GPU: pip install 'prunedeploy[gpu]'"


def test_cuda_python_must_not_be_newer_than_the_driver():
    found = cuda_python_finding({"cuda-bindings": "13.1.0"}, (12, 6))
    assert found.status == "limited"
    assert "is made for CUDA 13, the driver has CUDA 12.6" in found.detail
    assert found.advice == "pip install 'cuda-python>=12.4,<13'"
    assert cuda_python_finding({"cuda-bindings": "12.9.10"}, (13, 0)).status == "ok"  # drivers run what is older
    assert cuda_python_finding({"cuda-bindings": "12.9.10"}, None).status == "ok"
    assert "cuda-python>=13.0,<14" in cuda_python_finding({}, (13, 2)).advice


def test_state_of_a_quiet_machine_needs_no_advice():
    state = {
        "governors": ["performance"],
        "cpu_mhz": [2395.0, 2400.0],
        "cpu_max_mhz": [2400.0, 2400.0],
        "temperatures_c": {"cpu-thermal": 48.2, "gpu": 44.0},
        "load_average": [0.2, 0.1, 0.1],
    }
    expected = "governor performance, CPU at 2400 of 2400 MHz, hottest sensor 48 °C, load 0.2"
    assert state_finding(state, cpus=4) == Finding("device state", "ok", expected)


@pytest.mark.parametrize(
    ("state", "told", "advice"),
    [
        ({"governors": ["powersave"]}, "governor powersave", "use performance while measuring"),
        ({"power_mode": "15W", "governors": ["schedutil"]}, "power mode 15W", "sudo jetson_clocks"),
        (
            {"governors": ["ondemand"], "throttled": {"now": ["under-voltage"], "since_start": ["under-voltage"]}},
            "slowed down now: under-voltage",
            "use a stronger power supply",
        ),
        (
            {"governors": ["performance"], "throttled": {"now": [], "since_start": ["throttled"]}},
            "was slowed down since its start: throttled",
            "cool the board",
        ),
        ({"governors": ["performance"], "load_average": [3.5, 1, 1]}, "load 3.5", "other programs use the CPUs"),
        ({"load_average": [0.1, 0.1, 0.1]}, "clocks, governor and temperature are not readable", "repeat measurements"),
        ({}, "not readable", "repeat measurements"),
    ],
)
def test_state_that_spoils_measurements_is_said_with_what_helps(state, told, advice):
    found = state_finding(state, cpus=2)
    assert found.status == "limited"
    assert told in found.detail
    assert advice in found.advice


def test_jetson_in_its_fastest_mode_needs_no_advice():
    assert state_finding({"power_mode": "MAXN_SUPER", "governors": ["schedutil"]}, cpus=6).status == "ok"


def test_state_names_the_hottest_gpu_and_counts_of_an_x86_cpu():
    state = {
        "governors": ["performance"],
        "gpus": [{"temperature_c": 61.0}, {"temperature_c": None}],
        "thermal_throttle_count": 7,
    }
    detail = state_finding(state, cpus=2).detail
    assert "hottest sensor 61 °C" in detail
    assert "slowed down 7 times by its temperature since its start" in detail


def test_cpu_with_amx():
    found = cpu_finding(XEON)
    assert found.status == "ok"
    assert found.detail.startswith("Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz")
    assert found.detail.endswith("AVX2, AVX-512, VNNI (int8), bf16, AMX, AMX bf16, AMX int8")
    assert found.advice == ""


def test_cpu_without_int8_dot_product():
    found = cpu_finding(HASWELL)
    assert found.status == "limited"
    assert "AVX2" in found.detail
    assert "AVX-512" not in found.detail
    assert found.advice.startswith("expect little from int8")
    assert "saturate" in found.advice


def test_arm_cpu_has_features_of_its_own():
    found = cpu_finding(JETSON_ORIN)
    assert found.status == "ok"
    assert "NEON, dot product (int8)" in found.detail
    assert "bf16" in found.advice


def test_arm_cpu_without_dot_product_is_not_told_of_saturation():
    found = cpu_finding("Features\t: fp asimd evtstrm crc32 cpuid\nModel\t\t: Raspberry Pi 4 Model B Rev 1.4\n")
    assert found.status == "limited"
    assert found.detail.startswith("Raspberry Pi 4 Model B Rev 1.4")
    assert found.advice == "expect little from int8: no int8 dot product; use fp32"


def test_cpu_of_a_system_without_cpuinfo_is_unknown_not_slow():
    found = cpu_finding("")
    assert found.status == "limited"
    assert "features unknown" in found.detail


def test_memory_is_judged_by_what_the_full_network_needs(findings):
    assert memory_finding(8 << 30) == Finding("memory", "ok", "8.0 GiB")
    assert memory_finding((8 << 30) - 1).status == "limited"
    assert memory_finding(None).status == "limited"
    stated = float(findings["memory"].detail.split()[0])
    assert 0 < stated <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30 + 0.05


def test_disk_speaks_of_the_working_folder(tmp_path):
    statistics = os.statvfs(tmp_path)
    stated = float(disk_finding(tmp_path).detail.split()[0])
    assert stated == pytest.approx(statistics.f_bavail * statistics.f_frsize / 2**30, abs=1)


def test_old_python_is_limited():
    assert python_finding((3, 9, 18)).status == "limited"
    assert python_finding((3, 10, 0), "aarch64").status == "ok"


def test_32_bit_system_on_a_64_bit_board_is_limited():
    assert "64-bit" in python_finding((3, 11, 2), "armv7l").advice
