"""An engine is what was ordered: what its layers compute in, read back from real TensorRT-RTX networks."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace

import numpy as np
import pytest

from prunedeploy_engines.builder.build import EngineBuild
from prunedeploy_engines.builder.from_onnx import engine_from_onnx, read_engine_file
from prunedeploy_engines.builder.precision import (
    built_problem,
    counted,
    network_precision,
    precision_problem,
)
from prunedeploy_engines.errors import EngineError
from prunedeploy_engines.runtimes.tensorrt.inspection import described_layers, layers_of_engine
from prunedeploy_engines.runtimes.tensorrt.library import (
    CudaDevice,
    cuda_driver_problem,
    installed_version,
    load_library,
)

onnx = pytest.importorskip("onnx", reason="needs onnx to make the networks")
from onnx import TensorProto, numpy_helper  # noqa: E402

from engine_networks import CLASS_NAMES, KINDS, convolutional_detector, variant, write_precisions  # noqa: E402

needs_rtx = pytest.mark.skipif(
    installed_version("tensorrt_rtx") is None, reason="needs tensorrt-rtx (pip install 'prunedeploy[rtx]')"
)


@pytest.fixture(scope="module")
def precisions(tmp_path_factory):
    return write_precisions(tmp_path_factory.mktemp("precisions"))


def build(path, out, **options):
    return engine_from_onnx(path, out, target="sm86", batch=(1, 2, 4), **options)


def refused(path, out, **options) -> str:
    with pytest.raises(EngineError) as caught:
        build(path, out, **options)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)
    assert not out.is_dir() or not list(out.iterdir())
    return str(caught.value)


@needs_rtx
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("uint8", "nms"), [(False, False), (True, False), (False, True), (True, True)])
def test_every_kind_of_file_that_we_export_becomes_an_engine(precisions, tmp_path, kind, uint8, nms):
    path = variant(precisions[kind], uint8=uint8, nms=nms)
    engine = build(path, tmp_path, precision=kind)
    assert engine.precision == kind
    # The last convolution of an int8 file, which gives the boxes, stays in fp32.
    assert engine.layers == ({"int8": 2, "fp32": 1} if kind == "int8" else {kind: 3})
    assert engine.uint8_input == uint8
    assert engine.class_names == list(CLASS_NAMES)
    suppression = {"score_threshold": 0.25, "iou_threshold": 0.45, "max_detections": 20}
    assert engine.nms == (suppression if nms else None)
    size = [32, 32, 3] if uint8 else [3, 32, 32]
    assert engine.profile == {"images": [[1, *size], [2, *size], [4, *size]]}
    assert read_engine_file(engine.path) == engine


@needs_rtx
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ordered", KINDS)
def test_precision_that_the_file_does_not_have_is_refused(precisions, tmp_path, kind, ordered):
    if ordered != kind:
        line = refused(precisions[kind], tmp_path / "out", precision=ordered)
        assert f"{ordered} was ordered, but" in line
        assert f"give an ONNX file that is {ordered}" in line


@needs_rtx
@pytest.mark.parametrize(
    ("says", "reason"),
    [("fp16", "3 of 3 convolutions are not fp16, e.g. conv0 is fp32"), ("int8", "none of its 3 convolutions")],
)
def test_file_that_says_what_it_is_not_is_refused(tmp_path, says, reason):
    path = tmp_path / "model.onnx"
    onnx.save(convolutional_detector(precision=says), path)
    assert reason in refused(path, tmp_path / "out")


@needs_rtx
def test_convolution_that_should_be_int8_and_is_not_is_named(precisions, tmp_path):
    model = onnx.load(precisions["int8"])
    quantisation = next(entry for entry in model.metadata_props if entry.key == "quantisation")
    assert json.loads(quantisation.value)["skipped"] == ["conv2"]
    quantisation.value = json.dumps({**json.loads(quantisation.value), "skipped": []})
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    assert "1 of 3 convolutions are not int8, e.g. conv2 is fp32" in refused(path, tmp_path / "out")


@needs_rtx
def test_half_precision_outside_the_convolutions_is_not_fp32(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(convolutional_detector(TensorProto.FLOAT16), path)
    assert "fp16 was found in an fp32 network" in refused(path, tmp_path / "out")


@needs_rtx
@pytest.mark.parametrize("kind", KINDS)
def test_file_that_says_nothing_is_what_its_layers_are(precisions, tmp_path, kind):
    model = onnx.load(precisions[kind])
    del model.metadata_props[:]
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    assert build(path, tmp_path).precision == kind


@needs_rtx
def test_convolution_with_quantised_input_but_float_weights_is_not_int8(precisions, tmp_path):
    model = onnx.load(precisions["int8"])
    for node in model.graph.node:
        if node.op_type == "Conv" and node.name != "conv2":
            shape = (8, 3, 3, 3) if node.name == "conv0" else (16, 8, 3, 3)
            node.input[1] = f"{node.name}/float"
            model.graph.initializer.append(numpy_helper.from_array(np.ones(shape, np.float32), node.input[1]))
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    assert "none of its 3 convolutions computes in int8" in refused(path, tmp_path / "out")


@needs_rtx
def test_unsigned_activations_are_sent_to_the_signed_file(precisions, tmp_path):
    line = refused(precisions["int8 cpu"], tmp_path / "out")
    assert "unsigned activations" in line
    assert "model.int8.gpu.onnx" in line


@needs_rtx
@pytest.mark.parametrize("zero_point", [np.uint8(0), np.uint8(128), np.int8(3)])
def test_zero_points_that_tensorrt_would_misread_are_refused_without_our_metadata(precisions, tmp_path, zero_point):
    """A uint8 zero point of 0 is the dangerous one: the library warns, and takes the values for signed."""
    model = onnx.load(precisions["int8"])
    del model.metadata_props[:]
    points = {node.input[2] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    for tensor in model.graph.initializer:
        if tensor.name in points:
            tensor.CopyFrom(numpy_helper.from_array(np.array(zero_point), tensor.name))
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    assert "model.int8.gpu.onnx" in refused(path, tmp_path / "out")


@needs_rtx
def test_fp32_is_fp32_unless_tf32_is_asked_for(precisions, tmp_path):
    """Both libraries would round the factors of fp32 convolutions to 10 bits by themselves."""
    plain = build(precisions["fp32"], tmp_path)
    assert plain.flags["tf32"] is False
    assert plain.flags["builder_flags"] == []
    plan = plain.path.read_bytes()
    rounding = build(precisions["fp32"], tmp_path, tf32=True)
    assert rounding.flags["tf32"] is True
    assert rounding.flags["builder_flags"] == ["TF32"]
    assert rounding.path.read_bytes() != plan


@needs_rtx
def test_sparsity_is_only_said_to_be_asked_for(precisions, tmp_path):
    assert build(precisions["fp32"], tmp_path).sparsity is None
    engine = build(precisions["fp32"], tmp_path, sparse=True)
    assert engine.sparsity == "2:4 asked for"
    assert engine.flags["builder_flags"] == ["SPARSE_WEIGHTS"]


def test_share_of_the_convolutions():
    assert counted({"a": "fp32", "b": "int8", "c": "int8", "d": "int8"}) == {"int8": 3, "fp32": 1}


@pytest.mark.parametrize(
    ("layers", "types", "word"),
    [
        (["int8", "fp32"], {"int8", "fp32"}, "int8"),
        (["fp16", "fp32"], {"fp16", "fp32"}, "fp16"),
        (["fp32"], {"fp32", "int8"}, "fp32"),  # something is quantised, but no convolution computes in it
        ([], {"fp16", "fp32"}, "fp16"),
        ([], set(), "fp32"),
    ],
)
def test_word_for_a_network(layers, types, word):
    assert network_precision(dict(enumerate(layers)), types) == word


@pytest.mark.parametrize(
    ("ordered", "layers", "skipped", "problem"),
    [
        ("fp32", {"a": "fp32"}, None, None),
        ("fp32", {"a": "fp32", "b": "fp16"}, None, "1 of 2 convolutions are not fp32, e.g. b is fp16"),
        ("fp16", {"a": "fp16"}, None, None),
        ("int8", {"a": "int8", "b": "fp32"}, None, None),
        ("int8", {"a": "int8", "b": "fp32"}, ["b"], None),
        ("int8", {"a": "int8", "b": "fp32"}, ["a"], "1 of 2 convolutions are not int8, e.g. b is fp32"),
        ("int8", {"a": "fp32", "b": "fp32"}, ["a", "b"], "none of its 2 convolutions computes in int8"),
        ("int8", {}, None, None),
    ],
)
def test_problem_with_an_order(ordered, layers, skipped, problem):
    assert precision_problem(ordered, layers, (), skipped) == problem


@pytest.mark.parametrize(
    ("ordered", "layers", "problem"),
    [
        ("fp32", {"a": "fp32", "b": "fp32"}, None),
        ("fp32", {"a": "fp32", "b": "fp16"}, "1 of 2 convolutions are not fp32, e.g. b is fp16"),
        ("fp16", {"a": "fp16", "b": "fp32"}, None),  # it may compute one in more bits
        ("fp16", {"a": "fp32", "b": "fp32"}, "none of its 2 convolutions computes in fp16"),
        ("fp16", {"a": "fp16", "b": "int8"}, "1 of 2 convolutions are not fp16, e.g. b is int8"),
        ("int8", {"a": "int8", "b": "fp32"}, None),
        ("int8", {"a": "fp16", "b": "fp32"}, "none of its 2 convolutions computes in int8"),
        ("int8", {}, None),  # the engine does not tell
    ],
)
def test_problem_with_a_built_engine(ordered, layers, problem):
    assert built_problem(ordered, layers) == problem


@pytest.fixture
def as_full_tensorrt(monkeypatch):
    """TensorRT-RTX under the other's name, on a GPU that is not there: what only full TensorRT does, is done."""
    rtx = load_library("tensorrt_rtx")
    home = sys.modules["prunedeploy_engines.builder.from_onnx"]
    monkeypatch.setattr(home, "load_library", lambda name: replace(rtx, name="tensorrt"))
    monkeypatch.setattr(home, "cuda_device", lambda: CudaDevice("GPU 1", "sm86"))


