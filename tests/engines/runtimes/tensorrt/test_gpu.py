"""Engines that are built and run on a GPU; everywhere else each test says why it does not run."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from prunedeploy_engines.builder.from_onnx import engine_from_onnx
from prunedeploy_engines.builder.timing_cache import TimingCache
from prunedeploy_engines.errors import EngineError
from prunedeploy_engines.runtimes.tensorrt.library import cuda_device, load_library
from prunedeploy_engines.runtimes.tensorrt.plan import tensorrt_unavailable_reason
from prunedeploy_engines.runtimes.tensorrt.runner import TensorRTRunner

onnx = pytest.importorskip("onnx", reason="needs onnx to make the networks")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs ONNX Runtime as the reference")
from contracts import RunnerContract  # noqa: E402
from engine_networks import SIZE, convolutional_detector, variant, write_precisions  # noqa: E402

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def gpu():
    reason = tensorrt_unavailable_reason()
    if reason is not None:
        pytest.skip(f"no TensorRT plan can run here: {reason}")


@pytest.fixture
def full_tensorrt(gpu):
    reason = tensorrt_unavailable_reason("tensorrt")
    if reason is not None:
        pytest.skip(f"no plan of full TensorRT can run here: {reason}")


@pytest.fixture
def model_path(tmp_path):
    onnx.save(convolutional_detector(), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def build(path, **options):
    return engine_from_onnx(path, path.parent / "engines", target="device", batch=(1, 2, 5), **options)


def on_cpu(path, images):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images})


def random_images(batch, seed=1):
    return np.random.default_rng(seed).random((batch, 3, SIZE, SIZE), dtype=np.float32)


class TestContract(RunnerContract):
    @pytest.fixture(params=["plain", "uint8", "nms", "graph"])
    def runner(self, request, model_path):
        path = variant(model_path, uint8="uint8" in request.param, nms="nms" in request.param)
        with TensorRTRunner(build(path).path, cuda_graph=request.param == "graph") as runner:
            yield runner


# Of the largest value: fp32 without TF32 differs by the order of additions only; an int8 convolution may round
# a value to the neighbour of what the reference chose.
@pytest.mark.parametrize(("kind", "tolerance"), [("fp32", 1e-5), ("fp16", 1e-2), ("int8", 5e-2)])
def test_engine_computes_what_onnx_runtime_computes(tmp_path, kind, tolerance):
    path = write_precisions(tmp_path)[kind]
    engine = build(path)
    before = hashlib.sha256(engine.path.read_bytes()).hexdigest()
    assert engine.precision == kind
    with TensorRTRunner(engine.path) as runner:
        assert runner.describe()["runtime"] == "tensorrt"
        for batch in (1, 5, 2, 1):
            images = random_images(batch)
            for ours, theirs in zip(runner.infer(images), on_cpu(path, images), strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())
        with pytest.raises(EngineError, match="images takes 1 to 5"):
            runner.infer(random_images(6))
    assert hashlib.sha256(engine.path.read_bytes()).hexdigest() == before


def test_graph_computes_the_same(model_path):
    engine = build(model_path)
    with TensorRTRunner(engine.path) as plain, TensorRTRunner(engine.path, cuda_graph=True) as recorded:
        for batch in (2, 2, 3, 3, 2):
            images = random_images(batch, seed=batch)
            for ours, theirs in zip(recorded.infer(images), plain.infer(images), strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_compute_call_tells_the_gpu_s_time(model_path):
    with TensorRTRunner(build(model_path).path) as runner:
        call = runner.compute_call(random_images(2))
        assert all(call() > 0 for _ in range(3))


def test_profile_names_the_layers(model_path):
    with TensorRTRunner(build(model_path).path) as runner:
        rows = runner.profile(random_images(2), top=None)
    assert rows
    assert sum(row.share for row in rows) == pytest.approx(1.0)


@pytest.mark.parametrize("kind", ["fp32", "fp16", "int8"])
def test_full_tensorrt_s_engine_is_read_back(tmp_path, full_tensorrt, kind):
    engine = build(write_precisions(tmp_path)[kind], library="tensorrt")
    assert engine.layers_from == "engine"
    assert engine.layers.get(kind, 0) > 0


def test_timing_cache_is_written_and_taken_again(model_path, full_tensorrt, tmp_path):
    path = tmp_path / "timing.cache"
    build(model_path, library="tensorrt", timing_cache=path)
    library = load_library("tensorrt")
    config = library.trt.Builder(library.logger).create_builder_config()
    assert TimingCache(path, library, cuda_device().name).attach(config)
