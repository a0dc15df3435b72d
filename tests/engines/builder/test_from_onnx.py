"""Real engines, built by TensorRT-RTX on whatever machine runs this; no GPU is needed."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from prunedeploy_engines.builder.from_onnx import engine_from_onnx, read_engine_file, sidecar_path
from prunedeploy_engines.errors import EngineError, PrunedeployError, RuntimeUnavailableError
from prunedeploy_engines.runtimes.tensorrt.library import (
    installed_version,
    load_library,
    rtx_targets,
    version_problem,
)
from prunedeploy_engines.runtimes.tensorrt.log import summarise

onnx = pytest.importorskip("onnx", reason="needs onnx to make the networks")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

needs_rtx = pytest.mark.skipif(
    installed_version("tensorrt_rtx") is None, reason="needs tensorrt-rtx (pip install 'prunedeploy[rtx]')"
)


def yolo_like(
    batch="N",
    height=32,
    dtype=TensorProto.FLOAT,
    activation="LeakyRelu",
    quantised=False,
    zero_point=np.int8(0),  # noqa: B008
    opset=17,
    **metadata,
):
    """Two convolutions and a decode: images -> boxes (N, 256, 4), scores (N, 256, 5) at 32 x 32.

    The second convolution can be int8, the first never is.
    """
    kind = helper.tensor_dtype_to_np_dtype(dtype)
    rng = np.random.default_rng(0)
    constants = {
        "w1": rng.normal(size=(8, 3, 3, 3)).astype(kind),
        "w2": rng.normal(size=(9, 8, 1, 1)).astype(kind),
        "flat": np.array([0, 9, -1], np.int64),
        "parts": np.array([4, 5], np.int64),
    }
    nodes = [
        helper.make_node("Cast", ["images"], ["typed"], to=dtype),
        helper.make_node("Conv", ["typed", "w1"], ["c1"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node(activation, ["c1"], ["a1"], name="the_activation"),
        helper.make_node("Conv", ["a1q", "w2q"] if quantised else ["a1", "w2"], ["c2"], name="the_second"),
        helper.make_node("Reshape", ["c2", "flat"], ["r"]),
        helper.make_node("Transpose", ["r"], ["t"], perm=[0, 2, 1]),
        helper.make_node("Cast", ["t"], ["raw"], to=TensorProto.FLOAT),
        helper.make_node("Split", ["raw", "parts"], ["boxes", "logits"], axis=2),
        helper.make_node("Sigmoid", ["logits"], ["scores"]),
    ]
    if quantised:
        constants |= {"scale": np.array(0.05, np.float32), "zero": np.array(zero_point)}
        constants |= {"scales": np.full(9, 0.05, np.float32), "zeros": np.zeros(9, np.int8)}
        constants["w2"] = rng.integers(-127, 128, (9, 8, 1, 1), dtype=np.int8)
        nodes[3:3] = [
            helper.make_node("QuantizeLinear", ["a1", "scale", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["a1q"]),
            helper.make_node("DequantizeLinear", ["w2", "scales", "zeros"], ["w2q"], axis=0),
        ]
    graph = helper.make_graph(
        nodes,
        "yolo_like",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 3, height, 32])],
        [
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, None),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, None),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    helper.set_model_props(model, metadata)
    return model


@pytest.fixture
def model_path(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(yolo_like(), path)
    return path


def error_of(*arguments, **options) -> str:
    """The one line that a refused build prints; nothing may be left in the output folder."""
    with pytest.raises(EngineError) as caught:
        engine_from_onnx(*arguments, **options)
    line = str(caught.value)
    assert "\n" not in line
    out = Path(arguments[1])
    assert not out.is_dir() or not list(out.iterdir())
    return line


@needs_rtx
@pytest.mark.parametrize("target", ["sm75", "sm80", "sm86", "sm89", "sm120"])
def test_engine_is_built_ahead_of_time_and_its_sidecar_tells_the_truth(model_path, tmp_path, target):
    engine = engine_from_onnx(model_path, tmp_path / "out", target=target, batch=(1, 2, 4))

    plan = engine.path.read_bytes()
    assert engine.path == tmp_path / "out" / f"model.{target}.tensorrt_rtx.plan"
    assert plan.startswith(b"vtrt")
    # The library's own note inside the plan (seen in 1.7, not documented) of what its kernels are for.
    kernels_for = {text.strip().decode() for text in re.findall(rb"accelerators=\{(.*?)\}", plan)}
    assert kernels_for - {"*"} == {target}
    assert not engine.cached
    content = json.loads((tmp_path / "out" / f"{engine.path.name}.json").read_text())
    assert content["bytes"] == engine.bytes == len(plan)
    assert content["sha256"] == engine.sha256 == hashlib.sha256(plan).hexdigest()
    assert content["onnx_sha256"] == hashlib.sha256(model_path.read_bytes()).hexdigest()
    assert (content["library"], content["target"], content["device"]) == ("tensorrt_rtx", target, None)
    assert content["version"] == importlib.metadata.version("tensorrt-rtx")
    assert (content["precision"], content["layers"], content["layers_from"]) == ("fp32", {"fp32": 2}, "network")
    assert (content["uint8_input"], content["nms"], content["class_names"]) == (False, None, [])
    assert content["profile"] == {"images": [[1, 3, 32, 32], [2, 3, 32, 32], [4, 3, 32, 32]]}
    assert read_engine_file(engine.path) == engine
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        engine.path.name,
        f"{engine.path.name}.json",
    ]


@needs_rtx
def test_targets_are_those_of_the_library(model_path, tmp_path):
    assert {"sm75", "sm80", "sm86", "sm89", "sm120"} <= set(rtx_targets())
    numbers = [int(target[2:]) for target in rtx_targets()]
    assert numbers == sorted(numbers)


@needs_rtx
@pytest.mark.parametrize("target", ["sm87", "sm90", "sm999", "current", "none", "cpu", ""])
def test_target_without_rtx_kernels_is_sent_to_the_device(model_path, tmp_path, target):
    line = error_of(model_path, tmp_path / "out", target=target, library="tensorrt_rtx")
    assert repr(target) in line
    assert "sm86" in line
    assert "on the device itself with `prunedeploy engine`" in line


@needs_rtx
@pytest.mark.parametrize("garbage", [b"", b"this is not an ONNX file " * 20, bytes(range(256)) * 20])
def test_garbage_is_refused_even_if_the_parser_accepts_it(tmp_path, garbage):
    path = tmp_path / "garbage.onnx"
    path.write_bytes(garbage)
    line = error_of(path, tmp_path / "out", target="sm86")
    assert "garbage.onnx" in line
    assert "is not an ONNX" in line or "cannot parse" in line


@needs_rtx
def test_truncated_file_is_refused_wherever_it_is_cut(model_path, tmp_path):
    whole = model_path.read_bytes()
    path = tmp_path / "cut.onnx"
    for length in [*range(1, len(whole), len(whole) // 25), len(whole) - 1]:
        path.write_bytes(whole[:length])
        assert "cut.onnx" in error_of(path, tmp_path / "out", target="sm86"), length


@needs_rtx
def test_missing_operator_is_named_with_its_node(tmp_path):
    path = tmp_path / "odd.onnx"
    onnx.save(yolo_like(activation="Frobnicate"), path)
    line = error_of(path, tmp_path / "out", target="sm86")
    assert "operator Frobnicate" in line
    assert "the_activation" in line
    assert "not supported" in line


@needs_rtx
def test_refused_profile_says_what_the_library_said(model_path, tmp_path):
    line = error_of(model_path, tmp_path / "out", target="sm86", batch=(4, 2, 8))
    assert "(4, 2, 8)" in line
    assert "MIN<=OPT<=MAX" in line


@needs_rtx
@pytest.mark.parametrize(
    "options",
    [
        {"batch": (0, 1, 8)},
        {"batch": (1, 8)},
        {"optimization_level": 9},
        {"workspace_bytes": -5},
        {"precision": "fp7"},
    ],
)
def test_options_outside_their_range_are_refused(model_path, tmp_path, options):
    value = str(next(iter(options.values())))
    assert value in error_of(model_path, tmp_path / "out", target="sm86", **options)


@needs_rtx
def test_failed_build_says_what_the_library_said(model_path, tmp_path):
    line = error_of(model_path, tmp_path / "out", target="sm86", workspace_bytes=1024)
    assert "workspace" in line
    assert "CUDA driver" not in line  # the echo of the missing GPU would hide the reason


@needs_rtx
def test_fixed_batch_needs_no_profile_but_must_fit_the_one_asked_for(tmp_path):
    path = tmp_path / "fixed.onnx"
    onnx.save(yolo_like(batch=2), path)
    assert engine_from_onnx(path, tmp_path / "a", target="sm86").profile == {"images": [[2, 3, 32, 32]] * 3}
    assert "fixed batch 2" in error_of(path, tmp_path / "b", target="sm86", batch=(4, 4, 8))


@needs_rtx
def test_dynamic_height_is_refused(tmp_path):
    path = tmp_path / "dynamic.onnx"
    onnx.save(yolo_like(height="H"), path)
    assert "dynamic axis other than the batch" in error_of(path, tmp_path / "out", target="sm86")


@needs_rtx
def test_weights_in_another_file_are_refused(tmp_path):
    path = tmp_path / "split.onnx"
    onnx.save(yolo_like(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert "weights.bin" in error_of(path, tmp_path / "out", target="sm86")


@needs_rtx
def test_opset_that_is_too_old_is_refused(tmp_path):
    path = tmp_path / "old.onnx"
    onnx.save(yolo_like(opset=12), path)
    assert "opset 12 is too old: 13 or later" in error_of(path, tmp_path / "out", target="sm86")


@needs_rtx
def test_operator_that_is_read_but_not_built_is_named(tmp_path):
    path = tmp_path / "suppression.onnx"
    model = yolo_like()
    numbers = {"most": np.array([5], np.int64), "iou": np.array([0.5], np.float32)}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in numbers.items())
    model.graph.node.extend(
        [
            helper.make_node("Transpose", ["scores"], ["by_class"], perm=[0, 2, 1]),
            helper.make_node("NonMaxSuppression", ["boxes", "by_class", "most", "iou"], ["kept"], name="the_nms"),
        ]
    )
    model.graph.output.append(helper.make_tensor_value_info("kept", TensorProto.INT64, None))
    onnx.save(model, path)
    line = error_of(path, tmp_path / "out", target="sm86")
    assert re.search(r"operator the_nms\S* \(NMS\) is not supported", line)
    assert "can read but not build it" in line


@needs_rtx
def test_second_call_builds_nothing(model_path, tmp_path):
    first = engine_from_onnx(model_path, tmp_path / "out", target="sm86")
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in first.path.parent.iterdir()}
    phases = []
    second = engine_from_onnx(model_path, tmp_path / "out", target="sm86", progress=lambda *step: phases.append(step))
    assert second == replace(first, cached=True)
    assert phases == []
    assert {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in before} == before


@needs_rtx
@pytest.mark.parametrize("damage", ["byte", "cut", "no plan", "no sidecar", "torn sidecar", "odd sidecar"])
def test_damaged_engine_is_detected_and_built_again(model_path, tmp_path, damage):
    path = engine_from_onnx(model_path, tmp_path / "out", target="sm86").path
    plan = path.read_bytes()
    if damage == "byte":
        path.write_bytes(plan[:1000] + bytes([plan[1000] ^ 1]) + plan[1001:])
    elif damage == "cut":
        path.write_bytes(plan[:-1])
    elif damage == "no plan":
        path.unlink()
    elif damage == "no sidecar":
        sidecar_path(path).unlink()
    elif damage == "torn sidecar":
        sidecar_path(path).write_text(sidecar_path(path).read_text()[:200])
    else:
        sidecar_path(path).write_text("[1, 2]")
    with pytest.raises(EngineError, match="prunedeploy engine") as caught:
        read_engine_file(path)
    assert "\n" not in str(caught.value)

    again = engine_from_onnx(model_path, tmp_path / "out", target="sm86")
    assert not again.cached
    assert read_engine_file(path) == again


@needs_rtx
def test_whatever_goes_into_an_engine_changes_its_key(model_path, tmp_path):
    out = tmp_path / "out"
    keys = [engine_from_onnx(model_path, out, target="sm86").key]
    for options in (
        {"batch": (1, 2, 8)},
        {"workspace_bytes": 1 << 30},
        {"optimization_level": 1},
        {"sparse": True},
        {"tf32": True},
        {"precision": "fp32"},
    ):
        engine = engine_from_onnx(model_path, out, target="sm86", **options)
        assert not engine.cached
        keys.append(engine.key)
    keys.append(engine_from_onnx(model_path, out, target="sm89").key)
    model = yolo_like()
    model.doc_string = "another file"
    onnx.save(model, model_path)
    keys.append(engine_from_onnx(model_path, out, target="sm86").key)
    assert len(set(keys)) == 9


@needs_rtx
def test_simultaneous_builds_of_one_engine_build_it_once(model_path, tmp_path):
    with ThreadPoolExecutor(4) as pool:
        engines = list(pool.map(lambda _: engine_from_onnx(model_path, tmp_path / "out", target="sm86"), range(4)))
    assert sorted(engine.cached for engine in engines) == [False, True, True, True]
    assert len({engine.sha256 for engine in engines}) == 1
    read_engine_file(engines[0].path)


@needs_rtx
def test_progress_counts_up_to_the_end(model_path, tmp_path):
    steps = []
    engine_from_onnx(model_path, tmp_path / "out", target="sm86", progress=lambda *step: steps.append(step))
    phases = {phase for phase, _, _ in steps}
    assert phases
    for phase in phases:
        done = [(count, total) for name, count, total in steps if name == phase]
        assert [count for count, _ in done] == sorted(count for count, _ in done)
        assert done[-1][0] == done[-1][1] > 0


@needs_rtx
def test_interrupted_build_leaves_nothing_and_can_be_repeated(model_path, tmp_path):
    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine_from_onnx(model_path, tmp_path / "out", target="sm86", progress=interrupt)
    assert not list((tmp_path / "out").iterdir())
    assert not engine_from_onnx(model_path, tmp_path / "out", target="sm86").cached


@needs_rtx
def test_unreadable_input_and_unwritable_output_are_one_line(model_path, tmp_path):
    assert "absent.onnx" in error_of(tmp_path / "absent.onnx", tmp_path / "out", target="sm86")
    occupied = tmp_path / "file"
    occupied.write_text("not a folder")
    with pytest.raises(PrunedeployError, match="file: the folder cannot be made"):
        engine_from_onnx(model_path, occupied, target="sm86")
    assert occupied.read_text() == "not a folder"


@pytest.mark.skipif(installed_version("tensorrt") is not None, reason="full TensorRT is installed here")
def test_full_tensorrt_where_it_is_not_installed(model_path, tmp_path):
    with pytest.raises(RuntimeUnavailableError, match=r"tensorrt is not installed; install prunedeploy\[gpu\]"):
        engine_from_onnx(model_path, tmp_path / "out", target="sm86", library="tensorrt")


@pytest.mark.parametrize("version", ["7.2.3.4", "8.6.1", "9.3.0"])
def test_tensorrt_before_10_is_refused_by_version(version):
    assert version_problem("tensorrt", version) == f"tensorrt {version} is too old: 10.0 or later is needed"


@pytest.mark.parametrize(
    ("name", "version"),
    [("tensorrt", "10.0.1"), ("tensorrt", "10.13.3.9"), ("tensorrt", "11.0"), ("tensorrt_rtx", "1.7.1.116")],
)
def test_supported_versions_are_accepted(name, version):
    assert version_problem(name, version) is None


def test_version_that_is_no_version_is_refused():
    assert "no readable version" in str(version_problem("tensorrt", "unknown"))


def test_unknown_library_is_a_programming_error():
    with pytest.raises(ValueError, match="tensorflow"):
        load_library("tensorflow")


def test_summary_drops_echoes_but_never_everything():
    echo = "[checkMacros.cpp::catchCudaError::250] Error Code 1: Cuda Runtime"
    assert summarise(["bad\n  profile", echo, "bad profile", "--- Begin node ---\nx"]) == "bad profile"
    assert summarise([echo]) == echo
    assert summarise([]) == "it gave no reason"
    assert len(summarise(["x" * 5000], limit=100)) == 100


def test_importing_the_builder_imports_neither_onnx_nor_tensorrt():
    program = (
        "import sys; import prunedeploy_engines.builder.from_onnx, prunedeploy_engines.runtimes.tensorrt.runner;"
        "print([m for m in ('torch', 'onnx', 'onnxruntime', 'tensorrt', 'tensorrt_rtx') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