@pytest.fixture
def said_of_layers(as_full_tensorrt, monkeypatch):
    """What the built engine's inspector says: without a GPU no plan is loaded that could be asked."""
    said = {}
    monkeypatch.setattr(EngineBuild, "built_layers", lambda self, plan: said)
    return said


@needs_rtx
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # RTX has the timing cache's calls and says they do nothing
def test_full_tensorrt_s_engine_is_read_back_and_its_timing_cache_kept(precisions, tmp_path, said_of_layers):
    said_of_layers.update(a="fp16", b="fp16", c="fp32")
    cache = tmp_path / "timing.cache"
    engine = build(precisions["fp16"], tmp_path / "out", library="tensorrt", timing_cache=cache)
    assert (engine.device, engine.library) == ("GPU 1", "tensorrt")
    assert (engine.layers, engine.layers_from) == ({"fp16": 2, "fp32": 1}, "engine")
    assert engine.computes_in == {"fp16": 2 / 3, "fp32": 1 / 3}
    assert cache.is_file()
    said_of_layers.clear()
    engine = build(precisions["fp16"], tmp_path / "other", library="tensorrt")
    assert (engine.layers, engine.layers_from) == ({"fp16": 3}, "network")


@needs_rtx
def test_full_tensorrt_s_engine_that_is_not_what_was_ordered_is_refused(precisions, tmp_path, said_of_layers):
    said_of_layers.update(a="fp32", b="fp32")
    line = refused(precisions["int8"], tmp_path / "out", library="tensorrt")
    assert "in the engine that tensorrt made none of its 2 convolutions computes in int8" in line


