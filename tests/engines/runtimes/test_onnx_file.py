"""The header that is read without ``onnx`` is the one that ``onnx`` reads; what is no ONNX file is one clear line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from prunedeploy_engines.errors import EngineError
from prunedeploy_engines.runtimes.onnx_file import NmsInGraph, header_from_metadata, read_onnx_header
from prunedeploy_engines.runtimes.onnx_wire import content, integer, text

onnx = pytest.importorskip("onnx", reason="needs onnx to make the files and to compare with")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

GRAPH = 7  # of ModelProto
METADATA = 14


def metadata_entry(key: str, value: str) -> bytes:
    """An entry of a model's metadata, ready to be appended to the file."""
    return content(METADATA, text(1, key) + text(2, value))


def small_model(weights: int = 4, opsets: list | None = None) -> onnx.ModelProto:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [weights]) for name in ("x", "y")]
    constant = numpy_helper.from_array(np.ones(weights, np.float32), "w")
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "small", value[:1], value[1:], [constant])
    return helper.make_model(graph, opset_imports=opsets or [helper.make_opsetid("", 17)], ir_version=8)


def refused(path: Path) -> str:
    with pytest.raises(EngineError) as caught:
        read_onnx_header(path)
    line = str(caught.value)
    assert "\n" not in line
    assert path.name in line
    return line


# Entries of ours hold JSON, so random ones must not have their names.
entry_name = st.text(min_size=1).filter(lambda name: name not in ("nms", "quantisation", "class_names"))


@given(
    entries=st.dictionaries(entry_name, st.text(max_size=200), max_size=6),
    names=st.lists(st.text(max_size=10), max_size=5),
    opsets=st.permutations([("ai.onnx.ml", 3), ("", 19), ("com.example", 7)]),
)
def test_header_is_what_onnx_reads(tmp_path_factory, entries, names, opsets):
    path = tmp_path_factory.mktemp("header") / "model.onnx"
    model = small_model(opsets=[helper.make_opsetid(*opset) for opset in opsets])
    helper.set_model_props(model, {**entries, "class_names": json.dumps(names)})
    onnx.save(model, path)
    header = read_onnx_header(path)
    read = onnx.load(path)
    assert header.metadata == {entry.key: entry.value for entry in read.metadata_props}
    assert header.opset == next(entry.version for entry in read.opset_import if entry.domain == "")
    assert header.class_names == tuple(names)
    assert header == header_from_metadata(header.metadata, header.opset)


def test_entries_of_ours_are_understood(tmp_path):
    model = small_model()
    entries = {
        "precision": "int8",
        "uint8_input": "true",
        "nms": '{"score_threshold": 0.25, "iou_threshold": 0.5, "max_detections": 7}',
        "quantisation": '{"method": "mse", "skipped": ["first"]}',
        "class_names": '["Äpfel", "梨"]',
    }
    helper.set_model_props(model, entries)
    onnx.save(model, tmp_path / "model.onnx")
    header = read_onnx_header(tmp_path / "model.onnx")
    assert header.precision == "int8"
    assert header.uint8_input
    assert header.nms == NmsInGraph(0.25, 0.5, 7)
    assert header.quantisation == {"method": "mse", "skipped": ["first"]}
    assert header.class_names == ("Äpfel", "梨")


def test_foreign_file_has_the_defaults(tmp_path):
    onnx.save(small_model(), tmp_path / "model.onnx")
    header = read_onnx_header(tmp_path / "model.onnx")
    assert header == header_from_metadata({}, 17)
    assert (header.precision, header.class_names, header.uint8_input) == ("fp32", (), False)
    assert (header.nms, header.quantisation, header.metadata) == (None, None, {})


def test_default_domain_has_two_names(tmp_path):
    onnx.save(small_model(opsets=[helper.make_opsetid("ai.onnx", 16)]), tmp_path / "model.onnx")
    assert read_onnx_header(tmp_path / "model.onnx").opset == 16


def test_file_without_a_version_has_none(tmp_path):
    model = small_model()
    del model.opset_import[:]
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    assert read_onnx_header(tmp_path / "model.onnx").opset is None


