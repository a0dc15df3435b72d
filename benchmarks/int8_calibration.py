"""What int8 costs the demo's robust network in mAP, clean and under PGD, by method of calibration.

    python benchmarks/int8_calibration.py [--images 300] [--split test|train] [--calibration 64] [--threads 2]

No convolution but the heads' is left out, so this is what the sensitivity pass starts from. The attacked images are
made with the fp32 PyTorch parent and are the same for every file (transfer). ONNX Runtime on the CPU, both kinds of
file.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from _common import say_machine

from prunedeploy.attacks import Pgd, ThreatModel
from prunedeploy.data import load_splits, train_test_subset
from prunedeploy.data.demo import CLASS_NAMES, DemoSettings, write_demo
from prunedeploy.data.loader import EvaluationLoader
from prunedeploy.evaluation import evaluate
from prunedeploy.models import FoldedDarknet, load_darknet
from prunedeploy.resources import asset_path, darknet_cfg_path
from prunedeploy_engines.runtimes.onnxruntime.runner import OnnxRuntimeRunner
from prunedeploy_export import Quantiser, onnx_from_torch
from prunedeploy_export.precision.calibration import METHODS

PAPER = ThreatModel(eps=0.05, step_size=0.02, steps=5, random_start=False, restarts=1)
BATCH = 50


def main() -> None:
    """Print one line per method and kind of activations."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--split", choices=["test", "train"], default="test")
    parser.add_argument("--calibration", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    say_machine()
    network = load_darknet(darknet_cfg_path("yolov3-slim"), asset_path("demo-robust.weights"))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_demo(folder / "data", DemoSettings(), lambda done: None)
        training, test = load_splits(folder / "data", list(CLASS_NAMES), None, 0)
        calibrated, rest = train_test_subset(training, arguments.calibration, 0)
        measured = train_test_subset(test if arguments.split == "test" else rest, arguments.images, 0)[0]
        batches = list(EvaluationLoader(measured, network.cfg.input_size, BATCH, False))
        pgd = Pgd.against(network, PAPER, "fp32", 0)
        attacked = [pgd(batch.images, batch.targets) for batch in batches]

        def maps(path: Path) -> tuple[float, float]:
            images = iter(attacked)
            with OnnxRuntimeRunner(path, threads=arguments.threads) as engine:
                result = evaluate(
                    {"engine": engine},
                    batches,
                    measured,
                    attack=lambda model, clean, targets: next(images),
                    attacked_model=network,
                    resamples=0,
                )["engine"].metrics()
            return result["map_clean"] or 0.0, result["map_pgd"] or 0.0

        source, file = folder / "model.onnx", folder / "int8.onnx"
        onnx_from_torch(FoldedDarknet(network), source, class_names=list(CLASS_NAMES))
        reference = maps(source)
        measured_on = f"{arguments.images} {arguments.split} images"
        print(f"fp32: mAP {reference[0]:.4f} clean, {reference[1]:.4f} under PGD, {measured_on}")
        loader = EvaluationLoader(calibrated, network.cfg.input_size, BATCH, False)
        images = np.concatenate([batch.images.numpy() for batch in loader])
        print(f"\n{'method':12} {'activations':12} {'clean lost':>10} {'PGD lost':>10} {'int8 convolutions':>18}")
        for method in METHODS:
            quantiser = Quantiser(
                source, images, seed=0, method=method, sensitivity_images=1, threads=arguments.threads
            )
            for activations in ("uint8", "int8"):
                _, record = quantiser.write(file, activations)
                lost = [before - after for before, after in zip(reference, maps(file), strict=True)]
                count = f"{record.convolutions} of {record.convolutions_in_all}"
                print(f"{method:12} {activations:12} {lost[0]:10.4f} {lost[1]:10.4f} {count:>18}")


if __name__ == "__main__":
    main()
