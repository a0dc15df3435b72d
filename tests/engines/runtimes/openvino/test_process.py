"""OpenVINO from a process that must not hold it: outputs and errors as of `OpenVinoRunner`, and what a process adds."""

from __future__ import annotations

import importlib.util
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from bad_models import save_greedy_detector, save_one_node, save_without_its_weights
from contracts import RunnerContract
from detector_variants import save_conv_detector, save_nms_detector, save_uint8_detector
from engine_networks import write_precisions
from prunedeploy_engines.child import receive, send
from prunedeploy_engines.errors import EngineError, RuntimeUnavailableError
from prunedeploy_engines.runtimes.onnxruntime.runner import OnnxRuntimeRunner
from prunedeploy_engines.runtimes.openvino.process import OpenVinoProcess
from tiny_detector import cell_boxes, cell_scores, save_tiny_detector

needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="OpenVINO is not installed: pip install openvino"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_detector(tmp_path_factory.mktemp("model") / "model.onnx")


@needs_openvino
class TestOpenVinoProcess(RunnerContract):
    @pytest.fixture
    def runner(self, model: Path) -> Iterator[OpenVinoProcess]:
        with OpenVinoProcess(model, threads=1) as runner:
            yield runner

    def test_computes_what_the_model_says(self, runner: OpenVinoProcess, images: np.ndarray) -> None:
        boxes, scores = runner.infer(images)
        np.testing.assert_allclose(scores, cell_scores(images), rtol=1e-5)
        assert np.array_equal(boxes, np.repeat(cell_boxes(32, 48)[None], 5, axis=0))

    def test_describes_threads_and_precision_that_was_asked_for(self, runner: OpenVinoProcess) -> None:
        described = runner.describe()
        assert described["threads"] == 1
        assert described["inference_precision"] == "f32"
        assert described["device"] == "cpu"
        assert runner.input_size == (32, 48)

    def test_closed_runner_still_describes_itself(self, runner: OpenVinoProcess) -> None:
        runner.close()
        assert runner.describe()["runtime"] == "openvino"

    def test_more_batch_sizes_than_are_kept(self, runner: OpenVinoProcess, images: np.ndarray) -> None:
        for batch in (1, 2, 3, 4, 5, 1, 2):
            _, scores = runner.infer(images[:batch])
            np.testing.assert_allclose(scores, cell_scores(images[:batch]), rtol=1e-5)

    def test_threads_get_the_answers_to_their_own_images(self, runner: OpenVinoProcess, images: np.ndarray) -> None:
        def score(number: int) -> bool:
            batch = images[number % 5 : number % 5 + 1]
            return np.allclose(runner.infer(batch)[1], cell_scores(batch), rtol=1e-5)

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(score, range(80)))

    def test_closing_waits_for_the_call_of_another_thread(self, runner: OpenVinoProcess, images: np.ndarray) -> None:
        stop(runner)
        with ThreadPoolExecutor(2) as pool:
            answer = pool.submit(runner.infer, images)
            wait_until(runner._lock.locked)
            closing = pool.submit(runner.close)
            wait_until(lambda: runner._closed)
            os.kill(pid_of(runner), signal.SIGCONT)
            np.testing.assert_allclose(answer.result()[1], cell_scores(images), rtol=1e-5)
            closing.result()


IDENTICAL = """
import sys
from pathlib import Path
import numpy as np
from prunedeploy_engines.runtimes.openvino.process import OpenVinoProcess
from prunedeploy_engines.runtimes.openvino.runner import OpenVinoRunner

def same(one, other):
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()

for path in sorted(Path(sys.argv[1]).glob("*.onnx")):
    with OpenVinoRunner(path, threads=1) as here, OpenVinoProcess(path, threads=1) as there:
        for told in ("runtime", "input_size", "uint8_input", "nms_classes"):
            assert getattr(here, told) == getattr(there, told), (path, told)
        assert here.describe() == there.describe(), path
        floats = np.random.default_rng(0).random((3, 3, *here.input_size), dtype=np.float32)
        pixels = np.random.default_rng(1).integers(0, 256, (2, *here.input_size, 3), dtype=np.uint8)
        for images in [floats, floats[:1], floats[:, :, ::-1], *([pixels] if here.uint8_input else [])]:
            assert all(map(same, here.infer(images), there.infer(images))), (path, images.shape)
        profiles = [runner.profile(floats, top=None, runs=2) for runner in (here, there)]
        convolutions = [
            {(layer.name, layer.precision, layer.runs) for layer in layers if layer.kind == "Convolution"}
            for layers in profiles  # of small layers OpenVINO counts some or not, as it happens
        ]
        assert convolutions[0] == convolutions[1], path
    print(path.name)
assert "torch" not in sys.modules
"""


