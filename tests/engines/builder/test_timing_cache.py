"""The timing cache's file. What is in it only full TensorRT fills; the calls are those of TensorRT-RTX here."""

from __future__ import annotations

import json

import pytest

from prunedeploy_engines.builder.from_onnx import engine_from_onnx
from prunedeploy_engines.builder.timing_cache import TimingCache
from prunedeploy_engines.errors import EngineError
from prunedeploy_engines.runtimes.tensorrt.library import installed_version, load_library

pytestmark = [
    pytest.mark.skipif(
        installed_version("tensorrt_rtx") is None, reason="needs tensorrt-rtx (pip install 'prunedeploy[rtx]')"
    ),
    # RTX has the calls and says that they do nothing.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture
def library():
    return load_library("tensorrt_rtx")


@pytest.fixture
def config(library):
    builder = library.trt.Builder(library.logger)
    yield builder.create_builder_config()
    del builder


def test_cache_is_written_and_taken_again(tmp_path, library, config):
    cache = TimingCache(tmp_path / "timing.cache", library, "GPU 1")
    assert not cache.attach(config)  # there is none yet
    cache.save(config)
    assert (tmp_path / "timing.cache").stat().st_size > 0
    note = json.loads((tmp_path / "timing.cache.json").read_text())
    assert (note["library"], note["version"], note["device"]) == ("tensorrt_rtx", library.version, "GPU 1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["timing.cache", "timing.cache.json"]
    assert TimingCache(tmp_path / "timing.cache", library, "GPU 1").attach(config)


@pytest.mark.parametrize("damage", ["another GPU", "another version", "changed", "cut", "no note", "torn note"])
def test_cache_from_elsewhere_or_damaged_is_not_used_and_written_anew(tmp_path, library, config, damage):
    cache = TimingCache(tmp_path / "timing.cache", library, "GPU 1")
    cache.attach(config)
    cache.save(config)
    content, note = cache.path.read_bytes(), json.loads(cache.note_path.read_text())
    if damage == "another GPU":
        cache = TimingCache(cache.path, library, "GPU 2")
    elif damage == "another version":
        cache.note_path.write_text(json.dumps({**note, "version": "0.1"}))
    elif damage == "changed":
        cache.path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "cut":
        cache.path.write_bytes(content[: len(content) // 2])
    elif damage == "no note":
        cache.note_path.unlink()
    else:
        cache.note_path.write_text(json.dumps(note)[:20])
    assert not cache.attach(config)
    cache.save(config)
    assert cache.attach(config)


def test_cache_that_cannot_be_written_is_one_line(tmp_path, library, config):
    (tmp_path / "file").write_text("not a folder")
    cache = TimingCache(tmp_path / "file" / "timing.cache", library, "GPU 1")
    cache.attach(config)
    with pytest.raises(EngineError, match="cannot be written"):
        cache.save(config)


def test_rtx_has_none(tmp_path):
    onnx = pytest.importorskip("onnx", reason="needs onnx to make the network")
    from engine_networks import convolutional_detector

    onnx.save(convolutional_detector(), tmp_path / "model.onnx")
    with pytest.raises(EngineError, match="has no timing cache; leave it out, or build with full TensorRT"):
        engine_from_onnx(tmp_path / "model.onnx", tmp_path, target="sm86", timing_cache=tmp_path / "timing.cache")
