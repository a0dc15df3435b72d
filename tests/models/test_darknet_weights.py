"""Darknet weight files: byte for byte back, and refused if they are not this network's."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from prunedeploy.models import load_darknet
from prunedeploy.models.darknet_cfg import DarknetCfg, read_cfg
from prunedeploy.models.darknet_weights import read_weights, weight_count, weights_bytes
from prunedeploy.resources import darknet_cfg_path
from prunedeploy_engines.errors import DarknetFormatError
from pruning.darknets import HEAD, conv, network, random_network

# 3 -> 4 filters 3x3 with normalisation: bias, scale, mean, variance 4 each, 4*3*3*3 = 108 weights.
# 4 -> 6 filters 1x1 without: bias 6, 24 weights. In all 16 + 108 + 30 = 154 floats.
FLOATS = 154


@pytest.fixture
def cfg() -> DarknetCfg:
    return network(conv(4, size=3), *HEAD)


def floats() -> np.ndarray:
    """Every value is its own position, so that a misplaced one shows."""
    return np.arange(1, FLOATS + 1, dtype="<f4")


def new_header(seen: int = 32013312) -> bytes:
    return struct.pack("<iiiq", 0, 2, 0, seen)


def old_header(seen: int = 12345) -> bytes:
    return struct.pack("<iiii", 0, 1, 0, seen)


def test_values_stand_in_darknets_order(cfg: DarknetCfg, tmp_path: Path) -> None:
    path = tmp_path / "w.weights"
    path.write_bytes(new_header() + floats().tobytes())
    assert weight_count(cfg) == FLOATS
    first, second = read_weights(path, cfg).parameters
    assert first["bias"].tolist() == [1, 2, 3, 4]
    assert first["scale"].tolist() == [5, 6, 7, 8]
    assert first["mean"].tolist() == [9, 10, 11, 12]
    assert first["variance"].tolist() == [13, 14, 15, 16]
    assert first["weight"].shape == (4, 3, 3, 3)
    # Filter 1, channel 2, row 0, column 1 of a row-major array behind the 16 values above.
    assert first["weight"][1, 2, 0, 1] == 17 + 1 * 27 + 2 * 9 + 1
    assert second["bias"].tolist() == [125, 126, 127, 128, 129, 130]
    assert second["weight"][5, 3, 0, 0] == FLOATS


@pytest.mark.parametrize("header", [new_header(), old_header(), struct.pack("<iiiq", 1, 0, 7, 2**40)])
def test_a_file_is_written_back_byte_for_byte(cfg: DarknetCfg, tmp_path: Path, header: bytes) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=FLOATS).astype("<f4")
    values[12:16] = [1e-30, 0.0, 3e-9, 7.7]  # variances that no conversion to and fro survives
    data = header + values.tobytes()
    path = tmp_path / "w.weights"
    path.write_bytes(data)
    assert weights_bytes(cfg, read_weights(path, cfg)) == data
    model = load_darknet(cfg, path)
    model.save(tmp_path / "out.cfg", tmp_path / "out.weights")
    assert (tmp_path / "out.weights").read_bytes() == data
    assert (tmp_path / "out.cfg").read_bytes() == cfg.text.encode()


def test_cfg_text_with_crlf_and_comments_is_written_back_byte_for_byte(tmp_path: Path) -> None:
    source = tmp_path / "in.cfg"
    text = "# größer\r\n" + network(conv(4), *HEAD).text.replace("\n", "\r\n") + "; end without a line break"
    source.write_bytes(text.encode())
    load_darknet(source).save(tmp_path / "out.cfg", tmp_path / "out.weights")
    assert (tmp_path / "out.cfg").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("name", ["yolov3", "yolov3-spp", "yolov3-tiny"])
def test_shipped_cfgs_need_files_of_the_published_size(name: str) -> None:
    published = {"yolov3": 248_007_048, "yolov3-spp": 252_209_544, "yolov3-tiny": 35_434_956}
    assert 20 + 4 * weight_count(read_cfg(darknet_cfg_path(name))) == published[name]


def refusal(path: Path, cfg: DarknetCfg) -> str:
    with pytest.raises(DarknetFormatError) as caught:
        read_weights(path, cfg)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


def test_truncated_and_over_long_files_are_refused(cfg: DarknetCfg, tmp_path: Path) -> None:
    path = tmp_path / "w.weights"
    whole = new_header() + floats().tobytes()
    for data, says in [
        (whole[:-4], "4 missing"),
        (whole[:-1], "1 missing"),
        (whole + b"\0" * 8, "8 left over"),
        (whole[:20], "616 missing"),
        (whole[:7], "not even a header"),
        (b"", "not even a header"),
    ]:
        path.write_bytes(data)
        assert says in refusal(path, cfg)


def test_weights_of_another_cfg_are_refused(cfg: DarknetCfg, tmp_path: Path) -> None:
    other = network(conv(5, size=3), *HEAD)
    load_darknet(other).save(tmp_path / "o.cfg", tmp_path / "o.weights")
    assert "belong to this cfg" in refusal(tmp_path / "o.weights", cfg)


def test_weights_of_another_cfg_of_the_same_length_are_refused_by_a_negative_variance(tmp_path: Path) -> None:
    values = np.full(FLOATS, 0.5, "<f4")
    values[13] = -0.25
    path = tmp_path / "w.weights"
    path.write_bytes(new_header() + values.tobytes())
    message = refusal(path, network(conv(4, size=3), *HEAD))
    assert "negative variance for layer 0" in message


@pytest.mark.parametrize(
    ("other", "says"),
    [
        # Layer 1 has other filters, its kernels another size, more groups; what stands before is the same.
        ((conv(16, 3), conv(24, 3), conv(32, 3)), "up to layer 0 it reads like this cfg's file, at layer 1 no longer"),
        ((conv(16, 3), conv(32, 1), conv(32, 3)), "up to layer 1 it reads like this cfg's file, at layer 2 no longer"),
        ((conv(16, 3), conv(32, 3, groups=2), conv(32, 3)), "up to layer 1 it reads like this cfg's file, at layer 2"),
        ((conv(24, 3), conv(32, 3), conv(32, 3)), "its layers part from this cfg's at layer 0"),
    ],
)
def test_weights_of_a_variant_say_where_the_layers_part(tmp_path: Path, other: tuple[str, ...], says: str) -> None:
    random_network(network(*other, *HEAD)).save(tmp_path / "x.cfg", tmp_path / "x.weights")
    message = refusal(tmp_path / "x.weights", network(conv(16, 3), conv(32, 3), conv(32, 3), *HEAD))
    assert says in message
    assert "\n" not in message


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused_with_its_place(cfg: DarknetCfg, tmp_path: Path, value: float) -> None:
    values = floats()
    values[77] = value
    path = tmp_path / "w.weights"
    path.write_bytes(new_header() + values.tobytes())
    assert "value 77 is not a finite number" in refusal(path, cfg)


def test_a_missing_file_and_a_folder_are_refused(cfg: DarknetCfg, tmp_path: Path) -> None:
    assert "cannot be read" in refusal(tmp_path / "none.weights", cfg)
    assert "cannot be read" in refusal(tmp_path, cfg)


def test_writing_a_parameter_of_another_shape_prints_both(cfg: DarknetCfg) -> None:
    file = load_darknet(cfg).weight_file()
    file.parameters[0]["bias"] = np.zeros(3, np.float32)
    with pytest.raises(ValueError, match=r"expected shape \(4,\), got \(3,\)"):
        weights_bytes(cfg, file)
