"""What cannot be imported: one line that says what is wrong, where, and what to do; nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from importing.exported import Writer, anchored, computed, small_trunk
from prunedeploy.importing import import_onnx, named, write_imported
from prunedeploy_engines.errors import DarknetFormatError, OnnxImportError


def _with(change: Callable[[ModelProto], None]) -> bytes:
    model = anchored()
    change(model)
    data: bytes = model.SerializeToString()
    return data


def _node(op: str, domain: str = "") -> Callable[[ModelProto], None]:
    def change(model: ModelProto) -> None:
        model.graph.node.append(helper.make_node(op, ["images"], ["more"], name="extra", domain=domain))

    return change


def _output(model: ModelProto) -> None:
    model.graph.output.append(helper.make_tensor_value_info("Conv_0_out0", TensorProto.FLOAT, None))


def _task(model: ModelProto) -> None:
    helper.set_model_props(model, {"task": "pose"})


def _open_size(model: ModelProto) -> None:
    for place, name in ((2, "height"), (3, "width")):
        model.graph.input[0].type.tensor_type.shape.dim[place].dim_param = name


def _half(model: ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))


def _old(model: ModelProto) -> None:
    model.opset_import[0].version = 9


def _external(model: ModelProto) -> None:
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL


def _short_tensor(model: ModelProto) -> None:
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-4]


def _another_activation(model: ModelProto) -> None:
    next(node for node in model.graph.node if node.op_type == "LeakyRelu").attribute[0].f = 1.5


def _odd_operator(model: ModelProto) -> None:
    node = next(node for node in model.graph.node if node.op_type == "MaxPool")
    node.op_type, node.name = "LpPool", "odd"


def _half_stride(model: ModelProto) -> None:
    """Boxes decoded with a stride that the map does not have."""
    for tensor in model.graph.initializer:
        if numpy_helper.to_array(tensor).shape == () and float(numpy_helper.to_array(tensor)) == 8.0:
            tensor.CopyFrom(numpy_helper.from_array(np.array(4, np.float32), tensor.name))


def _unequal(model: ModelProto) -> None:
    for tensor in model.graph.initializer:
        if numpy_helper.to_array(tensor).tolist() == [8, 8]:
            tensor.CopyFrom(numpy_helper.from_array(np.array([4, 12]), tensor.name))


WRONG: dict[str, tuple[bytes, str]] = {
    "suppression": (_with(_node("NonMaxSuppression")), r"extra \(NonMaxSuppression\).*export it without suppression"),
    "ranking": (_with(_node("TopK")), r"extra \(TopK\).*without suppression"),
    "TensorRT's suppression": (_with(_node("EfficientNMS_TRT", "TRT")), "without suppression"),
    "8 bits": (_with(_node("QuantizeLinear")), r"extra \(QuantizeLinear\) computes in 8 bits; export it in fp32"),
    "another library's operator": (_with(_node("FusedConv", "com.microsoft")), "an operator of com.microsoft"),
    "segmentation": (_with(_output), "has 2 outputs .* as segmentation"),
    "pose": (_with(_task), "for the task pose, not detect; give a detector"),
    "open size": (_with(_open_size), "leaves the size of its input open; say which: --input-size 640"),
    "half precision": (_with(_half), "computes in half precision .* export it in fp32"),
    "old operators": (_with(_old), "operators of opset 9; export it with opset 11 or later"),
    "weights elsewhere": (_with(_external), "keeps its weights in another file; save it as one file"),
    "a tensor cut off": (_with(_short_tensor), "has less data than its tensor constant_0 needs; export it again"),
    "cut off": (anchored().SerializeToString()[:-3000], "is no whole ONNX file; export it again"),
    "empty": (b"", "is no whole ONNX file"),
    "text": (b"[net]\nwidth=416\n", "is no whole ONNX file"),
    "a checkpoint": (b"PK\x03\x04rest", "is a PyTorch checkpoint.*yolo export model=best.onnx format=onnx"),
    "another slope": (_with(_another_activation), r"\(LeakyRelu\) is an activation that no section has"),
    "another operator": (_with(_odd_operator), r"node odd \(LpPool\) is an operator that no section stands for"),
    "another decoding": (_with(_half_stride), r"ends like a \[yolo\] head, but its output is"),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_bad_files_are_one_line(tmp_path: Path, name: str) -> None:
    data, says = WRONG[name]
    (tmp_path / "best.onnx").write_bytes(data)
    with pytest.raises(OnnxImportError, match=says) as refused:
        import_onnx(tmp_path / "best.onnx")
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith(str(tmp_path / "best.onnx"))
    assert refused.value.fix


def test_a_classifier_is_no_detector(tmp_path: Path) -> None:
    writer = Writer()
    (fine, channels), _ = small_trunk(writer)
    pooled = writer.node("GlobalAveragePool", [writer.conv(fine, channels, 10, 1)])
    model = writer.model(writer.node("Reshape", [pooled, writer.constant([1, 10], np.int64)]), (64, 96))
    assert computed(model, np.zeros((1, 3, 64, 96), np.float32)).shape == (1, 10)
    onnx.save(model, tmp_path / "best.onnx")
    with pytest.raises(OnnxImportError, match=r"is no detector that is known: .* shape \(1, 10\)"):
        import_onnx(tmp_path / "best.onnx")


def test_parts_that_are_not_equal_are_refused(tmp_path: Path) -> None:
    (tmp_path / "best.onnx").write_bytes(_with(_unequal))
    with pytest.raises(OnnxImportError):
        import_onnx(tmp_path / "best.onnx")


def test_the_size_that_is_left_open_is_taken_from_the_option(tmp_path: Path) -> None:
    (tmp_path / "best.onnx").write_bytes(_with(_open_size))
    found = import_onnx(tmp_path / "best.onnx", (64, 96))
    assert found.model.cfg.input_size == (64, 96)
    onnx.save(anchored(), tmp_path / "fixed.onnx")
    assert import_onnx(tmp_path / "fixed.onnx", (128, 64)).model.cfg.input_size == (128, 64)
    with pytest.raises(DarknetFormatError, match=r"an input of 100x64 .* must be multiples of 8; use"):
        import_onnx(tmp_path / "fixed.onnx", (64, 100))


def test_names_are_read_and_never_evaluated(tmp_path: Path) -> None:
    model = anchored()
    helper.set_model_props(model, {"names": f"[open({str(tmp_path / 'evaluated')!r}, 'w'), 'b', 'c']"})
    onnx.save(model, tmp_path / "best.onnx")
    found = import_onnx(tmp_path / "best.onnx")
    assert found.class_names is None
    assert not (tmp_path / "evaluated").exists()
    with pytest.raises(OnnxImportError, match=r"does not name its 3 classes; give a file .* --names FILE"):
        named(found)
    (tmp_path / "two.names").write_text("a\nb\n")
    with pytest.raises(OnnxImportError, match="has 2 names, the network has 3 classes"):
        named(found, tmp_path / "two.names")
    (tmp_path / "three.names").write_text("a\nb\nc\n")
    with_names = named(found, tmp_path / "three.names")
    assert with_names.class_names == ["a", "b", "c"]
    write_imported(with_names, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["model.cfg", "model.names", "model.weights"]
