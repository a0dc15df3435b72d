from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from contracts import RunnerContract
from prunedeploy_engines.errors import EngineError, RuntimeUnavailableError
from prunedeploy_engines.onnxruntime_runner import OnnxRuntimeRunner
from tiny_detector import cell_boxes, cell_scores, save_tiny_detector


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_detector(tmp_path_factory.mktemp("model") / "model.onnx")


class TestOnnxRuntimeRunner(RunnerContract):
    @pytest.fixture
    def runner(self, model: Path) -> Iterator[OnnxRuntimeRunner]:
        with OnnxRuntimeRunner(model, threads=1) as runner:
            yield runner

    def test_computes_what_the_model_says(self, runner: OnnxRuntimeRunner, images: np.ndarray) -> None:
        boxes, scores = runner.infer(images)
        np.testing.assert_allclose(scores, cell_scores(images), rtol=1e-5)
        assert np.array_equal(boxes, np.repeat(cell_boxes(32, 48)[None], 5, axis=0))

    def test_describe_states_threads_and_providers(self, runner: OnnxRuntimeRunner) -> None:
        described = runner.describe()
        assert described["providers"] == ["CPUExecutionProvider"]
        assert described["threads"] == 1
        assert described["precision"] == "fp32"
        assert runner.input_size == (32, 48)

    def test_closed_runner_still_describes_itself(self, runner: OnnxRuntimeRunner) -> None:
        runner.close()
        assert runner.describe()["runtime"] == "onnxruntime"


def test_provider_that_is_not_there_is_an_error(model: Path) -> None:
    with pytest.raises(RuntimeUnavailableError, match="no NoSuchExecutionProvider here"):
        OnnxRuntimeRunner(model, providers=["NoSuchExecutionProvider", "CPUExecutionProvider"])


def test_precision_comes_from_the_files_metadata(tmp_path: Path) -> None:
    path = save_tiny_detector(tmp_path / "model.onnx")
    proto = onnx.load(path)
    helper.set_model_props(proto, {"precision": "int8"})
    onnx.save(proto, path)
    with OnnxRuntimeRunner(path) as runner:
        assert runner.describe()["precision"] == "int8"


@pytest.mark.parametrize("content", [b"", b"no model at all" * 20])
def test_garbage_gives_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "garbage.onnx"
    path.write_bytes(content)
    with pytest.raises(EngineError, match=r"garbage\.onnx") as caught:
        OnnxRuntimeRunner(path)
    assert "\n" not in str(caught.value)


def test_truncated_model_is_an_error(tmp_path: Path, model: Path) -> None:
    path = tmp_path / "half.onnx"
    path.write_bytes(model.read_bytes()[: model.stat().st_size // 2])
    with pytest.raises(EngineError, match="cannot load"):
        OnnxRuntimeRunner(path)


def test_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no such ONNX file"):
        OnnxRuntimeRunner(tmp_path / "none.onnx")


def test_model_of_another_kind_is_an_error(tmp_path: Path) -> None:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
    path = tmp_path / "relu.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    with pytest.raises(EngineError, match=r"not a detector: it has inputs \['x'\]"):
        OnnxRuntimeRunner(path)


def test_threads_must_be_positive(model: Path) -> None:
    with pytest.raises(ValueError, match="threads"):
        OnnxRuntimeRunner(model, threads=0)


def test_nothing_is_printed(model: Path, tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.onnx"
    garbage.write_bytes(b"garbage" * 10)
    program = f"""
import numpy as np
from prunedeploy_engines.errors import EngineError
from prunedeploy_engines.onnxruntime_runner import OnnxRuntimeRunner
with OnnxRuntimeRunner({str(model)!r}) as runner:
    runner.infer(np.zeros((1, 3, 32, 48), dtype=np.float32))
try:
    OnnxRuntimeRunner({str(garbage)!r})
except EngineError:
    pass
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_missing_onnxruntime_says_what_to_install(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # makes the import fail
    with pytest.raises(RuntimeUnavailableError, match=r"pip install 'prunedeploy\[cpu\]'"):
        OnnxRuntimeRunner(model)
