"""Reading, editing and writing ONNX files."""

from __future__ import annotations

import hashlib
import itertools
import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.networks import ODD_CFG
from export.precisions import every_block, network, run, write_network
from prunedeploy_engines.errors import EngineError
from prunedeploy_export.graph.edit import (
    GraphEditor,
    convolutions,
    expose,
    head_convolutions,
    metadata_of,
    opset_of,
    read_model,
    set_metadata,
    write_model,
)


def chain() -> onnx.ModelProto:
    """images -> a -> b -> boxes, each plus a constant."""
    names = ["images", "a", "b", "boxes"]
    nodes = [helper.make_node("Add", [source, "one"], [name], name=name) for source, name in itertools.pairwise(names)]
    return network(nodes, {"images": [2]}, {"boxes": [2]}, {"one": np.float32(1)})


@pytest.mark.parametrize("data", [b"", b"\0" * 64, b"hello world", b"\x89PNG\r\n\x1a\n", b"\xff" * 100])
def test_file_that_is_no_onnx_is_refused_in_one_line(tmp_path, data):
    (tmp_path / "model.onnx").write_bytes(data)
    with pytest.raises(EngineError, match=r"model\.onnx: is not an ONNX") as caught:
        read_model(tmp_path / "model.onnx")
    assert "\n" not in str(caught.value)


def test_file_cut_short_missing_file_and_folder_are_refused(tmp_path):
    write_network(ODD_CFG, tmp_path / "model.onnx")
    whole = (tmp_path / "model.onnx").read_bytes()
    (tmp_path / "model.onnx").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(EngineError, match="is not an ONNX"):
        read_model(tmp_path / "model.onnx")
    with pytest.raises(EngineError, match="cannot be read"):
        read_model(tmp_path / "none.onnx")
    with pytest.raises(EngineError, match="cannot be read"):
        read_model(tmp_path)


def test_record_is_about_the_file(tmp_path):
    record = write_model(chain(), tmp_path / "model.onnx")
    data = record.path.read_bytes()
    assert (record.bytes, record.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert (record.opset, record.nodes) == (17, 3)
    assert read_model(record.path) == chain()


def test_model_that_is_not_valid_is_not_written(tmp_path):
    model = chain()
    model.graph.node[0].input[0] = "nothing"
    with pytest.raises(onnx.checker.ValidationError):
        write_model(model, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("opsets", "expected"), [([("", 19)], 19), ([("ai.onnx.ml", 3), ("ai.onnx", 13)], 13), ([("com.example", 1)], 0)]
)
def test_opset_is_that_of_the_default_domain(opsets, expected):
    model = chain()
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(*opset) for opset in opsets)
    assert opset_of(model) == expected


def test_metadata_are_merged_and_sorted():
    model = chain()
    set_metadata(model, z="1", b="2")
    set_metadata(model, a="3", z=json.dumps(["ü"]))
    assert list(metadata_of(model).items()) == [("a", "3"), ("b", "2"), ("z", json.dumps(["ü"]))]


def test_inserted_nodes_stand_where_their_inputs_are_ready():
    model = chain()
    editor = GraphEditor(model.graph)
    two = editor.constant("two", np.float32(2))
    for name, source in (("later", "b"), ("first", None), ("sooner", "images"), ("middle", "a"), ("last", "boxes")):
        assert editor.insert_after(source, "Mul", [source or "images", two], name) == name
    editor.insert_after("a", "Mul", ["middle", two], "second")
    editor.insert_after(None, "Neg", ["images"], "third")
    editor.commit()
    assert [node.name for node in model.graph.node] == [
        "first",
        "sooner",
        "third",
        "a",
        "middle",
        "second",
        "b",
        "later",
        "boxes",
        "last",
    ]
    onnx.checker.check_model(model, full_check=True)
    # The editor goes on with the graph as it is now.
    assert editor.producers["second"].name == "second"
    assert [node.name for node in editor.consumers("middle")] == ["second"]


def test_constants_that_nobody_reads_go_and_those_read_inside_a_loop_stay():
    body = helper.make_graph(
        [
            helper.make_node("Add", ["before", "inner"], ["after"]),
            helper.make_node("Identity", ["go_on_before"], ["go_on"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on_before", TensorProto.BOOL, []),
            helper.make_tensor_value_info("before", TensorProto.FLOAT, [2]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("after", TensorProto.FLOAT, [2]),
        ],
    )
    model = network(
        [helper.make_node("Loop", ["rounds", "", "images"], ["boxes"], name="loop", body=body)],
        {"images": [2]},
        {"boxes": [2]},
        {"rounds": np.array(3), "inner": np.float32(0.5), "idle": np.float32(1)},
    )
    GraphEditor(model.graph).commit()
    assert {tensor.name for tensor in model.graph.initializer} == {"rounds", "inner"}
    assert run(model, np.zeros(2, np.float32), ["boxes"])[0].tolist() == [1.5, 1.5]


def test_constants_are_found_replaced_and_never_doubled():
    model = chain()
    editor = GraphEditor(model.graph)
    assert editor.constant("one", np.float32(1)) == "one"
    with pytest.raises(ValueError, match="another constant called one"):  # or a file would be computed with it
        editor.constant("one", np.float32(7))
    assert editor.array("one") == 1
    editor.replace_constant("one", np.array(3, np.int8))
    editor.commit()
    (tensor,) = model.graph.initializer
    assert numpy_helper.to_array(tensor).dtype == np.int8
    assert editor.array("one") == 3


def test_heads_are_the_convolutions_behind_which_there_is_none(tmp_path):
    model = write_network(every_block("leaky"), tmp_path / "model.onnx")
    assert [node.name for node in head_convolutions(model.graph)] == ["layer9", "layer15"]
    assert [node.name for node in convolutions(model.graph)] == [
        *(f"layer{number}/conv" for number in (0, 2, 3, 4, 6, 8)),
        "layer9",
        "layer14/conv",
        "layer15",
    ]


def test_exposed_tensors_are_outputs_of_a_copy():
    model = chain()
    copy = expose(model, ["a", "boxes", "images"])
    assert [value.name for value in copy.graph.output] == ["boxes", "a", "images"]
    assert model == chain()
    values = run(copy, np.array([1, 2], np.float32), ["images", "a", "boxes"])
    assert [value.tolist() for value in values] == [[1, 2], [2, 3], [4, 5]]
