"""An imported detector computes what its file computes, on ONNX Runtime, whatever it was exported by."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import ModelProto

from export.networks import folded
from export.precisions import run
from importing.exported import REAL, anchored, computed, json_names, real, resized, yolox
from prunedeploy.config.blocks import ExportConfig
from prunedeploy.importing import import_onnx
from prunedeploy.models import Darknet, decode, load_darknet
from prunedeploy.models.cfg_rewriting import with_input_size
from prunedeploy.pruning import shrink
from prunedeploy.pruning.masks import apply_structured
from prunedeploy_engines.builder.from_onnx import engine_from_onnx
from prunedeploy_engines.runtimes.onnxruntime.runner import OnnxRuntimeRunner
from prunedeploy_engines.runtimes.tensorrt.library import installed_version
from prunedeploy_export import check_tensor_parity, fp16_from_fp32, onnx_from_torch
from prunedeploy_export.graph.edit import read_model
from pruning.darknets import largest_difference
from pruning.test_sections import half

TOLERANCE = 1e-4

Found = tuple[NDArray[np.float32], NDArray[np.float32]]


def saved(model: ModelProto, folder: Path) -> Path:
    """As a file."""
    onnx.save(model, folder / "best.onnx")
    return folder / "best.onnx"


def corners(rows: NDArray[np.float32], objectness: bool) -> Found:
    """Boxes as corners and scores of a file's output, a row per prediction."""
    centre, half_size = rows[:, :2], rows[:, 2:4] / 2
    boxes = np.concatenate((centre - half_size, centre + half_size), axis=1)
    return boxes, rows[:, 4:5] * rows[:, 5:] if objectness else rows[:, 4:]


def by_network(model: Darknet, images: NDArray[np.float32]) -> Found:
    """Boxes and scores of the first image."""
    with torch.no_grad():
        boxes, scores = decode(model(torch.from_numpy(images)), model)
    return boxes[0].numpy(), scores[0].numpy()


def assert_same(found: Found, expected: Found) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert float(np.abs(other).max()) > 0.1
        assert float(np.abs(one - other).max()) <= TOLERANCE * float(np.abs(other).max())


def random_images(height: int, width: int) -> NDArray[np.float32]:
    return np.random.default_rng(1).random((1, 3, height, width), dtype=np.float32)


@pytest.mark.shared
@pytest.mark.parametrize("name", REAL)
def test_real_files_compute_the_same_at_their_size_at_another_and_exported_again(
    shared: Path, tmp_path: Path, name: str
) -> None:
    model = real(shared, name)
    found = import_onnx(saved(model, tmp_path))
    images = random_images(160, 160)
    expected = corners(computed(model, images)[0].T, objectness=False)
    assert_same(by_network(found.model, images), expected)

    onnx_from_torch(folded(found.model), tmp_path / "again.onnx")
    with OnnxRuntimeRunner(tmp_path / "again.onnx", threads=1, allow_spinning=False) as runner:
        boxes, scores = runner.infer(images)
    assert_same((boxes[0], scores[0]), expected)

    cfg = with_input_size(found.model.cfg, (192, 128))
    other = Darknet(cfg).eval()
    other.load_state_dict(found.model.state_dict())
    images = random_images(192, 128)
    assert_same(by_network(other, images), corners(computed(resized(model, 192, 128), images)[0].T, objectness=False))


@pytest.mark.shared
@pytest.mark.parametrize("name", REAL)
def test_real_files_shrink_to_what_they_compute_masked(shared: Path, tmp_path: Path, name: str) -> None:
    model = import_onnx(saved(real(shared, name), tmp_path)).model
    keep = half(model)
    masked, small = apply_structured(model, keep), shrink(model, keep)
    assert small.parameter_count() < 0.4 * model.parameter_count()
    for height, width in ((160, 160), (96, 128)):
        assert largest_difference(masked, small, torch.rand(1, 3, height, width)) < 1e-5


@pytest.mark.shared
@pytest.mark.skipif(installed_version("tensorrt_rtx") is None, reason="needs tensorrt-rtx (prunedeploy[rtx])")
def test_a_real_file_passes_tensorrt_and_its_fp16_file_is_near(shared: Path, tmp_path: Path) -> None:
    model = import_onnx(saved(real(shared, "yolo11n"), tmp_path)).model
    small = shrink(model, half(model))
    path = onnx_from_torch(folded(small), tmp_path / "small.onnx").path
    engine = engine_from_onnx(path, tmp_path / "engines", target="sm86", precision="fp32")
    assert engine.layers["fp32"] >= len(small.cfg.convolutions)
    images = random_images(160, 160)
    fp16_from_fp32(path, tmp_path / "fp16.onnx")
    single, halved = (run(read_model(file), images, ["boxes", "scores"]) for file in (path, tmp_path / "fp16.onnx"))
    check_tensor_parity((single[0], single[1]), (halved[0], halved[1]), ExportConfig().fp16.parity_tolerance)


