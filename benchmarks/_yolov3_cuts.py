"""Full YOLOv3, dense and pruned, as ONNX files in fp32 and int8: what the runtime benchmarks measure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from _common import narrowed, random_yolov3, scenes

from prunedeploy.models import Darknet, FoldedDarknet
from prunedeploy_export import Quantiser, onnx_from_torch


@dataclass(frozen=True)
class Cut:
    """A network's fp32 file and its multiply-accumulates for one image."""

    path: Path
    macs: int


class Cuts:
    """Makes files of one YOLOv3 with random weights in a folder, each once."""

    def __init__(self, folder: Path) -> None:
        self.dense: Darknet = random_yolov3()
        self._folder = folder

    def fp32(self, ratio: float = 0.0, multiple: int = 8) -> Cut:
        """The network pruned to a ratio; 0 is the dense one."""
        network = narrowed(self.dense, ratio, multiple)[0] if ratio else self.dense
        path = self._folder / f"yolov3-{ratio:g}-x{multiple}.onnx"
        if not path.is_file():
            onnx_from_torch(FoldedDarknet(network), path)
        return Cut(path, network.cfg.macs)

    def int8(self, ratio: float = 0.0, multiple: int = 8, images: int = 4) -> Cut:
        """Its int8 file for CPUs, calibrated on composed scenes; with random weights the ranges mean nothing."""
        source = self.fp32(ratio, multiple)
        path = source.path.with_suffix(".int8.onnx")
        if not path.is_file():
            pixels = scenes(images, self.dense.cfg.input_size[0])[0].numpy()
            Quantiser(source.path, pixels, seed=0, method="minmax", sensitivity_images=1).write(path, "uint8")
        return Cut(path, source.macs)
