"""The exported file computes what PyTorch and C Darknet compute, and is a valid, reproducible file."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from effort import slow_after
from export.networks import (
    ODD_CFG,
    decode_in_a_loop,
    folded,
    narrow,
    random_images,
    random_network,
    torch_outputs,
)
from prunedeploy.models.darknet import FoldedDarknet, load_darknet
from prunedeploy.models.darknet_cfg import read_cfg
from prunedeploy_engines.errors import EngineError, StoreError
from prunedeploy_engines.runtimes.onnxruntime.runner import OnnxRuntimeRunner
from prunedeploy_engines.version import __version__
from prunedeploy_export import onnx_from_torch
from prunedeploy_export.gates.parity import check_detection_parity, check_tensor_parity


def run(path: Path, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    with OnnxRuntimeRunner(path, threads=1, allow_spinning=False) as runner:
        return runner.infer(images)


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """A network with every kind of layer, and its file."""
    model = random_network(ODD_CFG, seed=3)
    return model, onnx_from_torch(folded(model), tmp_path_factory.mktemp("odd") / "model.onnx")


def test_every_kind_of_layer_computes_what_torch_computes_at_any_batch(odd):
    model, file = odd
    for batch in (1, 3):
        images = random_images(model.cfg, batch, seed=batch)
        reference, exported = torch_outputs(model, images), run(file.path, images)
        parity = check_tensor_parity(reference, exported, tolerance=5e-6)
        assert parity.images == batch
        assert check_detection_parity(reference, exported).detections > 0


def test_a_batch_gives_what_its_images_give_alone(odd):
    model, file = odd
    images = random_images(model.cfg, 3)
    together = run(file.path, images)
    for i in range(3):
        alone = run(file.path, images[i : i + 1])
        check_tensor_parity(alone, (together[0][i : i + 1], together[1][i : i + 1]), tolerance=1e-6)


@pytest.mark.parametrize("name", slow_after(2, "yolov3-slim", "yolov3-tiny", "yolov3-spp"))
def test_shipped_networks_compute_what_torch_computes(name, repository, tmp_path):
    model = random_network(narrow(read_cfg(repository / "configs" / "darknet" / f"{name}.cfg")), seed=1)
    file = onnx_from_torch(folded(model), tmp_path / "model.onnx")
    for batch in (1, 3):
        images = random_images(model.cfg, batch, seed=batch)
        reference, exported = torch_outputs(model, images), run(file.path, images)
        check_tensor_parity(reference, exported)
        assert check_detection_parity(reference, exported).detections > 0


@pytest.mark.slow
def test_yolov3_of_62_million_parameters_is_exported(repository, tmp_path):
    model = random_network(read_cfg(repository / "configs" / "darknet" / "yolov3.cfg"))
    file = onnx_from_torch(folded(model), tmp_path / "model.onnx")
    assert 0 <= file.bytes - 4 * 61_949_149 < 1_000_000  # folded weights, and the graph
    images = random_images(model.cfg, 1)
    reference, exported = torch_outputs(model, images), run(file.path, images)
    check_tensor_parity(reference, exported)
    assert check_detection_parity(reference, exported).detections > 0


@pytest.mark.shared
def test_genuine_yolov3_tiny_computes_what_c_darknet_computes(shared, tmp_path):
    folder = shared / "real" / "yolov3-tiny"
    model = load_darknet(folder / "yolov3-tiny.cfg", folder / "yolov3-tiny.weights")
    names = (folder / "coco.names").read_text().split("\n")[:80]
    file = onnx_from_torch(FoldedDarknet(model), tmp_path / "tiny.onnx", class_names=names)
    pixels = np.asarray(Image.open(shared / "real" / "photos" / "dog-416.png").convert("RGB"))
    boxes, scores = run(file.path, (pixels.transpose(2, 0, 1)[None] / 255).astype(np.float32))

    with np.load(shared / "real" / "photos" / "dog-416.darknet.npz") as darknet:
        expected_boxes, expected_scores = decode_in_a_loop(
            [darknet["head0"], darknet["head1"]], list(model.cfg.heads), model.cfg.input_size
        )
    assert boxes.shape == (1, 2535, 4)
    assert scores.shape == (1, 2535, 80)
    np.testing.assert_allclose(scores[0], expected_scores, rtol=0, atol=1e-5)
    # Boxes in units of the input, as Darknet counts them; relative where a box is larger than the input.
    np.testing.assert_allclose(boxes[0] / 416, expected_boxes / 416, rtol=2e-5, atol=1e-5)
    found = {names[i] for i in np.flatnonzero(scores[0].max(axis=0) > 0.5)}
    assert {"dog", "car"} <= found


def test_file_is_bit_identical_when_exported_twice(odd, tmp_path):
    model, file = odd
    again = onnx_from_torch(folded(model), tmp_path / "again.onnx")
    assert again.path.read_bytes() == file.path.read_bytes()
    assert again.sha256 == file.sha256


def test_memory_layout_and_precision_of_the_weights_do_not_matter(odd, tmp_path):
    model, file = odd

    network = folded(model)
    network.folded = {index: (w.contiguous().double(), b) for index, (w, b) in network.folded.items()}
    assert onnx_from_torch(network, tmp_path / "again.onnx").sha256 == file.sha256


def test_record_describes_the_file(odd):
    _, file = odd
    data = file.path.read_bytes()
    proto = onnx.load_from_string(data)
    assert (file.bytes, file.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert file.nodes == len(proto.graph.node)
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", file.opset)]


def test_file_passes_checker_and_strict_shape_inference(odd):
    model, file = odd
    proto = onnx.load(file.path)
    onnx.checker.check_model(proto, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*inferred.graph.value_info, *inferred.graph.output)
    }
    assert shapes["boxes"] == ["batch", 2 * 6 * 8 + 17 * 23, 4]
    assert shapes["scores"] == ["batch", 2 * 6 * 8 + 17 * 23, 2]
    checked = [layer for layer in model.cfg.layers if f"layer{layer.index}" in shapes]
    assert len(checked) > 15
    for layer in checked:
        assert shapes[f"layer{layer.index}"][1:] == [*layer.out_shape], layer


def test_graph_has_one_conv_per_needed_layer_and_no_batch_normalisation(odd):
    model, file = odd
    ops = [node.op_type for node in onnx.load(file.path).graph.node]
    unread = 1  # the convolution behind the 7/1 pooling, which nothing reads
    assert ops.count("Conv") == len(model.cfg.convolutions) - unread
    assert "BatchNormalization" not in ops
    assert "Identity" not in ops


def test_metadata_names_classes_and_input(odd, tmp_path):
    model, _ = odd
    file = onnx_from_torch(folded(model), tmp_path / "model.onnx", class_names=["Äpfel", "pears"])
    session = onnxruntime.InferenceSession(file.path)
    entries = session.get_modelmeta().custom_metadata_map
    assert json.loads(entries["class_names"]) == ["Äpfel", "pears"]
    assert json.loads(entries["input_size"]) == [45, 63]
    assert entries["precision"] == "fp32"
    proto = onnx.load(file.path)
    assert (proto.producer_name, proto.producer_version) == ("prunedeploy", __version__)


def test_contradictory_metadata_is_refused(odd, tmp_path):
    network = folded(odd[0])
    with pytest.raises(ValueError, match="2 classes, got 1 names"):
        onnx_from_torch(network, tmp_path / "model.onnx", class_names=["one"])
    with pytest.raises(ValueError, match="opset must be at least 17, got 11"):
        onnx_from_torch(network, tmp_path / "model.onnx", opset=11)
    assert list(tmp_path.iterdir()) == []


def test_weights_beyond_two_gigabytes_are_refused(odd, tmp_path):
    network = folded(odd[0])
    network.folded = {0: (torch.zeros(1).expand(600_000_000), torch.zeros(1))}  # one float in memory
    with pytest.raises(EngineError, match=r"2\.4 GB, and one ONNX file holds 2 GB"):
        onnx_from_torch(network, tmp_path / "model.onnx")


def test_newer_opset_computes_the_same(odd, tmp_path):
    model, file = odd
    newer = onnx_from_torch(folded(model), tmp_path / "newer.onnx", opset=20)
    images = random_images(model.cfg, 1)
    check_tensor_parity(run(file.path, images), run(newer.path, images), tolerance=1e-6)


def test_path_that_cannot_be_written_is_a_store_error_and_leaves_nothing_behind(odd, tmp_path):
    (tmp_path / "model.onnx" / "in the way").mkdir(parents=True)
    with pytest.raises(StoreError, match="cannot be written"):
        onnx_from_torch(folded(odd[0]), tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_full_disk_is_a_store_error_and_leaves_nothing_behind(odd, tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left on device"):
        onnx_from_torch(folded(odd[0]), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []
