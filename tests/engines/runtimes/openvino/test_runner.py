from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from bad_models import save_greedy_detector, save_one_node, save_without_its_weights
from contracts import RunnerContract
from detector_variants import save_conv_detector, save_nms_detector, save_uint8_detector
from prunedeploy_engines.errors import EngineError, RuntimeUnavailableError
from prunedeploy_engines.runtimes.onnxruntime.runner import OnnxRuntimeRunner
from prunedeploy_engines.runtimes.openvino.runner import OpenVinoRunner
from tiny_detector import cell_boxes, cell_scores, save_tiny_detector

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="OpenVINO is not installed: pip install openvino"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_detector(tmp_path_factory.mktemp("model") / "model.onnx")


class TestOpenVinoRunner(RunnerContract):
    @pytest.fixture
    def runner(self, model: Path) -> Iterator[OpenVinoRunner]:
        with OpenVinoRunner(model, threads=1) as runner:
            yield runner

    def test_computes_what_the_model_says(self, runner: OpenVinoRunner, images: np.ndarray) -> None:
        boxes, scores = runner.infer(images)
        np.testing.assert_allclose(scores, cell_scores(images), rtol=1e-5)
        assert np.array_equal(boxes, np.repeat(cell_boxes(32, 48)[None], 5, axis=0))

    def test_describes_threads_and_precision_that_was_asked_for(self, runner: OpenVinoRunner) -> None:
        described = runner.describe()
        assert described["threads"] == 1
        assert described["inference_precision"] == "f32"
        assert described["device"] == "cpu"
        assert runner.input_size == (32, 48)

    def test_closed_runner_still_describes_itself(self, runner: OpenVinoRunner) -> None:
        runner.close()
        assert runner.describe()["runtime"] == "openvino"

    def test_more_batch_sizes_than_are_kept(self, runner: OpenVinoRunner, images: np.ndarray) -> None:
        for batch in (1, 2, 3, 4, 5, 1, 2):
            _, scores = runner.infer(images[:batch])
            np.testing.assert_allclose(scores, cell_scores(images[:batch]), rtol=1e-5)


class TestUint8Model(RunnerContract):
    @pytest.fixture
    def runner(self, tmp_path: Path) -> Iterator[OpenVinoRunner]:
        with OpenVinoRunner(save_uint8_detector(tmp_path / "model.onnx"), threads=1) as runner:
            yield runner

    def test_uint8_and_float_images_agree(self, runner: OpenVinoRunner) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 48, 3), dtype=np.uint8)
        floats = pixels.transpose(0, 3, 1, 2).astype(np.float32) / 255
        for ours, reference in zip(runner.infer(pixels), runner.infer(floats), strict=True):
            assert np.array_equal(ours, reference)


class TestModelWithSuppression(RunnerContract):
    @pytest.fixture
    def runner(self, tmp_path: Path) -> Iterator[OpenVinoRunner]:
        with OpenVinoRunner(save_nms_detector(tmp_path / "model.onnx"), threads=1) as runner:
            yield runner

    def test_gives_what_onnxruntime_gives(self, runner: OpenVinoRunner, images: np.ndarray, tmp_path: Path) -> None:
        images[0] = 0  # an image without a detection
        with OnnxRuntimeRunner(tmp_path / "model.onnx", threads=1) as other:
            for ours, reference in zip(runner.infer(images), other.infer(images), strict=True):
                np.testing.assert_allclose(ours, reference, rtol=1e-5)


@pytest.mark.parametrize(
    ("precision", "computes_in"),
    [("fp32", {"fp32": 1.0}), ("fp16", {"fp32": 1.0}), ("int8", {"int8": 0.5, "fp32": 0.5})],
)
def test_tells_what_convolutions_are_really_computed_in(
    tmp_path: Path, precision: str, computes_in: dict[str, float]
) -> None:
    path = save_conv_detector(tmp_path / "model.onnx", precision)
    images = np.random.default_rng(0).random((2, 3, 32, 48), dtype=np.float32)
    with OpenVinoRunner(path, threads=1) as runner:
        assert runner.describe()["precision"] == precision
        assert runner.describe()["computes_in"] == computes_in
        np.testing.assert_allclose(runner.infer(images)[1], cell_scores(images), atol=3 / 255)


