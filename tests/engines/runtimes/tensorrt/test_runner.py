"""What is refused before a plan runs, which can be seen on any machine."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

from prunedeploy_engines.builder.from_onnx import engine_from_onnx, sidecar_path
from prunedeploy_engines.errors import EngineError, RuntimeUnavailableError
from prunedeploy_engines.runtimes.tensorrt import runner as tensorrt_runner
from prunedeploy_engines.runtimes.tensorrt.cuda import CudaCalls
from prunedeploy_engines.runtimes.tensorrt.library import (
    CudaDevice,
    cuda_driver_problem,
    installed_version,
    load_library,
)
from prunedeploy_engines.runtimes.tensorrt.plan import check_batch, deserialise, tensorrt_unavailable_reason
from prunedeploy_engines.runtimes.tensorrt.runner import TensorRTRunner

onnx = pytest.importorskip("onnx", reason="needs onnx to make the networks")
from engine_networks import convolutional_detector  # noqa: E402

needs_rtx = pytest.mark.skipif(
    installed_version("tensorrt_rtx") is None, reason="needs tensorrt-rtx (pip install 'prunedeploy[rtx]')"
)
needs_no_gpu = pytest.mark.skipif(cuda_driver_problem() is None, reason="a GPU is here: plans do run")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    if installed_version("tensorrt_rtx") is None:
        pytest.skip("needs tensorrt-rtx (pip install 'prunedeploy[rtx]')")
    folder = tmp_path_factory.mktemp("built")
    onnx.save(convolutional_detector(), folder / "model.onnx")
    return engine_from_onnx(folder / "model.onnx", folder, target="sm86", batch=(2, 2, 4))


@pytest.fixture
def engine(built, tmp_path):
    """A copy of the engine with its sidecar, which a test may change."""
    shutil.copytree(built.path.parent, tmp_path, dirs_exist_ok=True)
    return replace(built, path=tmp_path / built.path.name)


def error_of(path, **options) -> EngineError:
    with pytest.raises(EngineError) as caught:
        TensorRTRunner(path, **options)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)
    return caught.value


def edit_sidecar(engine, **changes):
    path = sidecar_path(engine.path)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@needs_no_gpu
def test_whole_plan_without_a_gpu_is_a_typed_error_with_the_reason(engine):
    error = error_of(engine.path)
    assert isinstance(error, RuntimeUnavailableError)
    assert cuda_driver_problem() in str(error)
    assert "onnxruntime" in str(error)


def test_missing_plan(tmp_path):
    assert "no such engine" in str(error_of(tmp_path / "absent.plan"))


def test_foreign_plan_without_a_sidecar(tmp_path):
    path = tmp_path / "foreign.plan"
    path.write_bytes(b"ftrt" + bytes(500))
    assert "no sidecar" in str(error_of(path))


def test_truncated_plan(engine):
    engine.path.write_bytes(engine.path.read_bytes()[:-100])
    assert f"was built with {engine.bytes}" in str(error_of(engine.path))


def test_plan_with_one_byte_changed(engine):
    plan = bytearray(engine.path.read_bytes())
    plan[len(plan) // 2] ^= 1
    engine.path.write_bytes(plan)
    assert "changed after it was built" in str(error_of(engine.path))


def test_plan_of_another_version(engine):
    edit_sidecar(engine, version="1.0.0.1")
    line = str(error_of(engine.path))
    assert "tensorrt_rtx 1.0.0.1" in line
    assert installed_version("tensorrt_rtx") in line
    assert "prunedeploy engine" in line


def test_plan_of_an_unknown_library(engine):
    edit_sidecar(engine, library="openvino")
    assert "unknown library 'openvino'" in str(error_of(engine.path))


@pytest.mark.skipif(installed_version("tensorrt") is not None, reason="full TensorRT is installed here")
def test_plan_of_a_library_that_is_not_installed(engine):
    edit_sidecar(engine, library="tensorrt")
    error = error_of(engine.path)
    assert isinstance(error, RuntimeUnavailableError)
    assert "prunedeploy[gpu]" in str(error)


@pytest.mark.parametrize("change", [{"schema_version": 1}, {"profile": [1]}, {"bytes": "many"}, {"layers": None}])
def test_sidecar_of_another_form(engine, change):
    edit_sidecar(engine, **change)
    assert "sidecar" in str(error_of(engine.path))


@needs_rtx
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda plan: b"not a plan at all " * 20, "magicTag"),
        (lambda plan: plan[:100], "header.size"),
        (lambda plan: plan[:-10], "header.size"),
        (lambda plan: b"", "empty"),
        (lambda plan: plan[:64] + bytes(len(plan) - 64), "Serialization"),
    ],
    ids=["foreign", "header only", "end missing", "empty", "zeroed"],
)
def test_library_refuses_a_broken_plan_in_its_own_words(engine, damage, said):
    """The sidecar's hash catches these first; if somebody also edits that, None must not become an engine."""
    plan = damage(engine.path.read_bytes())
    with pytest.raises(EngineError, match=said) as caught:
        deserialise(load_library("tensorrt_rtx"), plan, engine.path)
    assert "\n" not in str(caught.value)


@needs_rtx
@needs_no_gpu
def test_library_without_a_gpu_gives_no_engine_and_that_is_an_error(engine):
    with pytest.raises(EngineError, match="CUDA driver"):
        deserialise(load_library("tensorrt_rtx"), engine.path.read_bytes(), engine.path)


def test_batch_outside_the_profile_names_the_profile(engine):
    for batch in (2, 3, 4):
        check_batch(batch, engine, "images")
    for batch in (1, 5):
        with pytest.raises(EngineError, match=rf"batch {batch} is outside .* images takes 2 to 4"):
            check_batch(batch, engine, "images")


@needs_no_gpu
def test_reason_is_known_without_loading_tensorrt():
    program = (
        "import sys; from prunedeploy_engines.runtimes.tensorrt.runner import tensorrt_unavailable_reason as why;"
        "print(why()); print([m for m in ('tensorrt', 'tensorrt_rtx', 'cuda') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    reason, loaded = done.stdout.splitlines()
    assert reason == tensorrt_unavailable_reason()
    assert "CUDA driver" in reason or "not installed" in reason
    assert loaded == "[]"


@needs_no_gpu
def test_cuda_error_codes_are_raised_with_their_meaning():
    cudart = pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-python")
    cuda = CudaCalls(cudart)
    for function, arguments in (("cudaMallocHost", (64,)), ("cudaMalloc", (64,)), ("cudaStreamCreate", ())):
        with pytest.raises(EngineError, match=rf"{function} failed: .+ \(code \d+\)"):
            cuda.call(function, *arguments)


def test_engine_for_another_gpu_is_refused(engine, monkeypatch):
    monkeypatch.setattr(tensorrt_runner, "tensorrt_unavailable_reason", lambda library: None)
    monkeypatch.setattr(tensorrt_runner, "cuda_device", lambda: CudaDevice("Orin", "sm87"))
    assert "was built for sm86, here is Orin (sm87)" in str(error_of(engine.path))
