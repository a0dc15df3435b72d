from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from detector_variants import save_conv_detector
from prunedeploy_engines.errors import RuntimeUnavailableError
from prunedeploy_engines.runtimes.onnxruntime.binding import DeviceBinding
from prunedeploy_engines.runtimes.onnxruntime.runner import OnnxRuntimeRunner
from prunedeploy_engines.runtimes.onnxruntime.session import (
    CPU,
    CUDA,
    PROVIDER_OPTIONS,
    TENSORRT,
    check_providers,
    open_session,
    provider_names,
    run_error,
)

_AZURE = "AzureExecutionProvider"  # listed by the CPU build, and has no kernel for any operator of a detector


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_conv_detector(tmp_path_factory.mktemp("model") / "model.onnx")


def test_short_names_are_those_of_onnxruntime() -> None:
    assert provider_names(["tensorrt", "CUDA", "cpu"]) == (TENSORRT, CUDA, CPU)
    assert {TENSORRT, CUDA, CPU} <= set(onnxruntime.get_all_providers())


@pytest.mark.parametrize("providers", [[], ["cpu", "CPUExecutionProvider"]])
def test_no_provider_or_one_twice_is_refused(providers: list[str]) -> None:
    with pytest.raises(ValueError, match="each once"):
        provider_names(providers)


@pytest.mark.parametrize("name", ["cuda", "tensorrt", "NoSuchExecutionProvider"])
def test_provider_that_is_not_there_is_an_error(model: Path, name: str) -> None:
    if provider_names([name])[0] in onnxruntime.get_available_providers():
        pytest.skip(f"this ONNX Runtime has {name}")
    with pytest.raises(RuntimeUnavailableError, match=f"has no {provider_names([name])[0]} here, only ") as caught:
        OnnxRuntimeRunner(model, providers=[name, "cpu"])
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(_AZURE not in onnxruntime.get_available_providers(), reason=f"this build has no {_AZURE}")
def test_provider_that_runs_not_one_operator_is_an_error(model: Path) -> None:
    with pytest.raises(RuntimeUnavailableError, match=f"{_AZURE} has no kernel .* all would run on the CPU"):
        OnnxRuntimeRunner(model, providers=[_AZURE])


def test_dropped_provider_is_an_error() -> None:
    check_providers([CPU], [CPU])
    check_providers([CUDA], [CUDA, CPU])  # the CPU is put behind by ONNX Runtime
    with pytest.raises(RuntimeUnavailableError, match=f"has no {TENSORRT} here, only {CUDA}, {CPU}"):
        check_providers([TENSORRT, CUDA], [CUDA, CPU])
    with pytest.raises(RuntimeUnavailableError, match="CUDA"):
        check_providers([CUDA], [CPU, CUDA])


def test_float32_is_not_tf32() -> None:
    assert PROVIDER_OPTIONS == {CUDA: {"use_tf32": "0"}}


@pytest.mark.parametrize("allowed", [True, False])
def test_spinning_is_as_asked(model: Path, allowed: bool) -> None:
    session = open_session(model, threads=2, providers=["cpu"], allow_spinning=allowed)
    entry = session.get_session_options().get_session_config_entry("session.intra_op.allow_spinning")
    assert entry == str(int(allowed))


def test_threads_are_those_of_the_pool(model: Path) -> None:
    with OnnxRuntimeRunner(model, threads=2) as two, OnnxRuntimeRunner(model) as default:
        assert two.describe()["threads"] == 2
        assert default.describe()["threads"] >= 1


def test_a_gpu_that_fails_is_told_in_one_line() -> None:
    # The message is one of ONNX Runtime's CUDA provider; there is no GPU here that could fail.
    error = RuntimeError(
        "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Conv node.\n"
        "CUDA failure 719: unspecified launch failure ; GPU=0"
    )
    line = str(run_error(error, Path("model.onnx")))
    assert line.startswith("model.onnx: the GPU failed or was lost during a run: Non-zero status code")
    assert "\n" not in line


def test_binding_computes_what_the_session_does(model: Path) -> None:
    session = open_session(model, threads=1, providers=["cpu"], allow_spinning=False)
    binding = DeviceBinding(session, ("boxes", "scores"), "cpu")
    images = np.random.default_rng(0).random((5, 3, 32, 48), dtype=np.float32)
    for batch in (images[:2], images[2:4], images):
        for ours, reference in zip(binding.infer(batch), session.run(None, {"images": batch}), strict=True):
            assert np.array_equal(ours, reference)


def test_outputs_of_a_binding_are_the_callers(model: Path) -> None:
    session = open_session(model, threads=1, providers=["cpu"], allow_spinning=False)
    binding = DeviceBinding(session, ("boxes", "scores"), "cpu")
    images = np.random.default_rng(0).random((2, 3, 32, 48), dtype=np.float32)
    _, scores = binding.infer(images[:1])
    before = scores.copy()
    binding.infer(images[1:])
    assert np.array_equal(scores, before)
