from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from prunedeploy_engines.errors import ConfigError, EngineError
from prunedeploy_engines.runtimes.onnxruntime.runner import OnnxRuntimeRunner
from prunedeploy_engines.runtimes.opening import RUNTIMES, model_target, open_runner, unavailable_reason
from prunedeploy_engines.runtimes.openvino.process import OpenVinoProcess
from tiny_detector import save_tiny_detector


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_opens_a_model_in_the_runtime_that_was_asked_for(runtime: str, tmp_path: Path) -> None:
    if unavailable_reason(runtime) is not None:
        pytest.skip(str(unavailable_reason(runtime)))
    with open_runner(save_tiny_detector(tmp_path / "model.onnx"), runtime, threads=1) as runner:
        assert runner.runtime == runner.describe()["runtime"] == runtime
        assert runner.describe()["threads"] == 1


def test_options_reach_the_runner(tmp_path: Path) -> None:
    model = save_tiny_detector(tmp_path / "model.onnx")
    with open_runner(model, "onnxruntime", providers=("CPUExecutionProvider",), allow_spinning=False) as runner:
        assert isinstance(runner, OnnxRuntimeRunner)
        assert not runner.describe()["allow_spinning"]


@pytest.mark.skipif(unavailable_reason("openvino") is not None, reason="needs openvino")
def test_openvino_stays_out_of_this_process_unless_told_to_come_in(tmp_path: Path) -> None:
    model = save_tiny_detector(tmp_path / "model.onnx")
    with open_runner(model, "openvino", threads=1) as runner:
        assert isinstance(runner, OpenVinoProcess)
    assert "openvino" not in sys.modules
    with pytest.raises(AssertionError, match="decision 0008"):  # the tests' own guard, see conftest
        open_runner(model, "openvino", in_process=True)


def test_plan_that_is_not_there_is_an_error_of_its_runtime(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"none\.plan"):
        open_runner(tmp_path / "none.plan", "tensorrt")


def test_unknown_runtime_is_an_error_that_lists_the_known() -> None:
    for call in (lambda: open_runner("x.onnx", "tflite"), lambda: unavailable_reason("tflite")):
        with pytest.raises(ConfigError, match="no runtime 'tflite'; use one of onnxruntime, openvino, tensorrt"):
            call()
    with pytest.raises(ConfigError, match="tflite"):
        model_target("tflite")


@pytest.mark.parametrize(("runtime", "extra"), [("onnxruntime", "cpu"), ("openvino", "openvino")])
def test_runtime_that_is_not_installed_says_what_to_install(
    runtime: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, runtime, None)
    assert f"is not installed; pip install 'prunedeploy[{extra}]'" in str(unavailable_reason(runtime))


def test_asking_imports_no_runtime() -> None:
    program = f"""
import sys
from prunedeploy_engines.runtimes.opening import unavailable_reason
for runtime in {RUNTIMES}:
    unavailable_reason(runtime)
assert not {{"onnxruntime", "openvino", "tensorrt", "tensorrt_rtx"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    ("runtime", "providers", "target"),
    [
        ("onnxruntime", ("cpu",), "cpu"),
        ("onnxruntime", ("CPUExecutionProvider",), "cpu"),
        ("onnxruntime", ("cuda", "cpu"), "gpu"),
        ("onnxruntime", ("TensorrtExecutionProvider",), "gpu"),
        ("openvino", ("cpu",), "cpu"),
        ("tensorrt", ("cpu",), "gpu"),
    ],
)
def test_int8_file_is_the_one_the_runtime_is_fast_with(runtime: str, providers: tuple[str, ...], target: str) -> None:
    assert model_target(runtime, providers) == target
