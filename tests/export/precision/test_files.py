"""fp16 and int8 files from an fp32 file, with the record of how they were made."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from export.networks import ODD_CFG, folded, narrow, random_images, random_network
from export.precisions import every_block, executed_operators, run, write_network
from prunedeploy.models.darknet_cfg import read_cfg
from prunedeploy_engines.errors import DataError, EngineError, GateError
from prunedeploy_engines.runtimes.onnx_file import NmsInGraph, read_onnx_header
from prunedeploy_export import Quantiser, fp16_from_fp32, onnx_from_torch, with_nms, with_uint8_input
from prunedeploy_export.graph.edit import read_model, write_model
from prunedeploy_export.precision import files as precision
from prunedeploy_export.precision.calibration import METHODS

IMAGES = np.random.default_rng(0).random((5, 3, 32, 32), dtype=np.float32)
HEADS = ("layer9", "layer15")


@pytest.fixture
def source(tmp_path):
    write_network(every_block("leaky"), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def quantiser(source, **settings) -> Quantiser:
    return Quantiser(source, IMAGES, **{"seed": 7, "threads": 1, "sensitivity_images": 2, **settings})


@pytest.mark.parametrize("activations", ["uint8", "int8"])
def test_record_in_the_file_is_complete(source, tmp_path, activations):
    file, record = quantiser(source, method="percentile").write(tmp_path / "int8.onnx", activations)
    header = read_onnx_header(tmp_path / "int8.onnx")
    assert header.precision == "int8"
    assert header.metadata["input_size"] == "[32, 32]"
    names = [node.name for node in read_model(source).graph.node if node.op_type == "Conv"]
    skipped = ["layer0/conv", *HEADS]
    expected = {
        "activations": activations,
        "weights": "int8, symmetric, per output channel",
        "method": "percentile",
        "images": 5,
        "seed": 7,
        "convolutions": 6,
        "convolutions_in_all": 9,
        "skipped": skipped,
        "budget": None,
        "trials": [],
    }
    written = dict(header.quantisation)
    decibels = written.pop("costs_db")
    assert written == expected
    assert list(decibels) == names
    assert all(5 < value < 60 for value in decibels.values())
    assert record.skipped == tuple(skipped)
    assert file.bytes == (tmp_path / "int8.onnx").stat().st_size
    if activations == "uint8":
        assert executed_operators(onnx.load(file.path))["QLinearConv"] == record.convolutions


@pytest.mark.parametrize("activations", ["uint8", "int8"])
@pytest.mark.parametrize("method", METHODS)
def test_same_images_give_the_same_bytes(source, tmp_path, activations, method):
    first, again = (
        quantiser(source, method=method).write(tmp_path / f"{name}.onnx", activations)[0] for name in ("a", "b")
    )
    assert first.sha256 == again.sha256


def test_one_calibration_serves_both_files_in_any_order(source, tmp_path):
    one, other = quantiser(source), quantiser(source)
    found = [one.write(tmp_path / "a.onnx", kind)[0].sha256 for kind in ("uint8", "int8")]
    assert found == [other.write(tmp_path / "b.onnx", kind)[0].sha256 for kind in ("int8", "uint8")][::-1]


@pytest.mark.parametrize(
    "name",
    [
        "odd",
        "yolov3-tiny",
        pytest.param("yolov3-slim", marks=pytest.mark.slow),
        pytest.param("yolov3-spp", marks=pytest.mark.slow),
    ],
)
def test_shipped_networks_become_int8_whatever_is_left_out(name, repository, tmp_path):
    cfg = ODD_CFG if name == "odd" else narrow(read_cfg(repository / "configs" / "darknet" / f"{name}.cfg"))
    network = random_network(cfg, seed=1)
    onnx_from_torch(folded(network), tmp_path / "model.onnx")
    images = random_images(network.cfg, 2)
    made = Quantiser(tmp_path / "model.onnx", images, seed=0, sensitivity_images=1, threads=1)
    # Every convolution alone (the costs), all but the first and the heads, and fewer.
    for activations in ("uint8", "int8"):
        file, record = made.write(tmp_path / "all.onnx", activations)
        assert record.convolutions == record.convolutions_in_all - len(record.skipped) > 0
        found, expected = (run(onnx.load(path), images, ["scores"])[0] for path in (file.path, tmp_path / "model.onnx"))
        # Random weights lose far more than trained ones, and 76 layers more than 9; but it is the same network.
        assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.8
        few, losses = made.write(
            tmp_path / "few.onnx",
            activations,
            loss=lambda model: -sum(_in_float(model)),
            budget=-1 - len(record.skipped),
        )
        assert len(losses.skipped) > len(record.skipped)
        if activations == "uint8":
            assert executed_operators(onnx.load(few.path))["QLinearConv"] == losses.convolutions


def _in_float(model: onnx.ModelProto) -> list[bool]:
    """For every convolution: are its weights float?"""
    floats = {tensor.name for tensor in model.graph.initializer}
    return [node.input[1] in floats for node in model.graph.node if node.op_type == "Conv"]


def test_loss_decides_how_many_are_left_out(source, tmp_path):
    asked = []

    def loss(model: onnx.ModelProto) -> float:
        onnx.checker.check_model(model, full_check=True)
        asked.append(sum(_in_float(model)))
        return (5 - asked[-1]) / 8

    file, record = quantiser(source).write(tmp_path / "int8.onnx", "uint8", loss=loss, budget=0.125)
    # The first convolution and two heads always; one more makes 4, which loses 1 / 8: the budget.
    assert asked == [3, 4]
    assert record.trials == ((0, 0.25), (1, 0.125))
    assert record.budget == 0.125
    assert len(record.skipped) == 4
    least = min((value, name) for name, value in record.costs_db.items() if name not in ("layer0/conv", *HEADS))
    assert record.skipped[-1] == least[1]
    assert sum(_in_float(onnx.load(file.path))) == 4
    assert read_onnx_header(file.path).quantisation["trials"] == [[0, 0.25], [1, 0.125]]


def test_budget_that_cannot_be_met_is_an_error_and_writes_nothing(source, tmp_path):
    with pytest.raises(GateError, match=r"int8 costs more than the budget of 0\.01"):
        quantiser(source).write(tmp_path / "int8.onnx", "uint8", loss=lambda model: 0.2, budget=0.01)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_budget_that_nothing_was_measured_against_is_not_in_the_record(source, tmp_path):
    assert quantiser(source).write(tmp_path / "int8.onnx", "uint8", budget=0.01)[1].budget is None


def test_first_convolution_becomes_int8_if_that_is_harmless(source, tmp_path, monkeypatch):
    made = quantiser(source)
    assert "layer0/conv" in made.write(tmp_path / "int8.onnx", "uint8")[1].skipped
    cost = 10 ** (-made.write(tmp_path / "int8.onnx", "uint8")[1].costs_db["layer0/conv"] / 10)
    for limit, skipped in ((1.01 * cost, HEADS), (0.99 * cost, ("layer0/conv", *HEADS))):
        monkeypatch.setattr(precision, "HARMLESS_ERROR", limit)
        assert made.write(tmp_path / "int8.onnx", "uint8")[1].skipped == skipped


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("activation", "relu"), [("relu", True), ("leaky", False)])
def test_what_a_rectifier_cuts_off_takes_no_levels(activation, relu, method, tmp_path):
    write_network(every_block(activation), tmp_path / "model.onnx")
    file, record = quantiser(tmp_path / "model.onnx", method=method).write(tmp_path / "int8.onnx", "uint8")
    zeros = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(file.path).graph.initializer}
    found = [zeros[f"{name}/zero_point"] == 0 for name in record.costs_db if name not in record.skipped]
    assert found == [relu] * 6


def test_damping_of_negative_values_counts_for_unsigned_files_only(source, tmp_path):
    # Those for TensorRT quantise behind the rectifier, where all values count the same.
    made = quantiser(source, method="mse")
    with_slopes = made.write(tmp_path / "a.onnx", "uint8")[0].sha256, made.write(tmp_path / "b.onnx", "int8")[0].sha256
    made._slopes = {}
    without = made.write(tmp_path / "a.onnx", "uint8")[0].sha256, made.write(tmp_path / "b.onnx", "int8")[0].sha256
    assert with_slopes[0] != without[0]
    assert with_slopes[1] == without[1]


def test_file_that_takes_uint8_images_is_calibrated_with_them(source, tmp_path):
    model = read_model(source)
    write_model(with_uint8_input(model), tmp_path / "uint8.onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    floats = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)) / np.float32(255)
    found = []
    for path, images in ((source, floats), (tmp_path / "uint8.onnx", pixels)):
        file, record = Quantiser(path, images, seed=0, threads=1).write(tmp_path / "int8.onnx", "uint8")
        found.append((record.costs_db, *run(onnx.load(file.path), images, ["boxes", "scores"])))
    assert found[0][0] == found[1][0]
    for ours, theirs in zip(found[0][1:], found[1][1:], strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_file_with_suppression_can_be_quantised(source, tmp_path):
    write_model(with_nms(read_model(source), NmsInGraph(0.2, 0.5, 9)), tmp_path / "nms.onnx")
    _, record = quantiser(tmp_path / "nms.onnx").write(tmp_path / "int8.onnx", "uint8")
    assert record.skipped == ("layer0/conv", *HEADS)


@pytest.mark.parametrize("shape", [(2, 3, 32, 31), (2, 3, 64, 64), (2, 32, 32, 3), (3, 32, 32), (2, 1, 32, 32)])
def test_images_of_another_shape_are_refused(source, shape):
    with pytest.raises(DataError, match=r"calibration images must be \(K, 3, 32, 32\), got \(") as caught:
        Quantiser(source, np.zeros(shape, np.float32), seed=0)
    assert str(shape) in str(caught.value)


def test_no_images_are_refused(source):
    with pytest.raises(DataError, match="no images to calibrate with"):
        Quantiser(source, IMAGES[:0], seed=0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_images_that_are_not_finite_are_refused(source, value):
    images = IMAGES.copy()
    images[3, 0, 0, 0] = value
    with pytest.raises(DataError, match="not finite"):
        Quantiser(source, images, seed=0, threads=1)


def both(source, tmp_path, match: str) -> None:
    for make in (lambda: quantiser(source), lambda: fp16_from_fp32(source, tmp_path / "half.onnx")):
        with pytest.raises(EngineError, match=match) as caught:
            make()
        assert "\n" not in str(caught.value)
        assert source.name in str(caught.value)
    assert not (tmp_path / "half.onnx").exists()


def test_file_that_is_not_fp32_is_refused(source, tmp_path):
    fp16_from_fp32(source, tmp_path / "fp16.onnx")
    quantiser(source).write(tmp_path / "int8.onnx", "uint8")
    both(tmp_path / "fp16.onnx", tmp_path, "is fp16 already; give the fp32 file")
    both(tmp_path / "int8.onnx", tmp_path, "is int8 already; give the fp32 file")


def test_opset_that_is_too_old_is_refused(source, tmp_path):
    model = onnx.load(source)
    model.opset_import[0].version = 12
    onnx.save(model, tmp_path / "old.onnx")
    both(tmp_path / "old.onnx", tmp_path, "has opset 12, other precisions need 13 or later")


@pytest.mark.parametrize("data", [b"", b"garbage", b"\x89PNG\r\n\x1a\n" + bytes(range(256))])
def test_garbage_is_refused(tmp_path, data):
    (tmp_path / "garbage.onnx").write_bytes(data)
    both(tmp_path / "garbage.onnx", tmp_path, "is not an ONNX")
    both(tmp_path / "none.onnx", tmp_path, "cannot be read")
