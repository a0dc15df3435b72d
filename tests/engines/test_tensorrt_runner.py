"""What the TensorRT runner refuses can be seen anywhere; that it infers right only on a GPU (`-m gpu`)."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from prunedeploy_engines import tensorrt_runner
from prunedeploy_engines.engine_from_onnx import engine_from_onnx, sidecar_path
from prunedeploy_engines.errors import EngineError, RuntimeUnavailableError
from prunedeploy_engines.tensorrt_library import (
    CudaDevice,
    cuda_driver_problem,
    installed_version,
    load_library,
)
from prunedeploy_engines.tensorrt_runner import (
    CudaCalls,
    TensorRTRunner,
    check_batch,
    deserialise,
    tensorrt_unavailable_reason,
)

onnx = pytest.importorskip("onnx", reason="needs onnx to make the networks")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

needs_rtx = pytest.mark.skipif(
    installed_version("tensorrt_rtx") is None, reason="needs tensorrt-rtx (pip install 'prunedeploy[rtx]')"
)
needs_no_gpu = pytest.mark.skipif(cuda_driver_problem() is None, reason="a GPU is here: plans do run")


def detector(kernel=3):
    """One convolution, then boxes (N, 64, 4) and scores (N, 64, 2) from images (N, 3, 16, 16)."""
    rng = np.random.default_rng(0)
    constants = {
        "w": rng.normal(size=(6, 3, kernel, kernel)).astype(np.float32),
        "flat": np.array([0, 6, -1], np.int64),
        "parts": np.array([4, 2], np.int64),
    }
    pad = [kernel // 2] * 4
    nodes = [
        helper.make_node("Conv", ["images", "w"], ["c"], pads=pad, strides=[2, 2]),
        helper.make_node("Reshape", ["c", "flat"], ["r"]),
        helper.make_node("Transpose", ["r"], ["t"], perm=[0, 2, 1]),
        helper.make_node("Split", ["t", "parts"], ["boxes", "logits"], axis=2),
        helper.make_node("Sigmoid", ["logits"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "detector",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 3, 16, 16])],
        [
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["N", 64, 4]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 64, 2]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.fixture
def engine(tmp_path):
    if installed_version("tensorrt_rtx") is None:
        pytest.skip("needs tensorrt-rtx (pip install 'prunedeploy[rtx]')")
    onnx.save(detector(), tmp_path / "model.onnx")
    return engine_from_onnx(tmp_path / "model.onnx", tmp_path, target="sm86", batch=(2, 2, 4))


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


def test_plan_of_another_library_than_asked_for(engine):
    assert "plan of tensorrt_rtx, not of tensorrt" in str(error_of(engine.path, library="tensorrt"))


def test_plan_of_an_unknown_library(engine):
    edit_sidecar(engine, library="openvino")
    assert "unknown library 'openvino'" in str(error_of(engine.path))


@pytest.mark.skipif(installed_version("tensorrt") is not None, reason="full TensorRT is installed here")
def test_plan_of_a_library_that_is_not_installed(engine):
    edit_sidecar(engine, library="tensorrt")
    error = error_of(engine.path)
    assert isinstance(error, RuntimeUnavailableError)
    assert "prunedeploy[gpu]" in str(error)


@pytest.mark.parametrize("change", [{"schema_version": 99}, {"profile": [1]}, {"bytes": "many"}])
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
        "import sys; from prunedeploy_engines.tensorrt_runner import tensorrt_unavailable_reason as why;"
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


class NoGpu:
    """Stands in for CUDA and TensorRT where neither runs: real memory, bounds checked, ONNX Runtime inside.

    It shows that the runner addresses, sizes and frees its buffers right; whether TensorRT agrees only
    `-m gpu` can show.
    """

    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)  # noqa: N815

    def __init__(self, model, largest):
        import onnxruntime

        self.session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        self.blocks, self.addresses, self.streams, self.fail = {}, {}, set(), set()
        self.shapes = {"boxes": (64, 4), "scores": (64, 2), "images": (3, 16, 16)}
        self.batch, self.largest = 0, largest
        self.trt = SimpleNamespace(
            TensorIOMode=SimpleNamespace(INPUT=0),
            DataType=SimpleNamespace(FLOAT=0),
            nptype=lambda _: np.float32,
            Runtime=lambda _: SimpleNamespace(deserialize_cuda_engine=lambda plan: self),
        )
        self.logger = SimpleNamespace(collect=lambda: contextlib.nullcontext([]))
        self.num_io_tensors, self.name, self.version = 3, "tensorrt_rtx", "0"

    # CUDA
    def _allocate(self, size):
        block = ctypes.create_string_buffer(size)
        self.blocks[ctypes.addressof(block)] = block
        return 0, ctypes.addressof(block)

    def _free(self, address):
        del self.blocks[address]
        return (0,)

    def cudaMemcpyAsync(self, target, source, size, kind, stream):  # noqa: N802
        assert stream in self.streams
        assert size <= min(len(self.blocks[target]), len(self.blocks[source]))
        ctypes.memmove(target, source, size)
        return (0,)

    def cudaMalloc(self, size):  # noqa: N802
        return (2, None) if "cudaMalloc" in self.fail and len(self.blocks) >= 3 else self._allocate(size)

    def cudaGetErrorString(self, code):  # noqa: N802
        return 0, b"out of memory"

    def cudaStreamCreate(self):  # noqa: N802
        self.streams.add(7)
        return 0, 7

    def cudaStreamDestroy(self, stream):  # noqa: N802
        self.streams.remove(stream)
        return (0,)

    cudaMallocHost, cudaFree, cudaFreeHost = _allocate, _free, _free  # noqa: N815

    def cudaStreamSynchronize(self, stream):  # noqa: N802
        return (0,)

    # Engine and context
    def create_execution_context(self):
        return self

    def get_tensor_name(self, i):
        return ("images", "scores", "boxes")[i]

    def get_tensor_mode(self, name):
        return int(name != "images")

    def get_tensor_dtype(self, name):
        return 0

    def get_tensor_shape(self, name):
        return (self.batch or -1, *self.shapes[name])

    def set_input_shape(self, name, shape):
        self.batch = shape[0]
        return shape[0] <= self.largest

    def set_tensor_address(self, name, address):
        self.addresses[name] = self.blocks[address]
        return True

    def execute_async_v3(self, stream):
        shape = (self.batch, 3, 16, 16)
        images = np.frombuffer(self.addresses["images"], np.float32, int(np.prod(shape))).reshape(shape)
        for name in ("boxes", "scores"):
            (value,) = self.session.run([name], {"images": images})
            ctypes.memmove(self.addresses[name], value.tobytes(), value.nbytes)
        return "execute" not in self.fail


@pytest.fixture
def no_gpu(engine, monkeypatch):
    fake = NoGpu(detector().SerializeToString(), largest=4)
    monkeypatch.setattr(tensorrt_runner, "tensorrt_unavailable_reason", lambda library: None)
    monkeypatch.setattr(tensorrt_runner, "cuda_device", lambda: CudaDevice("none", "sm86"))
    monkeypatch.setattr(tensorrt_runner, "load_library", lambda name: fake)
    monkeypatch.setattr(tensorrt_runner, "_cudart", lambda: fake)
    return fake


def test_runner_moves_each_batch_whole_and_frees_everything(engine, no_gpu):
    rng = np.random.default_rng(1)
    with TensorRTRunner(engine.path) as runner:
        assert runner.input_size == (16, 16)
        assert json.loads(json.dumps(runner.describe()))["precision"] == "fp32"
        assert len(no_gpu.blocks) == 6  # three tensors, each on the host and on the device
        kept = []
        for batch in (2, 4, 3, 2):
            images = rng.random((batch, 3, 16, 16), dtype=np.float32)
            expected = no_gpu.session.run(["boxes", "scores"], {"images": images})
            kept.append((runner.infer(images), expected))
        for found, expected in kept:  # compared at the end: a later call must not have changed them
            np.testing.assert_array_equal(found[0], expected[0])
            np.testing.assert_array_equal(found[1], expected[1])
        for batch in (1, 5):
            with pytest.raises(EngineError, match="images takes 2 to 4"):
                runner.infer(np.zeros((batch, 3, 16, 16), np.float32))
    assert not no_gpu.blocks
    assert not no_gpu.streams
    runner.close()
    with pytest.raises(ValueError, match="closed"):
        runner.infer(images)


def test_runner_takes_images_that_are_not_contiguous(engine, no_gpu):
    nhwc = np.random.default_rng(1).random((2, 16, 16, 3), dtype=np.float32)
    images = nhwc.transpose(0, 3, 1, 2)
    with TensorRTRunner(engine.path) as runner:
        boxes, _ = runner.infer(images)
    np.testing.assert_array_equal(boxes, no_gpu.session.run(["boxes"], {"images": images.copy()})[0])


def test_runner_that_cannot_allocate_frees_what_it_had(engine, no_gpu):
    no_gpu.fail.add("cudaMalloc")
    with pytest.raises(EngineError, match=r"cudaMalloc failed: out of memory \(code 2\)"):
        TensorRTRunner(engine.path)
    assert not no_gpu.blocks
    assert not no_gpu.streams


def test_failed_execution_is_an_error_not_old_output(engine, no_gpu):
    with TensorRTRunner(engine.path) as runner:
        no_gpu.fail.add("execute")
        with pytest.raises(EngineError, match="does not run"):
            runner.infer(np.zeros((2, 3, 16, 16), np.float32))


def test_engine_for_another_gpu_is_refused(engine, no_gpu, monkeypatch):
    monkeypatch.setattr(tensorrt_runner, "cuda_device", lambda: CudaDevice("Orin", "sm87"))
    assert "was built for sm86, here is Orin (sm87)" in str(error_of(engine.path))


@pytest.mark.gpu
def test_engine_computes_what_onnx_runtime_computes(tmp_path):
    reason = tensorrt_unavailable_reason()
    if reason is not None:
        pytest.skip(f"no TensorRT plan can run here: {reason}")
    onnxruntime = pytest.importorskip("onnxruntime")
    onnx.save(detector(), tmp_path / "model.onnx")
    plan = engine_from_onnx(tmp_path / "model.onnx", tmp_path, target="device", batch=(1, 2, 4))
    before = hashlib.sha256(plan.path.read_bytes()).hexdigest()
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(1)
    with TensorRTRunner(plan.path) as runner:
        assert runner.input_size == (16, 16)
        assert runner.describe()["runtime"] == "tensorrt"
        kept = []
        for batch in (1, 4, 2, 1):
            images = rng.random((batch, 3, 16, 16), dtype=np.float32)
            found = runner.infer(images)
            expected = session.run(["boxes", "scores"], {"images": images})
            for ours, theirs in zip(found, expected, strict=True):
                # TF32, the builder's default, rounds factors to 10 bits: about 1e-3 of the largest value.
                np.testing.assert_allclose(ours, theirs, rtol=0, atol=5e-3 * np.abs(theirs).max())
            kept.append((found[0], found[0].copy()))
        assert all(np.array_equal(array, copy) for array, copy in kept)
        with pytest.raises(EngineError, match="images takes 1 to 4"):
            runner.infer(np.zeros((5, 3, 16, 16), np.float32))
        runner.infer(images)
    with pytest.raises(ValueError, match="closed"):
        runner.infer(images)
    assert hashlib.sha256(plan.path.read_bytes()).hexdigest() == before