@needs_rtx
@pytest.mark.skipif(cuda_driver_problem() is None, reason="a GPU is here: plans do load")
def test_plan_that_does_not_load_where_it_was_built_is_refused(precisions, tmp_path, as_full_tensorrt):
    assert "cannot load what it built" in refused(precisions["fp32"], tmp_path / "out", library="tensorrt")


# The first layer is the example of NVIDIA's developer guide for TensorRT 8 to 10; 11 has two entries in place of
# "Format/Datatype"; without an execution context the type stands alone.
INSPECTED = {
    "Layers": [
        {
            "Name": "res4_0_branch2a",
            "LayerType": "CaskConvolution",
            "Inputs": [{"Name": "x", "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format."}],
            "ParameterType": "Convolution",
            "Weights": {"Type": "Int8", "Count": 131072},
        },
        {"Name": "conv_11", "LayerType": "CaskConvolution", "Inputs": [{"Format": "Row major", "Datatype": "Half"}]},
        {"Name": "fused", "LayerType": "correlation", "Inputs": [{"Format/Datatype": "Float"}]},
        {"Name": "bf", "LayerType": "CaskDeconvolution", "Inputs": [{"Format/Datatype": "Row major linear BFloat16"}]},
        {"Name": "sum", "LayerType": "kgen", "Inputs": [{"Format/Datatype": "Channel major FP16 format"}]},
        {
            "Name": "with its input's conversion",
            "LayerType": "CaskConvolution",
            "Inputs": [{"Format/Datatype": "Float"}],
            "Weights": {"Type": "Half", "Count": 7},
        },
        {"Name": "nothing", "LayerType": "CaskConvolution", "Inputs": []},
        "a name without details",
    ]
}


def test_built_engine_is_read_back_from_its_inspector():
    assert layers_of_engine(json.dumps(INSPECTED)) == {
        "res4_0_branch2a": "int8",
        "conv_11": "fp16",
        "fused": "fp32",
        "bf": "bf16",
        "with its input's conversion": "fp16",
    }
    assert described_layers(json.dumps(INSPECTED))["sum"] == ("kgen", "fp16")
    assert described_layers(json.dumps(INSPECTED))["res4_0_branch2a"] == ("Convolution", "int8")


@pytest.mark.parametrize("information", ["", "not JSON", '{"Layers": ["a", "b"]}', "[]", "null"])
def test_inspector_that_tells_names_only_tells_no_precision(information):
    assert layers_of_engine(information) == {}


@needs_rtx
def test_plan_keeps_what_a_profiler_needs(precisions, tmp_path):
    """Without detailed verbosity neither inspector nor profiler tell kinds and types."""
    plan = build(precisions["fp32"], tmp_path).path.read_bytes()
    assert re.search(rb"conv0", plan)