def test_float_layers_may_be_computed_in_bf16(tmp_path: Path) -> None:
    path = save_conv_detector(tmp_path / "model.onnx")
    with OpenVinoRunner(path, threads=1, inference_precision="bf16") as runner:
        computes_in = runner.describe()["computes_in"]
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists() or not {"avx512_bf16", "amx_bf16"} & set(cpuinfo.read_text().split()):
        pytest.skip("this CPU has no bf16")
    assert computes_in == {"bf16": 1.0}


def test_precision_that_does_not_exist_is_refused(model: Path) -> None:
    with pytest.raises(ValueError, match="inference_precision must be one of"):
        OpenVinoRunner(model, inference_precision="f4")


def test_device_that_is_not_there_is_an_error(model: Path) -> None:
    with pytest.raises(RuntimeUnavailableError, match="no device NPU7 here, only CPU"):
        OpenVinoRunner(model, device="NPU7")


@pytest.mark.parametrize(
    ("save", "told"),
    [
        (lambda path: path.write_bytes(b""), "not an ONNX file"),
        (lambda path: path.write_bytes(b"no model at all" * 20), "not an ONNX file"),
        (lambda path: save_one_node(path, "Frobnicate"), "no operator Frobnicate"),
        (lambda path: save_one_node(path, "Foo", domain="my.ops"), r"no operator my\.ops\.Foo"),
        (lambda path: save_one_node(path), "not a detector"),
        (save_without_its_weights, r"weights\.bin with its weights is missing"),
        (save_greedy_detector, "out of memory"),
    ],
)
def test_bad_model_gives_one_line_that_says_why(tmp_path: Path, save: Callable[[Path], object], told: str) -> None:
    path = tmp_path / "bad.onnx"
    save(path)
    with pytest.raises(EngineError, match=told) as caught:
        OpenVinoRunner(path, threads=1).infer(np.zeros((1, 3, 32, 48), np.float32))
    assert "bad.onnx" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no such ONNX file"):
        OpenVinoRunner(tmp_path / "none.onnx")


def test_batch_that_a_fixed_model_does_not_take_is_an_error(tmp_path: Path, model: Path) -> None:
    proto = onnx.load(model)
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(proto, tmp_path / "two.onnx")
    images = np.zeros((3, 3, 32, 48), np.float32)
    with OpenVinoRunner(tmp_path / "two.onnx", threads=1) as runner:
        assert len(runner.infer(images[:2])[0]) == 2
        with pytest.raises(EngineError, match="takes batches of 2, not 3"):
            runner.infer(images)


def test_missing_openvino_says_what_to_install(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)  # makes the import fail
    with pytest.raises(RuntimeUnavailableError, match=r"pip install 'prunedeploy\[openvino\]'"):
        OpenVinoRunner(model)


def test_nothing_is_printed_sent_or_left_in_the_home_folder(model: Path, tmp_path: Path) -> None:
    """OpenVINO's own ``import openvino`` writes an id into ``~/intel`` and reports the import."""
    garbage = tmp_path / "garbage.onnx"
    garbage.write_bytes(b"garbage" * 10)
    program = f"""
import sys
reached = []
sys.addaudithook(lambda event, arguments: reached.append(event) if event.startswith("socket.") else None)
import numpy as np
from prunedeploy_engines.errors import EngineError
from prunedeploy_engines.runtimes.openvino.runner import OpenVinoRunner
with OpenVinoRunner({str(model)!r}, threads=1) as runner:
    runner.infer(np.zeros((1, 3, 32, 48), dtype=np.float32))
try:
    OpenVinoRunner({str(garbage)!r})
except EngineError:
    pass
assert "openvino" in sys.modules and "openvino_telemetry" not in sys.modules
assert not reached, reached
"""
    home = tmp_path / "home"
    home.mkdir()
    in_ci = {"CI", "TF_BUILD", "JENKINS_URL"}  # there OpenVINO's telemetry is off by itself
    environment = {key: value for key, value in os.environ.items() if key not in in_ci} | {"HOME": str(home)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(home.iterdir()) == []


def test_nothing_but_its_own_module_imports_openvino() -> None:
    """Any other import would let its telemetry loose."""
    root = Path(__file__).parents[4]
    importing = [
        path.relative_to(root)
        for folder in ("prunedeploy", "export", "engines", "benchmarks")
        for path in (root / folder).rglob("*.py")
        if re.search(r"^\s*(import|from) openvino\b", path.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert importing == [Path("engines/prunedeploy_engines/runtimes/openvino/library.py")]
