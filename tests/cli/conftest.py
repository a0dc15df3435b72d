"""Running the command line, in this process and in one of its own; tiny models and data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from prunedeploy.cli import cli
from prunedeploy_engines.bundle import BundleFile, write_bundle
from tiny_detector import CLASS_NAMES, save_tiny_detector

REPOSITORY = Path(__file__).resolve().parents[2]
Run = Callable[..., Result]
RunProcess = Callable[..., "subprocess.CompletedProcess[str]"]

# Raises what a missing library raises, so that a machine without it can be had on a machine with it.
BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
"""


@pytest.fixture
def run() -> Run:
    """``run("data", "coco", folder)``: in this process; ``exit_code``, ``stdout``, ``stderr``."""

    def call(*arguments: object) -> Result:
        return CliRunner().invoke(cli, [str(argument) for argument in arguments])

    return call


@pytest.fixture
def run_process(tmp_path: Path) -> RunProcess:
    """``run_process("doctor", blocked=("torch",))``: the real program, in ``tmp_path``."""

    def call(
        *arguments: object, blocked: tuple[str, ...] = (), before: str = "", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        program = BLOCKER.format(blocked=blocked) + before + "\nfrom prunedeploy.cli import main; main()"
        paths = [str(REPOSITORY / folder) for folder in (".", "export", "engines")]
        return subprocess.run(
            [sys.executable, "-c", program, *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    return call


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle of `tiny_detector`."""
    model = save_tiny_detector(tmp_path / "source.onnx")
    folder = tmp_path / "bundle"
    write_bundle(
        folder,
        {"model.onnx": BundleFile(model, "onnx", "fp32")},
        class_names=CLASS_NAMES,
        input={"height": 32, "width": 48},
        thresholds={"score": 0.9, "iou": 0.45},
        metrics={"macs": 1_000_000},
    )
    return folder


@pytest.fixture
def red_cell(tmp_path: Path) -> Path:
    """A black image of the tiny detector's input size with one red cell at x 8 to 16, y 16 to 24."""
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[16:24, 8:16, 0] = 255
    Image.fromarray(pixels).save(tmp_path / "red.png")
    return tmp_path / "red.png"


def coco_document(images: int, classes: int, size: int) -> dict[str, Any]:
    """One box per image, of class ``number % classes``."""
    boxes = [(8.0 + number, 6.0, 16.0, 20.0) for number in range(images)]
    return {
        "images": [
            {"id": number + 1, "file_name": f"{number}.png", "width": size, "height": size} for number in range(images)
        ],
        "annotations": [
            {
                "id": number + 1,
                "image_id": number + 1,
                "category_id": number % classes + 1,
                "bbox": list(box),
                "area": box[2] * box[3],
                "iscrowd": 0,
            }
            for number, box in enumerate(boxes)
        ],
        "categories": [{"id": number + 1, "name": CLASS_NAMES[number]} for number in range(classes)],
    }


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """A COCO folder with four training and four test images of 64 x 64, three classes."""
    folder = tmp_path / "coco"
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        (folder / split).mkdir(parents=True)
        (folder / f"{split}.json").write_text(json.dumps(coco_document(4, 3, 64)))
        for number in range(4):
            image = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(image).save(folder / split / f"{number}.png")
    return folder


TINY_CFG = """[net]
width=32
height=32
channels=3

[convolutional]
batch_normalize=1
filters=8
size=3
stride=2
pad=1
activation=leaky

[convolutional]
batch_normalize=1
filters=16
size=3
stride=2
pad=1
activation=leaky

[convolutional]
filters=16
size=1
stride=1
pad=1
activation=linear

[yolo]
mask=0,1
anchors=6,8, 12,14
classes=3
num=2
"""


@pytest.fixture
def darknet(tmp_path: Path) -> Path:
    """``tiny.cfg`` with ``tiny.weights`` beside it: 32 x 32, three classes, random weights."""
    from prunedeploy.models import load_darknet, parse_cfg

    model = load_darknet(parse_cfg(TINY_CFG), None, seed=1)
    folder = tmp_path / "darknet"
    folder.mkdir()
    model.save(folder / "tiny.cfg", folder / "tiny.weights")
    return folder / "tiny.cfg"