@pytest.mark.shared
def test_what_is_written_is_read_back_and_names_are_the_files(shared: Path, tmp_path: Path) -> None:
    found = import_onnx(shared / "real" / "onnx" / "yolo11n-160.onnx")
    assert found.class_names == [str(number) for number in range(80)]
    found.model.save(tmp_path / "a.cfg", tmp_path / "a.weights")
    again = load_darknet(tmp_path / "a.cfg", tmp_path / "a.weights")
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in found.model.state_dict().items())
    assert found.said == ("the cfg is not for Darknet, which has no [attention], [dfl]",)


@pytest.mark.parametrize("opset", [11, 12, 13, 17])
@pytest.mark.parametrize("v3", [False, True])
def test_anchors_are_found_in_the_decoding(tmp_path: Path, v3: bool, opset: int) -> None:
    model = anchored(v3=v3, opset=max(opset, 13))
    if opset < 13:
        model = before_opset_13(model, opset)
    found = import_onnx(saved(model, tmp_path))
    head = found.model.cfg.heads[0]
    assert head.anchors_wh == ((10.0, 13.0), (16.0, 30.0), (30.5, 61.0), (62.0, 45.0))
    assert head.decoding == ("yolo" if v3 else "yolo new_coords")
    assert found.said == ()  # Darknet reads the cfg as well
    assert found.class_names == ["class 0", "class 1", "class 2"]
    images = random_images(64, 96)
    assert_same(by_network(found.model, images), corners(computed(model, images)[0], objectness=True))


@pytest.mark.parametrize(
    ("act", "key"),
    [
        ("LeakyRelu:0.2", "activation=leaky\nleaky_slope=0.2\n"),
        ("LeakyRelu:0.01", "activation=leaky\nleaky_slope=0.01\n"),
        ("HardSwish", "activation=h_swish\n"),
        ("HardSigmoid", "activation=h_swish\n"),
        ("x relu6 / 6", "activation=h_swish\n"),
        ("x (relu6 / 6)", "activation=h_swish\n"),
    ],
)
def test_activations_that_darknet_lacks_compute_the_same_in_every_program(tmp_path: Path, act: str, key: str) -> None:
    model = anchored(act=act)
    found = import_onnx(saved(model, tmp_path))
    assert found.model.cfg.text.count(key) == 6
    assert found.said == (f"the cfg is not for Darknet, which has no {'leaky_slope' if 'slope' in key else 'h_swish'}",)
    images = random_images(64, 96)
    expected = corners(computed(model, images)[0], objectness=True)
    assert_same(by_network(found.model, images), expected)
    onnx_from_torch(folded(found.model), tmp_path / "again.onnx")
    with OnnxRuntimeRunner(tmp_path / "again.onnx", threads=1, allow_spinning=False) as runner:
        boxes, scores = runner.infer(images)
    assert_same((boxes[0], scores[0]), expected)
    opencv = cv2.dnn.readNetFromONNX(str(tmp_path / "again.onnx"))
    opencv.setInput(images)
    boxes, scores = opencv.forward(["boxes", "scores"])
    assert_same((boxes[0], scores[0]), expected)


def before_opset_13(model: ModelProto, opset: int) -> ModelProto:
    """The same with the sizes of a Split as its attribute, as they were then."""
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Split":
            node.attribute.append(onnx.helper.make_attribute("split", values[node.input[1]].tolist()))
            del node.input[1]
    model.opset_import[0].version = opset
    return model


@pytest.mark.parametrize("focus", [True, False])
@pytest.mark.parametrize("decoded", [True, False])
def test_yolox_takes_rgb_from_0_to_1_afterwards(tmp_path: Path, focus: bool, decoded: bool) -> None:
    model = yolox(focus=focus, decoded=decoded)
    found = import_onnx(saved(model, tmp_path))
    assert found.model.cfg.layers[0].kind == "convolutional"
    images = random_images(64, 96)
    theirs = computed(yolox(focus=focus), images[:, ::-1] * 255)[0]
    assert_same(by_network(found.model, images), corners(theirs, objectness=True))
    assert any("BGR" in line for line in found.said)
    assert any("leaves decoding" in line for line in found.said) != decoded


def test_exported_sections_of_yolox_compute_the_same(tmp_path: Path) -> None:
    found = import_onnx(saved(yolox(), tmp_path))
    images = random_images(64, 96)
    onnx_from_torch(folded(found.model), tmp_path / "again.onnx", class_names=found.class_names)
    with OnnxRuntimeRunner(tmp_path / "again.onnx", threads=1, allow_spinning=False) as runner:
        boxes, scores = runner.infer(images)
    assert_same((boxes[0], scores[0]), by_network(found.model, images))
    assert json_names(3) == "{0: 'class 0', 1: 'class 1', 2: 'class 2'}"
