"""Genuine yolov3-tiny on real COCO photos: our mAP beside that of a pipeline that shares nothing with ours.

    python benchmarks/coco_reference.py WEIGHTS COCO_FOLDER [--out docs/measurements/coco-reference.json] [--runs DIR]

The reference reads cfg and weights with OpenCV, letterboxes with OpenCV, suppresses in a plain loop and gives
pycocotools its boxes. Ours are the networks of two builds that train nothing, one at ratio 0 and one at 0.25: in
PyTorch and, in every precision, in ONNX Runtime and OpenVINO, clean and under PGD. PGD on an engine is a transfer from
its PyTorch parent. Half of the photos, drawn at random, are what int8 is calibrated on; mAP is over all of them.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from _common import say_machine
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from prunedeploy.data.categories import match_categories
from prunedeploy.data.class_names import COCO_NAMES
from prunedeploy.data.recognise import find_splits
from prunedeploy.resources import darknet_cfg_path

SCORE_THRESHOLD, IOU_THRESHOLD, MOST_DETECTIONS = 0.001, 0.45, 100
WITHOUT_TRAINING = ("pretrain.steps=0", "score_optimization.steps=0", "finetune.steps=0")
NOT_MEASURED = ("latency.seconds=0.1", "latency.min_calls=10", "latency.warmup_seconds=0")
OF_64_PHOTOS = ("export.int8.calibration_images=32", "export.int8.budget_images=31")
RATIOS = (0.0, 0.25)
PRECISIONS = ("fp32", "fp16", "int8")


def main() -> None:
    """Print one row per network, runtime and precision."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--reference-only", action="store_true")
    arguments = parser.parse_args()
    say_machine()
    rows = []
    for interpolation in ("INTER_AREA", "INTER_LINEAR"):
        rows.append(reference_row(arguments.weights, arguments.folder, interpolation))
        show(rows[-1])
    for ratio in () if arguments.reference_only else RATIOS:
        for row in our_rows(arguments.weights, arguments.folder, arguments.runs, ratio):
            show(row)
            rows.append(row)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def show(row: dict[str, Any]) -> None:
    """Print a row."""
    figures = "  ".join(f"{name} {row[name]:.4f}" for name in ("map", "map_50", "map_pgd") if row.get(name) is not None)
    print(f"{row['network']:12} {row['runtime']:28} {row['precision']:5} {figures}", flush=True)


def reference_row(weights: Path, folder: Path, interpolation: str) -> dict[str, Any]:
    """MAP by OpenCV and pycocotools alone; ``INTER_AREA`` averages over the pixels that become one."""
    import cv2

    split = find_splits(folder).test
    assert split is not None, "the folder has no val split"
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(split.json_path))
    index_of = match_categories([category["name"] for category in truth.cats.values()], COCO_NAMES)
    category_of = {index_of[category["name"]]: key for key, category in truth.cats.items()}
    cfg = darknet_cfg_path("yolov3-tiny").read_text(encoding="utf-8")
    # OpenCV's own key: without it every score below 0.2 is zero.
    cfg = cfg.replace("[yolo]", f"[yolo]\nthresh={SCORE_THRESHOLD}")
    network = cv2.dnn.readNetFromDarknet(np.frombuffer(cfg.encode(), np.uint8), np.fromfile(weights, np.uint8))
    names = network.getUnconnectedOutLayersNames()
    found = []
    for image_id, image in truth.imgs.items():
        pixels = cv2.imread(str(split.image_folder / image["file_name"]))
        canvas, scale, left, top = letterboxed(cv2, pixels, 416, interpolation)
        network.setInput(cv2.dnn.blobFromImage(canvas, 1 / 255, (416, 416), swapRB=True))
        rows = np.concatenate(network.forward(names))
        for box, score, class_index in suppressed(rows):
            x, y, width, height = box * 416
            corner = ((x - width / 2 - left) / scale, (y - height / 2 - top) / scale)
            bbox = [float(value) for value in clipped(*corner, width / scale, height / scale, pixels.shape)]
            found.append(
                {"image_id": image_id, "category_id": category_of[class_index], "bbox": bbox, "score": float(score)}
            )
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, truth.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {
        "network": "dense",
        "runtime": f"OpenCV {cv2.__version__}, {interpolation}",
        "precision": "fp32",
        "map": float(evaluation.stats[0]),
        "map_50": float(evaluation.stats[1]),
    }


