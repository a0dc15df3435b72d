"""How an engine is run, on a GPU that is played by `StandIn`; the engine itself is a real one of TensorRT-RTX."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from prunedeploy_engines.builder.from_onnx import engine_from_onnx
from prunedeploy_engines.detection.letterbox import to_uint8_input
from prunedeploy_engines.detection.nms import detections_from
from prunedeploy_engines.errors import EngineError
from prunedeploy_engines.files import file_sha256
from prunedeploy_engines.runtimes.tensorrt import runner as tensorrt_runner
from prunedeploy_engines.runtimes.tensorrt.library import CudaDevice, installed_version
from prunedeploy_engines.runtimes.tensorrt.runner import TensorRTRunner

onnx = pytest.importorskip("onnx", reason="needs onnx to make the networks")
pytest.importorskip("onnxruntime", reason="needs ONNX Runtime, which computes for the stand-in")
from contracts import RunnerContract  # noqa: E402
from engine_networks import CLASS_NAMES, SIZE, convolutional_detector, variant  # noqa: E402
from tensorrt_stand_in import StandIn  # noqa: E402

pytestmark = pytest.mark.skipif(
    installed_version("tensorrt_rtx") is None, reason="needs tensorrt-rtx (pip install 'prunedeploy[rtx]')"
)


class Opened:
    """A network, its engine, and the GPU that runs it.

    Tests on the same network share an engine in ``engines``, which none of them changes.
    """

    engines: Path

    def __init__(self, path, monkeypatch, batch=(1, 2, 5), **options):
        self.path = path
        self.engine = engine_from_onnx(path, self.engines / file_sha256(path), target="sm86", batch=batch)
        self.gpu = StandIn(path.read_bytes(), batch[2], **options)
        monkeypatch.setattr(tensorrt_runner, "tensorrt_unavailable_reason", lambda library: None)
        monkeypatch.setattr(tensorrt_runner, "cuda_device", lambda: CudaDevice("none", "sm86"))
        monkeypatch.setattr(tensorrt_runner, "load_library", lambda name: self.gpu)
        monkeypatch.setattr(tensorrt_runner, "cudart", lambda: self.gpu)

    def runner(self, **options):
        return TensorRTRunner(self.engine.path, **options)

    def expected(self, images):
        return self.gpu.session.run(None, {"images": images})


@pytest.fixture(scope="module", autouse=True)
def engines(tmp_path_factory):
    Opened.engines = tmp_path_factory.mktemp("engines")


@pytest.fixture
def model_path(tmp_path):
    onnx.save(convolutional_detector(), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


@pytest.fixture
def opened(model_path, monkeypatch):
    return Opened(model_path, monkeypatch)


def random_images(batch, seed=1):
    return np.random.default_rng(seed).random((batch, 3, SIZE, SIZE), dtype=np.float32)


class TestContract(RunnerContract):
    @pytest.fixture(params=["plain", "uint8", "nms", "uint8 nms", "graph"])
    def runner(self, request, model_path, monkeypatch):
        path = variant(model_path, uint8="uint8" in request.param, nms="nms" in request.param)
        with Opened(path, monkeypatch).runner(cuda_graph=request.param == "graph") as runner:
            yield runner


def test_runner_moves_each_batch_whole_and_frees_everything(opened):
    with opened.runner() as runner:
        assert runner.input_size == (SIZE, SIZE)
        assert len(opened.gpu.blocks) == 6  # three tensors, each on the host and on the device
        kept = []
        for batch in (2, 5, 3, 1):
            images = random_images(batch, seed=batch)
            kept.append((runner.infer(images), opened.expected(images)))
        for found, expected in kept:  # compared at the end: a later call must not have changed them
            np.testing.assert_array_equal(found[0], expected[0])
            np.testing.assert_array_equal(found[1], expected[1])
        with pytest.raises(EngineError, match="images takes 1 to 5"):
            runner.infer(random_images(6))
    assert not opened.gpu.blocks
    assert not opened.gpu.objects
    runner.close()
    with pytest.raises(ValueError, match="closed"):
        runner.infer(images)


def test_runner_says_what_it_computes_in(opened):
    with opened.runner() as runner:
        described = json.loads(json.dumps(runner.describe()))
    assert described["precision"] == "fp32"
    assert described["computes_in"] == {"fp32": 1.0}
    assert described["computes_in_from"] == "network"  # nothing more can be known without a GPU


def test_uint8_images_are_given_as_they_are_and_floats_are_rounded(model_path, monkeypatch):
    opened = Opened(variant(model_path, uint8=True), monkeypatch)
    images = random_images(2)
    expected = opened.expected(to_uint8_input(images))
    with opened.runner() as runner:
        assert runner.uint8_input
        assert runner.input_size == (SIZE, SIZE)
        for given in (images, to_uint8_input(images)):
            for found, wanted in zip(runner.infer(given), expected, strict=True):
                np.testing.assert_array_equal(found, wanted)


def test_suppression_in_the_engine_gives_the_detections_of_ours(model_path, monkeypatch):
    images = random_images(3)
    boxes, scores = Opened(model_path, monkeypatch).expected(images)
    opened = Opened(variant(model_path, nms=True), monkeypatch)
    with opened.runner() as runner:
        assert runner.nms_classes == len(CLASS_NAMES)
        assert runner.describe()["nms"]["max_detections"] == 20
        found_boxes, found_scores = runner.infer(images)
    for i in range(3):
        kept_boxes, kept_scores, class_ids = detections_from(
            boxes[i], scores[i], score_threshold=0.25, iou_threshold=0.45, max_detections=20
        )
        assert 0 < len(kept_scores) < np.count_nonzero(scores[i] > 0.25)  # some are dropped
        rows = np.arange(len(kept_scores))
        np.testing.assert_allclose(found_boxes[i, rows], kept_boxes, rtol=1e-5)
        np.testing.assert_allclose(found_scores[i, rows, class_ids], kept_scores, rtol=1e-6)
        assert np.count_nonzero(found_scores[i]) == len(kept_scores)


def test_suppression_without_class_names_is_refused(model_path, monkeypatch):
    path = variant(model_path, nms=True)
    model = onnx.load(path)
    for entry in [entry for entry in model.metadata_props if entry.key == "class_names"]:
        model.metadata_props.remove(entry)
    onnx.save(model, path)
    with pytest.raises(EngineError, match="number of classes is unknown"):
        Opened(path, monkeypatch).runner()


def test_half_precision_outputs_become_float32(tmp_path, monkeypatch):
    onnx.save(convolutional_detector(onnx.TensorProto.FLOAT16), tmp_path / "half.onnx")
    model = onnx.load(tmp_path / "half.onnx")
    del model.metadata_props[:]  # its layers are fp32, only its outputs are not
    onnx.save(model, tmp_path / "half.onnx")
    opened = Opened(tmp_path / "half.onnx", monkeypatch)
    images = random_images(2)
    with opened.runner() as runner:
        for found, expected in zip(runner.infer(images), opened.expected(images), strict=True):
            assert expected.dtype == np.float16
            assert found.dtype == np.float32
            np.testing.assert_array_equal(found, expected.astype(np.float32))


def test_graph_is_recorded_after_the_first_call_of_a_batch_size_and_then_launched(opened):
    with opened.runner(cuda_graph=True) as runner:
        steps = []
        for seed, batch in enumerate((2, 2, 2, 3, 3, 2)):
            images = random_images(batch, seed)
            for found, expected in zip(runner.infer(images), opened.expected(images), strict=True):
                np.testing.assert_array_equal(found, expected)
            steps.append((opened.gpu.counts["execute"], opened.gpu.counts["launch"]))
        assert steps == [(1, 0), (1, 1), (1, 2), (2, 2), (2, 3), (3, 3)]
        assert runner.describe()["cuda_graph"]
    assert not opened.gpu.objects


def test_work_that_cannot_be_recorded_is_an_error_that_says_so(opened):
    opened.gpu.fail.add("capture")
    with opened.runner(cuda_graph=True) as runner:
        with pytest.raises(EngineError, match=r"cannot be recorded as a CUDA graph: .*; open it without") as caught:
            runner.infer(random_images(2))
        assert "\n" not in str(caught.value)
        assert not opened.gpu.capturing
    assert not opened.gpu.objects


@pytest.mark.parametrize("graph", [False, True])
def test_compute_call_moves_the_images_once_and_tells_the_gpu_s_time(opened, graph):
    with opened.runner(cuda_graph=graph) as runner:
        call = runner.compute_call(random_images(2))
        assert [call() for _ in range(4)] == [1.25] * 4
        assert opened.gpu.counts["upload"] == 1
        assert opened.gpu.counts["execute"] + opened.gpu.counts["launch"] == 4
        other = random_images(2, seed=9)
        np.testing.assert_array_equal(runner.infer(other)[0], opened.expected(other)[0])
        call()  # the images that lie there now are others
        assert opened.gpu.counts["upload"] == 3
    with pytest.raises(ValueError, match="closed"):
        call()
    assert not opened.gpu.objects


@pytest.mark.parametrize("call", ["device", "cudaMemcpyAsync", "cudaStreamSynchronize", "execute"])
def test_gpu_that_fails_is_one_line_and_nothing_runs_on_it_again(opened, call):
    with opened.runner() as runner:
        images = random_images(2)
        before = runner.infer(images)
        kept = [array.copy() for array in before]
        opened.gpu.fail.add(call)
        with pytest.raises(EngineError, match=r"the GPU failed: .*; open it again") as caught:
            runner.infer(images)
        assert "\n" not in str(caught.value)
        assert opened.engine.path.name in str(caught.value)
        if call == "device":
            assert "unspecified launch failure (code 719)" in str(caught.value)
        else:
            opened.gpu.fail.clear()  # even if it answered again: what is in its memory is not known
        with pytest.raises(EngineError, match="has failed while this was open; open it again"):
            runner.infer(images)
        for array, copy in zip(before, kept, strict=True):
            np.testing.assert_array_equal(array, copy)
    runner.close()  # freeing fails as well on a GPU that is gone, and says nothing


def test_runner_that_cannot_allocate_frees_what_it_had(opened):
    opened.gpu.fail.add("cudaMalloc")
    with pytest.raises(EngineError, match=r"cudaMalloc failed: out of memory \(code 2\)"):
        opened.runner()
    assert not opened.gpu.blocks
    assert not opened.gpu.objects


def test_profile_ranks_the_layers(model_path, monkeypatch):
    layers = [
        {"Name": "first", "ms": 1.0, "LayerType": "CaskConvolution", "ParameterType": "Convolution",
         "Inputs": [{"Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}]},
        {"Name": "second", "ms": 3.0, "LayerType": "kgen", "Inputs": [{"Format/Datatype": "Half"}]},
    ]  # fmt: skip
    opened = Opened(model_path, monkeypatch, layer_information=json.dumps({"Layers": layers}))
    with opened.runner() as runner:
        rows = runner.profile(random_images(2), runs=4)
        assert opened.gpu.counts["execute"] == 5
        images = random_images(3)
        np.testing.assert_array_equal(runner.infer(images)[0], opened.expected(images)[0])
    assert [(row.name, row.kind, row.precision, row.mean_ms, row.share) for row in rows] == [
        ("second", "kgen", "fp16", 3.0, 0.75),
        ("first", "Convolution", "int8", 1.0, 0.25),
    ]
