from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from bad_models import save_greedy_detector, save_one_node, save_without_its_weights
from contracts import RunnerContract
from detector_variants import (
    MAX_DETECTIONS,
    SCORE_THRESHOLD,
    save_conv_detector,
    save_nms_detector,
    save_uint8_detector,
)
from prunedeploy_engines.errors import EngineError, RuntimeUnavailableError
from prunedeploy_engines.runtimes.onnxruntime.runner import OnnxRuntimeRunner, import_onnxruntime
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


class TestUint8Model(RunnerContract):
    @pytest.fixture
    def runner(self, tmp_path: Path) -> Iterator[OnnxRuntimeRunner]:
        with OnnxRuntimeRunner(save_uint8_detector(tmp_path / "model.onnx"), threads=1) as runner:
            yield runner

    def test_uint8_and_float_images_agree(self, runner: OnnxRuntimeRunner) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 48, 3), dtype=np.uint8)
        floats = pixels.transpose(0, 3, 1, 2).astype(np.float32) / 255
        assert runner.uint8_input
        for ours, reference in zip(runner.infer(pixels), runner.infer(floats), strict=True):
            assert np.array_equal(ours, reference)
        np.testing.assert_allclose(runner.infer(pixels)[1], cell_scores(floats), rtol=1e-5)


class TestModelWithSuppression(RunnerContract):
    @pytest.fixture
    def runner(self, tmp_path: Path) -> Iterator[OnnxRuntimeRunner]:
        with OnnxRuntimeRunner(save_nms_detector(tmp_path / "model.onnx"), threads=1) as runner:
            yield runner

    def test_gives_the_best_cells_above_the_threshold(self, runner: OnnxRuntimeRunner, images: np.ndarray) -> None:
        _, scores = runner.infer(images)
        every = cell_scores(images)
        for image in range(len(images)):
            best = np.sort(every[image][every[image] > SCORE_THRESHOLD])[::-1][:MAX_DETECTIONS]
            np.testing.assert_allclose(scores[image].max(axis=1)[: len(best)], best, rtol=1e-5)
            assert (scores[image] > 0).sum() == len(best)

    def test_black_image_gives_nothing(self, runner: OnnxRuntimeRunner) -> None:
        boxes, scores = runner.infer(np.zeros((1, 3, 32, 48), np.float32))
        assert boxes.max() == scores.max() == 0
        assert runner.nms_classes == 3


def test_suppression_without_class_names_is_an_error(tmp_path: Path) -> None:
    path = save_nms_detector(tmp_path / "model.onnx")
    model = onnx.load(path)
    helper.set_model_props(model, {})
    onnx.save(model, path)
    with pytest.raises(EngineError, match="does not say which classes"):
        OnnxRuntimeRunner(path)


@pytest.mark.parametrize(
    ("precision", "computes_in"),
    [
        ("fp32", {"fp32": 1.0}),
        # No CPU of the x86 family computes convolutions in float16 in ONNX Runtime: casts are put around them.
        ("fp16", {"fp32": 1.0}),
        ("int8", {"int8": 0.5, "fp32": 0.5}),
    ],
)
def test_tells_what_convolutions_are_really_computed_in(
    tmp_path: Path, precision: str, computes_in: dict[str, float]
) -> None:
    if precision == "fp16" and platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("ARM CPUs have float16 convolutions")
    with OnnxRuntimeRunner(save_conv_detector(tmp_path / "model.onnx", precision), threads=1) as runner:
        assert runner.describe()["precision"] == precision
        assert runner.describe()["computes_in"] == computes_in


def test_precision_comes_from_the_files_metadata(tmp_path: Path) -> None:
    path = save_tiny_detector(tmp_path / "model.onnx")
    proto = onnx.load(path)
    helper.set_model_props(proto, {"precision": "int8"})
    onnx.save(proto, path)
    with OnnxRuntimeRunner(path) as runner:
        assert runner.describe()["precision"] == "int8"


@pytest.mark.parametrize(
    ("save", "told"),
    [
        (lambda path: path.write_bytes(b""), "not an ONNX file, or cut short"),
        (lambda path: path.write_bytes(b"no model at all" * 20), "not an ONNX file, or cut short"),
        (lambda path: save_one_node(path, "Frobnicate"), "no operator Frobnicate in opset 17"),
        (lambda path: save_one_node(path, "Foo", domain="my.ops"), "no operator Foo of the domain my.ops"),
        (lambda path: save_one_node(path, opset=99), "opset 99 is too new"),
        (lambda path: save_one_node(path, opset=1), "no kernel for operator Relu as of opset 1"),
        (lambda path: save_one_node(path, ir_version=99), r"IR 99\) is too new"),
        (save_without_its_weights, r"weights\.bin with its weights is missing"),
    ],
)
def test_bad_model_gives_one_line_that_says_why(tmp_path: Path, save: Callable[[Path], object], told: str) -> None:
    path = tmp_path / "bad.onnx"
    save(path)
    with pytest.raises(EngineError, match=told) as caught:
        OnnxRuntimeRunner(path)
    assert "bad.onnx" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_truncated_model_is_an_error(tmp_path: Path, model: Path) -> None:
    path = tmp_path / "half.onnx"
    path.write_bytes(model.read_bytes()[: model.stat().st_size // 2])
    with pytest.raises(EngineError, match="cut short"):
        OnnxRuntimeRunner(path)


def test_running_out_of_memory_is_an_error_of_one_line(tmp_path: Path) -> None:
    with (
        OnnxRuntimeRunner(save_greedy_detector(tmp_path / "greedy.onnx"), threads=1) as runner,
        pytest.raises(EngineError, match=r"greedy\.onnx: out of memory during a run; use a smaller batch") as caught,
    ):
        runner.infer(np.zeros((1, 3, 32, 48), np.float32))
    assert "\n" not in str(caught.value)


def test_batch_that_a_fixed_model_does_not_take_is_an_error(tmp_path: Path, model: Path) -> None:
    proto = onnx.load(model)
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(proto, tmp_path / "one.onnx")
    with OnnxRuntimeRunner(tmp_path / "one.onnx", threads=1) as runner:
        assert len(runner.infer(np.zeros((1, 3, 32, 48), np.float32))[0]) == 1
        assert runner.describe()["computes_in"] is None  # it has no convolution
        with pytest.raises(EngineError, match=r"one\.onnx: takes batches of 1, not 2"):
            runner.infer(np.zeros((2, 3, 32, 48), np.float32))


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
from prunedeploy_engines.runtimes.onnxruntime.runner import OnnxRuntimeRunner
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


@pytest.mark.gpu
class TestOnCuda(RunnerContract):
    """Never run by its authors, who have no GPU."""

    @pytest.fixture
    def runner(self, tmp_path: Path) -> Iterator[OnnxRuntimeRunner]:
        if "CUDAExecutionProvider" not in import_onnxruntime().get_available_providers():
            pytest.skip(
                "this ONNX Runtime has no CUDA provider: pip install 'prunedeploy[gpu]' on a machine with a GPU"
            )
        with OnnxRuntimeRunner(save_conv_detector(tmp_path / "model.onnx"), providers=["cuda"]) as runner:
            yield runner

    def test_convolutions_run_on_the_gpu_in_float32(self, runner: OnnxRuntimeRunner) -> None:
        described = runner.describe()
        assert described["device"] == "gpu"
        assert described["computes_in"] == {"fp32": 1.0}
        assert "Conv" not in described["operators_on_cpu"]
