from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from detector_variants import save_conv_detector
from prunedeploy_engines.errors import EngineError, StoreError
from prunedeploy_engines.runtimes.onnx_wire import metadata_entry
from prunedeploy_engines.runtimes.onnxruntime.optimised import (
    cpu_fingerprint,
    open_optimised,
    optimised_model_path,
    saved_key,
)
from prunedeploy_engines.runtimes.onnxruntime.runner import OnnxRuntimeRunner
from prunedeploy_engines.runtimes.onnxruntime.session import CPU, TENSORRT, SessionSpec


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_conv_detector(tmp_path / "model.onnx", "int8")


@pytest.fixture
def saved(model: Path) -> Path:
    path = optimised_model_path(model)
    OnnxRuntimeRunner(model, threads=1, optimised_model_path=path).close()
    return path


def test_lies_beside_the_model_and_names_its_providers(tmp_path: Path) -> None:
    beside = optimised_model_path(tmp_path / "model.int8.onnx", ["cuda", "cpu"])
    assert beside == tmp_path / "model.int8.cuda-cpu.ort-optimised.onnx"
    assert optimised_model_path("model.onnx", folder=tmp_path) == tmp_path / "model.cpu.ort-optimised.onnx"


def test_second_start_uses_what_the_first_saved(model: Path, saved: Path) -> None:
    images = np.random.default_rng(0).random((2, 3, 32, 48), dtype=np.float32)
    written = saved.stat().st_mtime_ns
    with (
        OnnxRuntimeRunner(model, threads=1) as plain,
        OnnxRuntimeRunner(model, threads=1, optimised_model_path=saved) as optimised,
    ):
        assert optimised.spec.path == saved
        for ours, reference in zip(optimised.infer(images), plain.infer(images), strict=True):
            assert np.array_equal(ours, reference)
        assert optimised.describe() == plain.describe()
    assert saved.stat().st_mtime_ns == written
    assert sorted(path.name for path in saved.parent.iterdir()) == [saved.name, model.name]


def test_stale_file_is_replaced(model: Path, saved: Path) -> None:
    before = saved_key(saved)
    save_conv_detector(model, "fp32")
    with OnnxRuntimeRunner(model, threads=1, optimised_model_path=saved) as runner:
        assert runner.spec.path == model
        assert runner.describe()["computes_in"] == {"fp32": 1.0}
    assert saved_key(saved) not in (before, None)


def test_file_of_another_version_or_cpu_is_replaced(model: Path, saved: Path) -> None:
    key = saved_key(saved)
    with saved.open("ab") as file:
        file.write(metadata_entry("prunedeploy_optimised_for", str(key).replace(cpu_fingerprint(), "z80")))
    assert saved_key(saved) not in (key, None)
    with OnnxRuntimeRunner(model, threads=1, optimised_model_path=saved) as runner:
        assert runner.spec.path == model
    assert saved_key(saved) == key


def test_file_that_was_cut_short_is_replaced(model: Path, saved: Path) -> None:
    whole = saved.read_bytes()
    for length in (0, len(whole) // 2, len(whole) - 1):
        saved.write_bytes(whole[:length])
        assert saved_key(saved) is None
        with OnnxRuntimeRunner(model, threads=1, optimised_model_path=saved) as runner:
            assert runner.spec.path == model
        assert saved_key(saved) is not None


def test_folder_that_cannot_be_written_is_an_error_of_one_line(model: Path) -> None:
    in_the_way = model.parent / "file"
    in_the_way.write_bytes(b"")
    with pytest.raises(StoreError, match="cannot be written"):
        OnnxRuntimeRunner(model, threads=1, optimised_model_path=in_the_way / "optimised.onnx")


def test_model_that_does_not_load_leaves_nothing_behind(tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.onnx"
    garbage.write_bytes(b"garbage" * 10)
    with pytest.raises(EngineError, match="not an ONNX file"):
        OnnxRuntimeRunner(garbage, optimised_model_path=optimised_model_path(garbage))
    assert [path.name for path in tmp_path.iterdir()] == ["garbage.onnx"]


def test_engines_of_tensorrt_are_not_saved_this_way(model: Path) -> None:
    spec = SessionSpec(model, False, None, (TENSORRT, CPU), None, True)
    with pytest.raises(EngineError, match="trt_engine_cache_path"):
        open_optimised(spec, optimised_model_path(model, spec.providers))