def letterboxed(
    cv2: Any, pixels: NDArray[np.uint8], size: int, interpolation: str
) -> tuple[NDArray[np.uint8], float, int, int]:
    """The image scaled and centred on a grey square; its scale, left and top in canvas pixels."""
    height, width = pixels.shape[:2]
    scale = min(size / width, size / height)
    new_width, new_height = round(width * scale), round(height * scale)
    left, top = (size - new_width) // 2, (size - new_height) // 2
    canvas = np.full((size, size, 3), 127, np.uint8)
    resized = cv2.resize(pixels, (new_width, new_height), interpolation=getattr(cv2, interpolation))
    canvas[top : top + new_height, left : left + new_width] = resized
    return canvas, scale, left, top


def suppressed(rows: NDArray[np.float32]) -> list[tuple[NDArray[np.float32], float, int]]:
    """Greedy suppression per class of OpenCV's rows ``(n, 85)``: centre, size, objectness, class scores, in [0, 1]."""
    kept = []
    for class_index in range(rows.shape[1] - 5):
        scores = rows[:, 5 + class_index]
        order = [index for index in np.argsort(-scores) if scores[index] > SCORE_THRESHOLD]
        chosen: list[int] = []
        for index in order:
            if all(overlap(rows[index], rows[other]) <= IOU_THRESHOLD for other in chosen):
                chosen.append(index)
        kept += [(rows[index, :4], float(scores[index]), class_index) for index in chosen]
    return sorted(kept, key=lambda one: -one[1])[:MOST_DETECTIONS]


def overlap(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """IoU of two boxes of centre and size."""
    sides = [
        min(a[i] + a[i + 2] / 2, b[i] + b[i + 2] / 2) - max(a[i] - a[i + 2] / 2, b[i] - b[i + 2] / 2) for i in (0, 1)
    ]
    shared = max(sides[0], 0.0) * max(sides[1], 0.0)
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


def clipped(x: float, y: float, width: float, height: float, shape: tuple[int, ...]) -> tuple[float, ...]:
    """The part of a box that is inside its image."""
    right, bottom = min(x + width, shape[1]), min(y + height, shape[0])
    x, y = max(x, 0.0), max(y, 0.0)
    return x, y, max(right - x, 0.0), max(bottom - y, 0.0)


def our_rows(weights: Path, folder: Path, runs: Path, ratio: float) -> list[dict[str, Any]]:
    """Build, then evaluate every runtime and precision on all photos."""
    out = runs / f"coco-reference-{ratio:g}"
    count = len(json.loads(find_splits(folder).test.json_path.read_bytes())["images"])  # type: ignore[union-attr]
    settings = [
        f"model.weights={weights}",
        f"data.train_images={count // 2}",
        "targets=cpu",
        *NOT_MEASURED,
        *OF_64_PHOTOS,
        *WITHOUT_TRAINING,
    ]
    command("build", "--config", "yolov3-tiny-coco", "--data", str(folder), "--ratio", f"{ratio:g}", "--precision",
            ",".join(PRECISIONS), "--out", str(out), "--store", str(runs / ".store"),
            *(part for setting in settings for part in ("--set", setting)))  # fmt: skip
    parent = ("--parent-cfg", str(out / "model.cfg"), "--attack", "pgd", "--data", str(folder), "--bootstrap", "0")
    left_out = {one["precision"]: one["reason"] for one in json.loads((out / "results.json").read_text())["left_out"]}
    rows: list[dict[str, Any]] = []
    for precision in PRECISIONS:
        if precision in left_out:
            print(f"ratio {ratio:g}: {precision} is left out: {left_out[precision]}", flush=True)
            continue
        runtimes = "torch,onnxruntime,openvino" if precision == "fp32" else "onnxruntime,openvino"
        text = command("evaluate", str(out), *parent, "--runtime", runtimes, "--precision", precision, "--json")
        for result in json.loads(text)["results"]:
            rows.append(
                {
                    "network": "dense" if ratio == 0 else f"{100 * ratio:g} % cut",
                    "runtime": result["runtime"],
                    "precision": precision,
                    "map": result["map_clean"],
                    "map_50": result["map50_clean"],
                    "map_pgd": result["map_pgd_transfer" if result["transfer"] else "map_pgd"],
                    "n_images": result["n_images"],
                }
            )
    return rows


def command(*arguments: str) -> str:
    """What a command of ours prints; its messages go to the terminal."""
    done = subprocess.run(
        [sys.executable, "-m", "prunedeploy.cli", *arguments], stdout=subprocess.PIPE, check=False, text=True
    )
    if done.returncode not in (0, 3):
        raise SystemExit(f"prunedeploy {arguments[0]} ended with {done.returncode}")
    return done.stdout


if __name__ == "__main__":
    main()
