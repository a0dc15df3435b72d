"""Layers, weights, MACs, coupling and keys of cfgs, against published figures, a plain count and worked cases."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cfg_text import sections_of
from prunedeploy.models import parse_cfg, read_cfg
from prunedeploy.pipeline.inspection.keys import key_meanings
from prunedeploy.pipeline.inspection.network import network_document
from prunedeploy_engines.errors import DarknetFormatError
from pruning.darknets import HEAD, conv, network

# FLOPs in units of 1e9 at a side in pixels, as Darknet's authors state them (README of AlexeyAB/darknet): two per MAC.
PUBLISHED_BFLOPS = {
    "yolov3-tiny": (416, 5.6),
    "yolov3": (416, 65.9),
    "yolov3-spp": (608, 141.5),
    "yolov4": (608, 128.5),
    "yolov4-tiny": (416, 6.9),
}
# Bytes of the authors' weights files; yolov4's and yolov4-tiny's as Open Model Zoo lists them.
WEIGHTS_BYTES = {
    "yolov3-tiny": 35_434_956,
    "yolov3": 248_007_048,
    "yolov3-spp": 252_209_544,
    "yolov4": 257_717_640,
    "yolov4-tiny": 24_251_276,
}


@pytest.mark.parametrize("name", PUBLISHED_BFLOPS)
def test_genuine_cfgs_have_the_published_flops_and_the_size_of_their_weights(shared: Path, name: str) -> None:
    cfg = read_cfg(shared / "real" / "darknet-cfg" / f"{name}.cfg")
    side, bflops = PUBLISHED_BFLOPS[name]
    totals = network_document(cfg.with_options({-1: {"width": side, "height": side}}))["totals"]
    assert 2 * totals["macs"] / 1e9 == pytest.approx(bflops, rel=0.01)
    assert totals["weights_file_bytes"] == WEIGHTS_BYTES[name]


def counted_by_hand(text: str) -> list[tuple[int, int]]:
    """Weights and MACs of each layer, from the text alone: channels and sides are followed option by option."""
    sections = sections_of(text)
    net = sections[0][1]
    shapes, found = [], []
    for i, (kind, options) in enumerate(sections[1:]):
        channels, height, width = shapes[-1] if shapes else (3, int(net["height"]), int(net["width"]))
        stride, weights = int(options.get("stride", 1)), 0
        if kind == "convolutional":
            size, filters = int(options["size"]), int(options["filters"])
            padding = size // 2 if options.get("pad") == "1" else 0
            weights = filters * channels // int(options.get("groups", 1)) * size * size
            height, width = ((side + 2 * padding - size) // stride + 1 for side in (height, width))
            channels = filters
        elif kind == "maxpool":
            height, width = (-(-side // stride) for side in (height, width))
        elif kind == "upsample":
            height, width = 2 * height, 2 * width
        elif kind == "route":
            read = [shapes[int(at) if int(at) >= 0 else i + int(at)] for at in options["layers"].split(",")]
            channels = sum(shape[0] for shape in read) // int(options.get("groups", 1))
            height, width = read[0][1:]
        shapes.append((channels, height, width))
        found.append((weights, weights * height * width))
    return found


def test_every_genuine_cfg_counts_like_its_text(shared: Path) -> None:
    read = 0
    for path in sorted((shared / "real" / "darknet-cfg").glob("yolov[34]*.cfg")):
        try:
            document = network_document(read_cfg(path))
        except DarknetFormatError:
            continue
        if {row["kind"] for row in document["layers"]} <= {
            *("convolutional", "maxpool", "upsample", "route", "shortcut", "yolo")
        }:
            rows = [(row["weights"], row["macs"]) for row in document["layers"]]
            assert rows == counted_by_hand(path.read_text()), path.name
            json.dumps(document)
            read += 1
    assert read >= 12


CFG = """[net]
width=32
height=32
batch=1
letter_box=0
momentum=0.9

[convolutional]
filters=8
size=3
pad=1
activation=leaky
stopbackward=1

[convolutional]
filters=8
size=1
activation=leaky

[shortcut]
from=-2

[convolutional]
filters=12
size=1
activation=logistic

[convolutional]
filters=16
size=1
activation=linear

[yolo]
mask=0,1
anchors=6,8, 12,14
classes=3
jitter=.3
nms_kind=greedynms
"""


def test_layers_say_what_they_read_and_what_they_are_coupled_with() -> None:
    document = network_document(parse_cfg(CFG))
    rows = document["layers"]
    assert [row["inputs"] for row in rows] == [[-1], [0], [1, 0], [2], [3], [4]]
    assert rows[2]["out_shape"] == [8, 32, 32]
    assert [row["coupled_with"] for row in rows] == [[1], [0], None, [], [], None]
    assert [row["removable"] for row in rows] == [8, 8, None, 0, 0, None]
    assert [row["counted"] for row in rows] == [True, True, None, True, False, None]
    assert rows[3]["why_not"] == "layer 3 turns zero into something else by activation logistic"
    assert rows[4]["why_not"] == "reaches the yolo section at layer 5"
    assert document["input"] == {"channels": 3, "height": 32, "width": 32, "letterbox": False}
    assert (document["heads"], document["classes"]) == ([5], 3)
    assert document["totals"]["prunable_weights"] == 8 * 3 * 9 + 8 * 8 + 8 * 12


def test_options_that_change_nothing_are_named_with_their_line_and_the_others_explained() -> None:
    cfg = parse_cfg(CFG)
    ignored = {(one.line, one.section, f"{one.option}={one.value}") for one in cfg.ignored_options}
    lines = CFG.splitlines()
    sections = {"batch=1": "net", "momentum=0.9": "net", "stopbackward=1": "convolutional"}
    sections |= {"jitter=.3": "yolo", "nms_kind=greedynms": "yolo"}
    assert ignored == {(lines.index(line) + 1, section, line) for line, section in sections.items()}
    keys = {(key.section, key.option): key for key in key_meanings(cfg)}
    assert keys["convolutional", "activation"].values == ("leaky", "logistic", "linear")
    assert all(key.meaning for key in keys.values())
    assert not {(one.section, one.option) for one in cfg.ignored_options} & keys.keys()


def test_weights_that_a_layer_shares_count_once() -> None:
    document = network_document(network(conv(8, 3), conv(8, 3), conv(8, 3) + " share_index=1", *HEAD))
    assert [row["weights"] for row in document["layers"]] == [216, 576, 0, 48, 0]
    assert document["totals"]["weights"] == 840
    assert document["layers"][2]["macs"] == document["layers"][1]["macs"] == 576 * 16 * 16
