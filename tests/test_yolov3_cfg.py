"""The cfgs we write are the published architectures, and the shipped files are what the generator writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from prunedeploy.models.yolov3_cfg import TRAINING_OPTIONS, shipped_cfgs, yolov3_cfg, yolov3_tiny_cfg

Section = tuple[str, dict[str, str]]


def read_sections(text: str) -> list[Section]:
    """Read a cfg without the package's own parser, which is not what is tested here."""
    sections: list[Section] = []
    for raw in text.splitlines():
        line = raw.split("#")[0].replace(" ", "")
        if line.startswith("["):
            sections.append((line.strip("[]"), {}))
        elif line:
            key, _, value = line.partition("=")
            sections[-1][1][key] = value
    return sections


def walk(text: str) -> tuple[int, list[tuple[int, int]]]:
    """Count a weights file's floats and give each layer's (channels, input size / its size)."""
    layers = read_sections(text)[1:]
    floats = 0
    shapes = [(3, 1)]  # the input stands before layer 0, so layer i is shapes[i + 1]
    for index, (kind, options) in enumerate(layers):
        channels, stride = shapes[-1]
        step = int(options.get("stride", 1))
        if kind == "convolutional":
            filters = int(options["filters"])
            floats += filters * channels * int(options["size"]) ** 2
            floats += filters * (4 if options.get("batch_normalize") == "1" else 1)
            shapes.append((filters, stride * step))
        elif kind == "maxpool":
            shapes.append((channels, stride * step))
        elif kind == "upsample":
            shapes.append((channels, stride // step))
        elif kind == "route":
            numbers = [int(number) for number in options["layers"].split(",")]
            sources = [shapes[1 + (index + number if number < 0 else number)] for number in numbers]
            assert len({source_stride for _, source_stride in sources}) == 1, f"layer {index} joins two resolutions"
            shapes.append((sum(source for source, _ in sources), sources[0][1]))
        elif kind == "shortcut":
            assert shapes[1 + index + int(options["from"])] == (channels, stride)
            shapes.append((channels, stride))
        else:
            assert kind == "yolo"
            shapes.append((channels, stride))
    return floats, shapes[1:]


# The first three are the sizes of the published .weights files less their header, divided by four; the
# fourth is the network the bundled demo weights are for.
@pytest.mark.parametrize(
    ("name", "floats", "strides"),
    [
        ("yolov3.cfg", 62_001_757, [32, 16, 8]),
        ("yolov3-spp.cfg", 63_052_381, [32, 16, 8]),
        ("yolov3-tiny.cfg", 8_858_734, [32, 16]),
        ("yolov3-slim.cfg", 2_272_415, [32, 16, 8]),
    ],
)
def test_cfg_has_the_published_parameter_count_and_head_strides(name: str, floats: int, strides: list[int]) -> None:
    text = shipped_cfgs()[name]
    counted, shapes = walk(text)
    assert counted == floats
    heads = [shape for shape, (kind, _) in zip(shapes, read_sections(text)[1:], strict=True) if kind == "yolo"]
    classes = 10 if name == "yolov3-slim.cfg" else 80
    assert heads == [(3 * (5 + classes), stride) for stride in strides]


def test_shipped_files_are_what_the_generator_writes(repository: Path) -> None:
    folder = repository / "configs" / "darknet"
    written = {name: (folder / name).read_text(encoding="utf-8") for name in shipped_cfgs()}
    assert written == shipped_cfgs(), "run `make cfgs`"


@pytest.mark.shared
def test_tiny_has_every_layer_and_option_of_the_genuine_file(shared: Path) -> None:
    genuine = read_sections((shared / "real" / "yolov3-tiny" / "yolov3-tiny.cfg").read_text(encoding="utf-8"))
    ours = read_sections(yolov3_tiny_cfg())
    assert ours[1:] == genuine[1:]
    # batch and subdivisions say how Darknet is to train; in the genuine file they are set for testing.
    training = {"batch", "subdivisions"}
    assert {k: v for k, v in ours[0][1].items() if k not in training} == {
        k: v for k, v in genuine[0][1].items() if k not in training
    }


def test_yolov3_routes_to_the_published_layer_numbers() -> None:
    # Redmon's yolov3.cfg: the coarse feature maps are layers 61 and 36, 107 layers in all.
    layers = read_sections(yolov3_cfg())[1:]
    assert [options["layers"] for kind, options in layers if kind == "route"] == [
        "-4",
        "-1,61",
        "-4",
        "-1,36",
    ]
    assert [index for index, (kind, _) in enumerate(layers) if kind == "yolo"] == [82, 94, 106]


def test_spp_pools_come_in_the_order_the_weights_expect() -> None:
    layers = read_sections(yolov3_cfg(spp=True))[1:]
    first = next(index for index, (kind, _) in enumerate(layers) if kind == "maxpool")
    pyramid = [options.get("layers") or options["size"] for _, options in layers[first : first + 6]]
    assert pyramid == ["5", "-2", "9", "-4", "13", "-1,-3,-5,-6"]


def test_every_option_of_the_call_reaches_the_text() -> None:
    anchors = [(8.0 + index, 9.5 + index) for index in range(9)]
    text = yolov3_cfg(
        width=0.5,
        blocks=(2, 1, 1, 1, 3),
        classes=3,
        input_size=64,
        anchors_wh=anchors,
        yolo={"ignore_thresh": ".6"},
    )
    sections = read_sections(text)
    assert sections[0] == ("net", {"width": "64", "height": "64", "channels": "3", **TRAINING_OPTIONS})
    assert sections[1][1]["filters"] == "16"
    assert [kind for kind, _ in sections].count("shortcut") == 8
    yolo = [options for kind, options in sections if kind == "yolo"]
    assert [options["mask"] for options in yolo] == ["6,7,8", "3,4,5", "0,1,2"]
    assert all(options["ignore_thresh"] == ".6" and options["classes"] == "3" for options in yolo)
    assert yolo[0]["anchors"].startswith("8,9.5,9,10.5,")
    _, shapes = walk(text)
    assert shapes[-1] == (24, 8)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"width": 0.0}, "width must be positive, got 0.0"),
        ({"classes": 0}, "classes must be at least 1, got 0"),
        ({"input_size": 100}, "multiple of 32, got 100"),
        ({"anchors_wh": [(1, 1)] * 6}, "expected 9 anchors, got 6"),
        ({"blocks": (1, 1, 1, 1, 0)}, "blocks must be five numbers"),
    ],
)
def test_arguments_out_of_range_are_refused_with_what_was_given(arguments: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        yolov3_cfg(**arguments)


def test_generator_runs_without_any_library(repository: Path, tmp_path: Path) -> None:
    generator = repository / "prunedeploy" / "models" / "yolov3_cfg.py"
    # -I -S: neither site-packages nor the checkout is on the path, only the standard library.
    subprocess.run([sys.executable, "-I", "-S", str(generator), str(tmp_path)], check=True, capture_output=True)
    assert {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()} == shipped_cfgs()
