"""What people have instead of a network's own weight file: its first layers, or other classes."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from prunedeploy.models import Darknet, load_darknet
from prunedeploy.models.cfg_rewriting import with_classes
from prunedeploy.models.darknet_cfg import DarknetCfg, read_cfg
from prunedeploy.models.darknet_weights import read_weights
from prunedeploy.models.starting_weights import starting_weights
from prunedeploy.resources import darknet_cfg_path
from prunedeploy_engines.errors import DarknetFormatError
from pruning.darknets import HEAD, conv, network, randomise

# Floats per convolution: 16 + 4*3*9 = 124 with normalisation, 20 + 5*4*9 = 200, and the head's 6 + 6*5 = 36.
FLOATS = [124, 200, 36]


@pytest.fixture
def cfg() -> DarknetCfg:
    return network(conv(4, size=3), conv(5, size=3), *HEAD)


@pytest.fixture
def whole(cfg: DarknetCfg, tmp_path: Path) -> Path:
    randomise(load_darknet(cfg), 5).save(tmp_path / "w.cfg", tmp_path / "w.weights")
    assert (tmp_path / "w.weights").stat().st_size == 20 + 4 * sum(FLOATS)
    return tmp_path / "w.weights"


def cut(path: Path, floats: int, name: str = "cut.weights") -> Path:
    """The first floats of a file, with its header."""
    path.with_name(name).write_bytes(path.read_bytes()[: 20 + 4 * floats])
    return path.with_name(name)


def equal_layers(one: Darknet, other: Darknet) -> list[int]:
    """Layer indices of the convolutions whose every value is the same."""
    found = []
    for layer in one.cfg.convolutions:
        mine, theirs = one.conv(layer.index).state_dict(), other.conv(layer.index).state_dict()
        if all(torch.equal(mine[name], theirs[name]) for name in mine):
            found.append(layer.index)
    return found


@pytest.mark.parametrize(("layers", "loaded"), [(1, (0,)), (2, (0, 1)), (3, (0, 1, 2))])
def test_a_file_of_the_first_layers_loads_what_it_has(
    cfg: DarknetCfg, whole: Path, layers: int, loaded: tuple[int, ...]
) -> None:
    weights = starting_weights(cfg, cut(whole, sum(FLOATS[:layers])))
    assert weights.loaded == loaded
    assert weights.fresh == (0, 1, 2)[layers:]
    assert weights.is_partial == (layers < 3)
    model = weights.network(seed=1)
    assert equal_layers(model, load_darknet(cfg, whole)) == list(loaded)
    assert equal_layers(model, load_darknet(cfg, seed=1)) == list(weights.fresh)  # keyed by the seed, and by it alone
    assert model.header == whole.read_bytes()[:20]


@pytest.mark.parametrize(
    ("floats", "says"),
    [
        (FLOATS[0] - 1, "ends inside the convolution of layer 0; .* fetch the file again"),
        (FLOATS[0] + 7, "ends inside the convolution of layer 1; .* fetch the file again"),
        (sum(FLOATS) - 1, "4 missing; it ends inside the convolution of layer 2; .* fetch the file again"),
        (0, "1,440 missing; give the weights that belong to this cfg"),
    ],
)
def test_a_file_cut_inside_a_layer_is_refused(cfg: DarknetCfg, whole: Path, floats: int, says: str) -> None:
    with pytest.raises(DarknetFormatError, match=says) as caught:
        starting_weights(cfg, cut(whole, floats))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_too_long_or_cut_inside_a_number_is_refused(cfg: DarknetCfg, whole: Path) -> None:
    data = whole.read_bytes()
    whole.write_bytes(data + bytes(4))
    with pytest.raises(DarknetFormatError, match="4 left over; give the weights that belong to this cfg"):
        starting_weights(cfg, whole)
    whole.write_bytes(data[:-3])
    with pytest.raises(DarknetFormatError, match=r"ends inside a number; .* fetch it again"):
        starting_weights(cfg, whole)
    with pytest.raises(DarknetFormatError, match="cannot be read"):
        starting_weights(cfg, whole.with_name("none.weights"))


def test_a_finished_network_needs_its_whole_file(cfg: DarknetCfg, whole: Path) -> None:
    with pytest.raises(DarknetFormatError, match="the first 2 of 3 convolutions, which only a training can start"):
        load_darknet(cfg, cut(whole, sum(FLOATS[:2])))


@pytest.mark.parametrize("classes", [2, 4, 80])
def test_weights_of_another_number_of_classes_load_all_but_the_heads(
    cfg: DarknetCfg, tmp_path: Path, classes: int
) -> None:
    other = with_classes(cfg, classes)
    randomise(load_darknet(other), 7).save(tmp_path / "o.cfg", tmp_path / "o.weights")
    weights = starting_weights(cfg, tmp_path / "o.weights")
    assert (weights.source.classes, weights.loaded, weights.fresh) == (classes, (0, 1), (2,))
    model = weights.network(seed=2)
    assert equal_layers(model, load_darknet(other, tmp_path / "o.weights")) == [0, 1]
    assert equal_layers(model, load_darknet(cfg, seed=2)) == [2]


def test_heads_of_other_classes_start_fresh_even_if_they_fit(cfg: DarknetCfg, whole: Path) -> None:
    assert starting_weights(cfg, whole).fresh == ()
    assert starting_weights(cfg, whole, fresh_heads=True).fresh == (2,)


def test_the_first_layers_of_the_given_network_with_a_head_among_them(cfg: DarknetCfg, tmp_path: Path) -> None:
    """A file that ends behind the first head, for a network whose heads were re-made."""
    given = network(conv(4, size=3), *HEAD, "route layers=0", conv(6, norm=False, activation="linear"), HEAD[1])
    randomise(load_darknet(given), 3).save(tmp_path / "g.cfg", tmp_path / "g.weights")
    part = cut(tmp_path / "g.weights", 124 + 6 + 6 * 4)
    weights = starting_weights(with_classes(given, 3), part, given)
    assert (weights.in_file, weights.loaded, weights.fresh) == (2, (0,), (1, 4))
    assert equal_layers(weights.network(0), load_darknet(given, tmp_path / "g.weights")) == [0]


def test_values_that_cannot_be_weights_are_refused_in_a_part_too(cfg: DarknetCfg, whole: Path) -> None:
    data = bytearray(cut(whole, FLOATS[0]).read_bytes())
    data[20 + 4 * 12 : 20 + 4 * 13] = struct.pack("<f", -1.0)  # the first variance
    whole.with_name("cut.weights").write_bytes(data)
    with pytest.raises(DarknetFormatError, match="negative variance for layer 0"):
        starting_weights(cfg, whole.with_name("cut.weights")).network(0)


@pytest.mark.parametrize(
    # Published sizes: darknet53.conv.74 has 162,482,580 bytes and holds YOLOv3's 52 convolutions below layer 74.
    ("cfg_name", "size", "layers", "last"),
    [("yolov3", 162_482_580, 52, 73), ("yolov3-spp", 162_482_580, 52, 73)],
)
def test_the_published_backbone_is_recognised_by_its_size(
    tmp_path: Path, cfg_name: str, size: int, layers: int, last: int
) -> None:
    path = tmp_path / "darknet53.conv.74"
    with path.open("wb") as file:  # sparse: only its size is looked at
        file.write(struct.pack("<iiiq", 0, 2, 0, 32013312))
        file.truncate(size)
    weights = starting_weights(read_cfg(darknet_cfg_path(cfg_name)), path)
    assert weights.in_file == len(weights.loaded) == layers
    assert max(index for index in weights.loaded) < last + 1 <= min(weights.fresh)


@pytest.mark.shared
def test_the_genuine_weights_start_a_network_of_three_classes(shared: Path, tmp_path: Path) -> None:
    """What is loaded is compared with a plain read of the file: offsets counted by hand, not by the package."""
    real = shared / "real" / "yolov3-tiny"
    cells = with_classes(read_cfg(real / "yolov3-tiny.cfg"), 3)
    weights = starting_weights(cells, real / "yolov3-tiny.weights")
    assert weights.source.classes == 80
    assert weights.fresh == (15, 22)  # the convolutions before the two [yolo] sections
    model = weights.network(seed=0)
    values = np.fromfile(real / "yolov3-tiny.weights", "<f4", offset=20)
    shapes = [(16, 3, 3), (32, 16, 3), (64, 32, 3), (128, 64, 3), (256, 128, 3), (512, 256, 3), (1024, 512, 3)]
    shapes += [(256, 1024, 1), (512, 256, 3)]  # up to layer 14: yolov3-tiny.conv.15
    at = 0
    for layer, (out, channels, size) in zip(cells.convolutions, shapes, strict=False):
        count = out * channels * size * size
        weight = values[at + 4 * out : at + 4 * out + count]
        assert np.array_equal(model.conv(layer.index).weight.detach().numpy().reshape(-1), weight), layer.index
        at += 4 * out + count
    part = tmp_path / "yolov3-tiny.conv.15"
    part.write_bytes((real / "yolov3-tiny.weights").read_bytes()[: 20 + 4 * at])
    started = starting_weights(cells, part, read_cfg(real / "yolov3-tiny.cfg"))
    assert started.loaded == (0, 2, 4, 6, 8, 10, 12, 13, 14)
    assert started.fresh == (15, 18, 21, 22)
    assert len(read_weights(part, cells, 9).parameters) == 9
