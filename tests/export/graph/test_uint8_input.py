"""A file that takes uint8 images sees the pixels that it sees as float32 images, bit for bit."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from export.networks import ODD_CFG
from export.precisions import every_block, run, write_network
from prunedeploy_engines.detection.letterbox import to_input
from prunedeploy_engines.runtimes.onnx_file import NmsInGraph, read_onnx_header
from prunedeploy_engines.runtimes.onnxruntime.runner import OnnxRuntimeRunner
from prunedeploy_export import Quantiser, fp16_from_fp32, with_nms, with_uint8_input
from prunedeploy_export.graph.edit import read_model, write_model


def photos(height: int, width: int, count: int = 2) -> np.ndarray:
    """``(N, H, W, 3)`` with every one of the 256 values."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)
    assert len(np.unique(pixels)) == 256
    return pixels


@pytest.mark.parametrize(("cfg", "height", "width"), [(ODD_CFG, 45, 63), (every_block("leaky"), 32, 32)])
def test_outputs_are_those_of_float_images_bit_for_bit(cfg, height, width, tmp_path):
    model = write_network(cfg, tmp_path / "model.onnx")
    pixels = photos(height, width)
    floats = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255)
    expected = run(model, floats, ["boxes", "scores"])
    found = run(with_uint8_input(model), pixels, ["boxes", "scores"])
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_every_value_becomes_what_the_letterbox_makes_of_it(tmp_path):
    model = with_uint8_input(write_network(ODD_CFG, tmp_path / "model.onnx"))
    pixels = photos(45, 63, 1)
    (seen,) = run(model, pixels, ["images/normalised"])
    np.testing.assert_array_equal(seen[0], to_input(pixels[0]))
    np.testing.assert_array_equal(np.unique(seen), (np.arange(256) / np.float32(255)).astype(np.float32))


def test_file_says_that_it_takes_uint8(tmp_path):
    single = write_network(ODD_CFG, tmp_path / "model.onnx")
    write_model(with_uint8_input(single), tmp_path / "uint8.onnx")
    assert not read_onnx_header(tmp_path / "model.onnx").uint8_input
    assert read_onnx_header(tmp_path / "uint8.onnx").uint8_input
    (value,) = onnx.load(tmp_path / "uint8.onnx").graph.input
    assert value.name == "images"
    assert value.type.tensor_type.elem_type == TensorProto.UINT8
    assert [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] == ["batch", 45, 63, 3]
    assert single == read_model(tmp_path / "model.onnx")


def test_batch_of_any_size_is_taken(tmp_path):
    model = with_uint8_input(write_network(ODD_CFG, tmp_path / "model.onnx"))
    for count in (1, 3):
        assert run(model, photos(45, 63, count), ["scores"])[0].shape == (count, 487, 2)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("nms", [False, True])
def test_goes_together_with_every_precision_and_with_suppression(precision, nms, tmp_path):
    write_network(every_block("leaky"), tmp_path / "fp32.onnx")
    pixels = photos(32, 32, 4)
    floats = np.stack([to_input(image) for image in pixels])
    if precision == "fp16":
        fp16_from_fp32(tmp_path / "fp32.onnx", tmp_path / "fp16.onnx")
    if precision == "int8":
        Quantiser(tmp_path / "fp32.onnx", floats, seed=0, threads=1).write(tmp_path / "int8.onnx", "uint8")
    plain = read_model(tmp_path / f"{precision}.onnx")
    if nms:
        plain = with_nms(plain, NmsInGraph(0.2, 0.45, 30))
    write_model(plain, tmp_path / "float.onnx")
    write_model(with_uint8_input(plain), tmp_path / "uint8.onnx")
    header = read_onnx_header(tmp_path / "uint8.onnx")
    assert (header.precision, header.uint8_input, header.nms is not None) == (precision, True, nms)
    with (
        OnnxRuntimeRunner(tmp_path / "float.onnx", threads=1) as takes_floats,
        OnnxRuntimeRunner(tmp_path / "uint8.onnx", threads=1) as takes_uint8,
    ):
        expected = takes_floats.infer(floats)
        assert expected[1].any()
        for images in (pixels, floats):  # floats of whole 255ths are those pixels
            for ours, theirs in zip(takes_uint8.infer(images), expected, strict=True):
                np.testing.assert_array_equal(ours, theirs)