@needs_openvino
def test_outputs_are_bit_for_bit_those_of_the_runner_in_ones_own_process(tmp_path: Path) -> None:
    write_precisions(tmp_path)  # networks that were exported, in all precisions
    for save in (save_tiny_detector, save_uint8_detector, save_nms_detector, save_conv_detector):
        save(tmp_path / f"{save.__name__}.onnx")
    done = subprocess.run([sys.executable, "-c", IDENTICAL, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == sorted(path.name for path in tmp_path.glob("*.onnx"))


@needs_openvino
def test_uint8_and_float_images_agree(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 48, 3), dtype=np.uint8)
    floats = pixels.transpose(0, 3, 1, 2).astype(np.float32) / 255
    with OpenVinoProcess(save_uint8_detector(tmp_path / "model.onnx"), threads=1) as runner:
        for ours, reference in zip(runner.infer(pixels), runner.infer(floats), strict=True):
            assert np.array_equal(ours, reference)


@needs_openvino
def test_suppression_in_the_graph_gives_what_onnxruntime_gives(tmp_path: Path) -> None:
    path = save_nms_detector(tmp_path / "model.onnx")
    images = np.random.default_rng(0).random((5, 3, 32, 48), dtype=np.float32)
    images[0] = 0  # an image without a detection
    with OpenVinoProcess(path, threads=1) as runner, OnnxRuntimeRunner(path, threads=1) as other:
        for ours, reference in zip(runner.infer(images), other.infer(images), strict=True):
            np.testing.assert_allclose(ours, reference, rtol=1e-5)


@needs_openvino
@pytest.mark.parametrize(
    ("precision", "computes_in"),
    [("fp32", {"fp32": 1.0}), ("fp16", {"fp32": 1.0}), ("int8", {"int8": 0.5, "fp32": 0.5})],
)
def test_tells_what_convolutions_are_really_computed_in(
    tmp_path: Path, precision: str, computes_in: dict[str, float]
) -> None:
    path = save_conv_detector(tmp_path / "model.onnx", precision)
    images = np.random.default_rng(0).random((2, 3, 32, 48), dtype=np.float32)
    with OpenVinoProcess(path, threads=1) as runner:
        assert runner.describe()["precision"] == precision
        assert runner.describe()["computes_in"] == computes_in
        np.testing.assert_allclose(runner.infer(images)[1], cell_scores(images), atol=3 / 255)


@needs_openvino
def test_float_layers_may_be_computed_in_bf16(tmp_path: Path) -> None:
    path = save_conv_detector(tmp_path / "model.onnx")
    with OpenVinoProcess(path, threads=1, inference_precision="bf16") as runner:
        computes_in = runner.describe()["computes_in"]
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists() or not {"avx512_bf16", "amx_bf16"} & set(cpuinfo.read_text().split()):
        pytest.skip("this CPU has no bf16")
    assert computes_in == {"bf16": 1.0}


@needs_openvino
def test_wrong_arguments_are_refused_and_leave_no_process(model: Path, started: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"^inference_precision must be one of \('f32', 'bf16', 'f16'\), got 'f4'$"):
        OpenVinoProcess(model, inference_precision="f4")
    with pytest.raises(ValueError, match=r"^threads must be at least 1, got 0$"):
        OpenVinoProcess(model, threads=0)
    with pytest.raises(EngineError, match="no such ONNX file"):
        OpenVinoProcess(model.with_name("none.onnx"))
    assert len(started) == 3
    assert all(process.returncode is not None for process in started)


@needs_openvino
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
        OpenVinoProcess(path, threads=1).infer(np.zeros((1, 3, 32, 48), np.float32))
    assert caught.value.where == str(path)
    assert "\n" not in str(caught.value)


@needs_openvino
def test_batch_that_a_fixed_model_does_not_take_is_an_error_and_not_the_end(tmp_path: Path, model: Path) -> None:
    proto = onnx.load(model)
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(proto, tmp_path / "two.onnx")
    images = np.zeros((3, 3, 32, 48), np.float32)
    with OpenVinoProcess(tmp_path / "two.onnx", threads=1) as runner:
        for _ in range(2):
            with pytest.raises(EngineError, match="takes batches of 2, not 3"):
                runner.infer(images)
            assert len(runner.infer(images[:2])[0]) == 2


def pid_of(runner: OpenVinoProcess) -> int:
    return runner._child.process.pid


def stop(runner: OpenVinoProcess) -> None:
    """Have its process compute nothing until SIGCONT, so that a call is under way for as long as a test needs."""
    os.kill(pid_of(runner), signal.SIGSTOP)


def wait_until(happened: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.01)


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The processes that are started during the test."""
    processes: list[Any] = []

    class Noted(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            processes.append(self)

    monkeypatch.setattr(subprocess, "Popen", Noted)
    return processes


IMAGES = np.zeros((1, 3, 32, 48), np.float32)
posix = pytest.mark.skipif(os.name != "posix", reason="sends signals")


@posix
@needs_openvino
def test_process_that_is_killed_is_an_error_then_and_later(model: Path) -> None:
    with OpenVinoProcess(model, threads=1) as runner:
        runner.infer(IMAGES)
        stop(runner)
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(runner.infer, IMAGES)
            wait_until(runner._lock.locked)
            os.kill(pid_of(runner), signal.SIGKILL)
            with pytest.raises(EngineError, match=r"model\.onnx: OpenVINO's process ended \(signal SIGKILL\)"):
                answer.result()
        with pytest.raises(EngineError, match="signal SIGKILL"):
            runner.infer(IMAGES)
        assert runner.describe()["runtime"] == "openvino"


@posix
@needs_openvino
def test_process_that_was_killed_between_calls_is_an_error(model: Path) -> None:
    with OpenVinoProcess(model, threads=1) as runner:
        os.kill(pid_of(runner), signal.SIGSEGV)
        wait_until(lambda: is_gone(pid_of(runner)))
        with pytest.raises(EngineError, match="signal SIGSEGV"):
            runner.infer(np.zeros((64, 3, 32, 48), np.float32))  # more than a pipe holds


@posix
@needs_openvino
def test_ctrl_c_during_a_call_never_makes_its_answer_that_of_the_next(model: Path) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with OpenVinoProcess(model, threads=1) as runner:
        stop(runner)
        before = signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        try:
            with pytest.raises(KeyboardInterrupt):
                runner.infer(IMAGES)
        finally:
            signal.signal(signal.SIGALRM, before)
        with pytest.raises(EngineError, match="OpenVINO's process ended"):
            runner.infer(IMAGES)


@posix
@needs_openvino
def test_ctrl_c_in_the_terminal_is_not_for_the_process(model: Path) -> None:
    with OpenVinoProcess(model, threads=1) as runner:
        os.kill(pid_of(runner), signal.SIGINT)
        runner.infer(IMAGES)
    wait_until(lambda: is_gone(pid_of(runner)))


@posix
@needs_openvino
def test_process_ends_with_the_one_that_asked_for_it(model: Path) -> None:
    program = f"""
import time
from prunedeploy_engines.runtimes.openvino.process import OpenVinoProcess
runner = OpenVinoProcess({str(model)!r}, threads=1)
print(runner._child.process.pid, flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert not is_gone(pid)
        parent.kill()
    wait_until(lambda: is_gone(pid))


@pytest.mark.parametrize(
    ("program", "kind", "told"),
    [
        ("raise ImportError('no such library')", RuntimeUnavailableError, r"no such library.*\[openvino\]'"),
        ("print(1); import os; os.write(1, b'1'); raise OSError('broken')", RuntimeUnavailableError, "broken"),
        ("__version__ = '1'", RuntimeError, "in OpenVINO's process:\nTraceback .*no attribute 'Core'"),
        ("import sys; sys.exit('bye')", EngineError, r"model\.onnx: OpenVINO's process ended \(exit code 1, bye\)"),
        ("import os; os.abort()", EngineError, r"model\.onnx: OpenVINO's process ended \(signal SIGABRT"),
    ],
)
def test_openvino_that_does_not_load_is_told_whatever_it_does(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, kind: type[Exception], told: str
) -> None:
    (tmp_path / "openvino.py").write_text(program)
    monkeypatch.syspath_prepend(tmp_path)  # the process imports from where this one does
    with pytest.raises(kind, match=f"(?s){told}") as caught:
        OpenVinoProcess(model)
    assert type(caught.value) is kind


def test_messages_bring_arrays_of_any_type_shape_and_layout() -> None:
    arrays = [
        np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(2, 0, 1),
        np.arange(6, dtype=np.uint8)[::2],
        np.zeros((2, 0, 4), np.int64),
    ]
    stream = io.BytesIO()
    send(stream, {"do": "this"}, arrays)
    send(stream, {"and": "that"})
    stream.seek(0)
    message, received = receive(stream)
    assert message == {"do": "this"}
    for ours, reference in zip(received, arrays, strict=True):
        assert (ours.dtype, ours.shape) == (reference.dtype, reference.shape)
        assert np.array_equal(ours, reference)
        assert ours.flags["OWNDATA"] or ours.base is None
    assert receive(stream) == ({"and": "that"}, [])


@pytest.mark.parametrize("length", [0, 5, 60, -1])
def test_message_that_breaks_off_is_the_end(length: int) -> None:
    whole = io.BytesIO()
    send(whole, {"do": "this"}, [np.zeros(10, np.float32)])
    with pytest.raises(EOFError):
        receive(io.BytesIO(whole.getvalue()[:length]))
