"""The doctor's statements against what this machine and independent libraries say."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import warnings
from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from prunedeploy_engines import doctor
from prunedeploy_engines.doctor import Finding, cpu_finding, diagnose, disk_finding, memory_finding
from prunedeploy_engines.tensorrt_library import cuda_driver_problem, installed_version, rtx_targets

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
    expected = (
        "python cpu memory disk onnxruntime tensorrt tensorrt-rtx cuda-python torch onnx pycocotools captum"
    )
    assert {*expected.split(), "cuda driver"} <= set(findings)
    for finding in listed:
        assert finding.status in ("ok", "missing", "limited")
        assert finding.detail
        assert finding.status == "ok" or finding.advice, finding
        assert "\n" not in finding.detail + finding.advice
    with pytest.raises(FrozenInstanceError):
        listed[0].status = "ok"


def test_versions_are_those_installed(findings):
    for name in ("torch", "onnx", "onnxruntime", "pycocotools", "captum", "tensorrt-rtx"):
        if importlib.util.find_spec(name.replace("-", "_")) is None:
            assert findings[name].status == "missing"
            assert "prunedeploy[" in findings[name].advice
        else:
            assert importlib.metadata.version(name) in findings[name].detail


def test_missing_library_is_said_with_the_extra_that_brings_it():
    found = doctor._library_finding("a_library_nobody_has", "does something", "train")
    assert found == Finding(
        "a_library_nobody_has", "missing", "nothing does something", "pip install 'prunedeploy[train]'"
    )


def test_diagnosis_imports_neither_torch_nor_onnx():
    program = (
        "import sys, json; from prunedeploy_engines.doctor import diagnose; diagnose();"
        "print(json.dumps([m for m in ('torch', 'onnx', 'captum', 'pycocotools') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_probe_model_is_valid_and_the_identity():
    onnx = pytest.importorskip("onnx")
    from onnx.reference import ReferenceEvaluator

    model = onnx.load_from_string(doctor._IDENTITY_ONNX)
    onnx.checker.check_model(model, full_check=True)
    (output,) = ReferenceEvaluator(model).run(None, {"x": np.array([3.5], np.float32)})
    assert output.tolist() == [3.5]


def test_onnxruntime_providers_are_tried_not_believed(findings):
    ort = pytest.importorskip("onnxruntime")
    assert doctor.provider_runs(ort, "CPUExecutionProvider")
    assert "runs bundles on" in findings["onnxruntime"].detail
    assert "CPU" in findings["onnxruntime"].detail
    # Listed by the CPU wheel, but it sends images to a service: nothing runs here.
    assert not doctor.provider_runs(ort, "AzureExecutionProvider")
    # ONNX Runtime only warns of a provider it does not have, and falls back to the CPU.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fell_back = not doctor.provider_runs(ort, "CoreMLExecutionProvider")
    assert fell_back or sys.platform == "darwin"


@needs_no_gpu
def test_gpu_providers_do_not_run_without_a_gpu(findings):
    ort = pytest.importorskip("onnxruntime")
    for provider in ("CUDAExecutionProvider", "TensorrtExecutionProvider"):
        assert not doctor.provider_runs(ort, provider)
    assert findings["cuda driver"].status == "missing"


def test_two_builds_of_onnxruntime_are_a_conflict():
    both = {"onnxruntime": "1.20.0", "onnxruntime-gpu": "1.21.0", "numpy": "2.0"}
    found = doctor.onnxruntime_conflict(both)
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
        assert doctor.onnxruntime_conflict(alone) is None


def test_installed_distributions_agree_with_metadata():
    installed = doctor.installed_distributions()
    assert installed["numpy"] == np.__version__
    assert all(name == name.lower() and "_" not in name for name in installed)


@pytest.mark.skipif(installed_version("tensorrt_rtx") is None, reason="needs tensorrt-rtx")
@needs_no_gpu
def test_rtx_without_a_gpu_builds_but_does_not_run(findings):
    found = findings["tensorrt-rtx"]
    assert found.status == "limited"
    assert (
        f"builds engines ahead of time for {', '.join(rtx_targets())}, cannot run them here" in found.detail
    )
    assert "sm75" in found.detail


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
    assert "int8" in found.advice


def test_arm_cpu_has_features_of_its_own():
    found = cpu_finding(JETSON_ORIN)
    assert found.status == "ok"
    assert "NEON, dot product (int8)" in found.detail
    assert "bf16" in found.advice


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
    assert doctor.python_finding((3, 9, 18)).status == "limited"
    assert doctor.python_finding((3, 10, 0)).status == "ok"