def test_appended_entries_are_found(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(small_model().SerializeToString() + metadata_entry("précision", "fp16 ✓"))
    assert read_onnx_header(path).metadata == {"précision": "fp16 ✓"}
    assert onnx.load(path).metadata_props[0].value == "fp16 ✓"


def test_weights_are_stepped_over(tmp_path):
    # 64 GB of weights that are a hole in the file: reading them would take a minute and all memory.
    path, hole = tmp_path / "model.onnx", 64 << 30
    before = integer(1, 8) + content(8, integer(2, 17))
    key_and_length = content(GRAPH, b"")[:1] + integer(1, hole)[1:]
    with path.open("wb") as file:
        try:
            file.write(before + key_and_length)
            file.seek(hole, 1)
            file.write(metadata_entry("precision", "fp16"))
        except OSError:
            pytest.skip("needs a file system with sparse files of 64 GB")
    header = read_onnx_header(path)
    assert (header.opset, header.precision) == (17, "fp16")


def test_entry_beyond_a_megabyte_is_left(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(small_model().SerializeToString() + metadata_entry("note", "x" * (1 << 20)))
    assert read_onnx_header(path).metadata == {}


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.99])
def test_file_cut_short_is_refused(tmp_path, share):
    whole = small_model(weights=1000).SerializeToString()
    (tmp_path / "model.onnx").write_bytes(whole[: int(share * len(whole))])
    refused(tmp_path / "model.onnx")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 64,
        b"hello world",
        b"\x89PNG\r\n\x1a\n" + b"\0" * 50,
        b"%PDF-1.7\n",
        b'{"schema_version": 1}',
        b"\x7fELF\x02\x01\x01" + b"\0" * 9,
        b"PK\x03\x04",
        b"\xff" * 30,
        integer(1, 8) + content(8, integer(2, 17)),  # a message without a graph
    ],
)
def test_file_that_is_no_onnx_is_refused(tmp_path, data):
    (tmp_path / "model.onnx").write_bytes(data)
    assert "is not an ONNX file" in refused(tmp_path / "model.onnx")


def test_picture_and_program_are_refused(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text(Path(__file__).read_text())
    for name in ("a.png", "a.txt"):
        assert "is not an ONNX file" in refused(tmp_path / name)


def test_missing_file_and_folder_are_refused(tmp_path):
    assert "cannot be read (No such file" in refused(tmp_path / "none.onnx")
    assert "cannot be read (Is a directory" in refused(tmp_path)


@pytest.mark.parametrize(
    "broken",
    [
        content(14, b"\x0a" + b"\xff" * 9 + b"\x01"),  # a key of 2**63 bytes and more
        content(14, b"\x0a\x7f" + b"short"),
        content(14, text(1, "key") + content(2, b"\xff\xfe")),  # not UTF-8
        content(14, integer(1, 5) + text(2, "value")),  # a key that is a number
        content(14, b"\x09" + b"\0" * 8),
        content(14, b"\x0a"),
        content(8, b"\x10"),
        b"\x72" + b"\xff" * 9 + b"\x01",
        b"\x73",  # a group, which protocol buffers no longer have
    ],
)
def test_broken_entry_is_refused(tmp_path, broken):
    (tmp_path / "model.onnx").write_bytes(small_model().SerializeToString() + broken)
    assert "is not an ONNX file" in refused(tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("class_names", "no json"),
        ("class_names", "5"),
        ("class_names", "[" * 100_000),
        ("nms", "[1, 2]"),
        ("nms", "{}"),
        ("nms", '{"score_threshold": 0.1, "iou_threshold": 0.5, "max_detections": 1, "more": 2}'),
        ("nms", "null"),
        ("quantisation", "7"),
        ("quantisation", '{"half": '),
    ],
)
def test_entry_of_ours_that_is_not_readable_is_refused(tmp_path, key, value):
    path = tmp_path / "model.onnx"
    path.write_bytes(small_model().SerializeToString() + metadata_entry(key, value))
    refused(path)
    with pytest.raises(EngineError, match="metadata cannot be read") as caught:
        header_from_metadata({key: value})
    assert "\n" not in str(caught.value)


def reads_or_refuses(path: Path) -> None:
    line = ""
    try:
        read_onnx_header(path)
    except EngineError as error:
        line = str(error)
    assert "\n" not in line


@settings(max_examples=300)
@given(data=st.binary(max_size=200))
def test_random_bytes_never_fail_otherwise(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "random.onnx"
    path.write_bytes(data)
    reads_or_refuses(path)


@settings(max_examples=300)
@given(
    changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4),
    cut=st.integers(0, 40),
)
def test_damaged_files_never_fail_otherwise(tmp_path_factory, changes, cut):
    model = small_model()
    helper.set_model_props(model, {"class_names": '["a"]', "nms": "{}", "note": "ü"})
    data = bytearray(model.SerializeToString())
    for position, value in changes:
        data[position % len(data)] = value
    path = tmp_path_factory.getbasetemp() / "damaged.onnx"
    path.write_bytes(data[: len(data) - cut])
    reads_or_refuses(path)


@settings(max_examples=300)
@given(entry=st.binary(max_size=40), number=st.sampled_from([8, 14]))
def test_damaged_entries_never_fail_otherwise(tmp_path_factory, entry, number):
    path = tmp_path_factory.getbasetemp() / "entry.onnx"
    path.write_bytes(small_model().SerializeToString() + content(number, entry))
    reads_or_refuses(path)


def test_reading_a_header_needs_no_onnx():
    program = "import sys, prunedeploy_engines.runtimes.onnx_file; sys.exit(bool({'onnx', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
