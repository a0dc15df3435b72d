"""mPC and rPC: what fifteen corruptions at five severities leave of mAP, for the demo and for the genuine yolov3-tiny.

    python benchmarks/corruptions.py [--build runs/demo-structured-bn-scale-0.75-s0] [--images 200] [--out ROWS.jsonl]
    python benchmarks/corruptions.py --tiny yolov3-tiny.cfg --coco FOLDER [--out ROWS.jsonl]

The demo's original and robust network, and the pruned one of a build if it is given: fp32 in PyTorch and int8 on ONNX
Runtime (calibrated on 64 training images, no convolution left out but the heads'). With ``--tiny`` the Darknet network
instead, in fp32, on the test split of a data set with COCO's classes. mAP is COCO's, IoU .50 to .95, score threshold
0.001. Networks that ``--out`` holds already are not measured again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from _common import say_machine

from prunedeploy.config.corruptions import CORRUPTIONS, corruption_names, severities_of
from prunedeploy.data import CocoDataset, load_splits, train_test_subset
from prunedeploy.data.class_names import COCO_NAMES
from prunedeploy.data.coco import load_test_split
from prunedeploy.data.demo import CLASS_NAMES
from prunedeploy.data.loader import EvaluationLoader
from prunedeploy.evaluation import TorchRunner
from prunedeploy.evaluation.corruption import evaluate_corrupted
from prunedeploy.models import FoldedDarknet, load_darknet
from prunedeploy.models.darknet import Darknet
from prunedeploy.pipeline.context import composed_demo
from prunedeploy.pipeline.progress import Progress
from prunedeploy.resources import asset_path, darknet_cfg_path
from prunedeploy_engines.runtimes.onnxruntime.runner import OnnxRuntimeRunner
from prunedeploy_engines.runtimes.runner import Runner
from prunedeploy_export import Quantiser, onnx_from_torch

CALIBRATION = 64
BATCH = 20
FAMILIES = {
    "noise": CORRUPTIONS[:3],
    "blur": CORRUPTIONS[3:7],
    "weather": CORRUPTIONS[7:11],
    "digital": CORRUPTIONS[11:],
}


def int8_of(network: Darknet, training: CocoDataset, folder: Path) -> Path:
    """An int8 file for CPUs of a network."""
    source, file = folder / "model.onnx", folder / "int8.onnx"
    onnx_from_torch(FoldedDarknet(network), source, class_names=list(CLASS_NAMES))
    calibrated = train_test_subset(training, CALIBRATION, 0)[0]
    images = np.concatenate(
        [batch.images.numpy() for batch in EvaluationLoader(calibrated, network.cfg.input_size, BATCH)]
    )
    Quantiser(source, images, seed=0, sensitivity_images=1, threads=1).write(file, "uint8")
    return file


def measure(
    network: Darknet, test: CocoDataset, training: CocoDataset | None, arguments: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """What each precision keeps."""
    with ExitStack() as stack:
        runners: dict[str, Runner] = {"fp32": stack.enter_context(TorchRunner(network))}
        if training is not None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            runners["int8"] = stack.enter_context(OnnxRuntimeRunner(int8_of(network, training, folder), threads=1))
        names, severities = corruption_names(arguments.corruptions.split(",")), severities_of(arguments.severities)
        passes = (1 + len(names) * len(severities)) * len(test.images)
        with Progress().task("corrupted images", passes) as advance:
            found = evaluate_corrupted(
                runners,
                EvaluationLoader(test, network.cfg.input_size, BATCH),
                test,
                names,
                severities,
                resamples=arguments.bootstrap,
                progress=advance,
            )
    return {precision: one.as_dict() for precision, one in found.items()}


def show(row: dict[str, Any]) -> None:
    """A line for each precision: means with their intervals, and the mean of each family."""
    for precision, found in row["precisions"].items():
        cells = [f"{row['network']:<12} {precision:<5}"]
        for key in ("map_clean", "mpc", "rpc"):
            ends = found["intervals"][key]
            value = "-" if found[key] is None else f"{found[key]:.3f}"
            cells.append(value + (f" [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else ""))
        for family, names in FAMILIES.items():
            values = [value for name in names for value in found["map"].get(name, ())]
            if values and None not in values:
                cells.append(f"{family} {sum(values) / len(values):.3f}")
        print("  ".join(cells), flush=True)


def main() -> None:
    """Print and append one row per network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, help="output folder of a build of the demo")
    parser.add_argument("--tiny", type=Path, help="a Darknet cfg with COCO's classes, its weights beside it")
    parser.add_argument("--coco", type=Path, help="its data set")
    parser.add_argument("--images", type=int)
    parser.add_argument("--corruptions", default="all")
    parser.add_argument("--severities", default="1-5")
    parser.add_argument("--bootstrap", type=int, default=1000)
    parser.add_argument("--store", type=Path, default=Path("runs/.store"))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if (arguments.tiny is None) != (arguments.coco is None):
        parser.error("--tiny and --coco go together")
    say_machine()
    slim, training = darknet_cfg_path("yolov3-slim"), None
    if arguments.tiny is not None:
        networks = {arguments.tiny.stem: (arguments.tiny, arguments.tiny.with_suffix(".weights"))}
        test = load_test_split(arguments.coco, list(COCO_NAMES))
    else:
        networks = {
            one: (slim, asset_path(f"demo-{w}.weights")) for one, w in (("original", "clean"), ("robust", "robust"))
        }
        if arguments.build is not None:
            networks["pruned"] = (arguments.build / "model.cfg", arguments.build / "model.weights")
        training, test = load_splits(composed_demo(arguments.store, Progress()), list(CLASS_NAMES), None, 0)
    if arguments.images is not None:
        test = replace(test, images=test.images[: arguments.images])
    about = {"images": len(test.images), "corruptions": arguments.corruptions, "severities": arguments.severities}
    known: list[dict[str, Any]] = []
    if arguments.out is not None and arguments.out.exists():
        known = [json.loads(line) for line in arguments.out.read_text().splitlines()]
    print("network, precision, mAP clean, mPC and rPC with their intervals, and mAP by family")
    for name, (cfg, weights) in networks.items():
        row = next((one for one in known if {"network": name, **about}.items() <= one.items()), None)
        if row is None:
            started = time.monotonic()
            found = measure(load_darknet(cfg, weights).eval(), test, training, arguments)
            row = {"network": name, **about, "precisions": found, "seconds": round(time.monotonic() - started, 1)}
            if arguments.out is not None:
                with arguments.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
        show(row)


if __name__ == "__main__":
    main()
