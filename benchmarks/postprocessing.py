"""What surrounds the engine at 416: letterbox, and NMS of 10,647 boxes x 80 classes, against the dense network's time.

    python benchmarks/postprocessing.py [--rounds 40] [--threads 2]

The images are of 640 x 480 and 1920 x 1080; the network's outputs come in three kinds: few candidates, as at a score
threshold of 0.25 on a photo; some hundreds; and thousands, as at COCO's 0.001. In turns, medians.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
from _common import in_turns, median, say_machine, scenes
from _yolov3_cuts import Cuts

from prunedeploy_engines.detection.letterbox import letterbox, to_input
from prunedeploy_engines.detection.nms import detections_from
from prunedeploy_engines.runtimes.onnx_file import NmsInGraph
from prunedeploy_engines.runtimes.onnxruntime.runner import OnnxRuntimeRunner
from prunedeploy_export import with_nms
from prunedeploy_export.graph.edit import read_model, write_model

BOXES, CLASSES = 10_647, 80


def outputs(candidates: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Boxes and scores of one image with so many pairs of box and class above 0.25, most of them overlapping."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform(40, 376, (20, 2))[rng.integers(0, 20, BOXES)] + rng.normal(0, 8, (BOXES, 2))
    half = np.exp(rng.normal(3.2, 0.3, (BOXES, 2))) / 2 + 8
    scores = rng.uniform(0, 0.2, (BOXES, CLASSES)).astype(np.float32)
    chosen = rng.choice(BOXES * CLASSES, candidates, replace=False)
    scores.ravel()[chosen] = rng.uniform(0.26, 1.0, candidates)
    return np.concatenate((centres - half, centres + half), axis=1).astype(np.float32), scores


def main() -> None:
    """Print medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    say_machine()
    rng = np.random.default_rng(0)
    photos = {
        f"letterbox {w} x {h}": rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for w, h in ((640, 480), (1920, 1080))
    }
    calls = {name: (lambda photo=photo: to_input(letterbox(photo, (416, 416))[0])) for name, photo in photos.items()}
    for candidates, threshold in ((30, 0.25), (300, 0.25), (5000, 0.25), (0, 0.001)):
        boxes, scores = outputs(candidates)
        name = f"NMS, {candidates} candidates" if candidates else "NMS at a threshold of 0.001, the best 10,000"
        calls[name] = partial(detections_from, boxes, scores, score_threshold=threshold, iou_threshold=0.45)
    with tempfile.TemporaryDirectory() as folder:
        cuts = Cuts(Path(folder))
        dense = cuts.fp32().path
        in_graph = Path(folder) / "nms.onnx"
        write_model(with_nms(read_model(dense), NmsInGraph(0.25, 0.45, 100)), in_graph)
        image = scenes(1, 416)[0].numpy()
        # Threads that spin would slow the call that follows.
        with (
            OnnxRuntimeRunner(dense, threads=arguments.threads, allow_spinning=False) as engine,
            OnnxRuntimeRunner(in_graph, threads=arguments.threads, allow_spinning=False) as with_suppression,
        ):
            calls["engine: YOLOv3 dense, fp32"] = lambda: engine.infer(image)
            calls["engine with NMS in the graph"] = lambda: with_suppression.infer(image)
            times = in_turns(calls, arguments.rounds)
    base = median(times["engine: YOLOv3 dense, fp32"])
    for name, seconds in times.items():
        print(f"{name:48} {1e3 * median(seconds):9.2f} ms {100 * median(seconds) / base:7.1f} % of the engine")
    worst = max(median(times[name]) for name in photos) + median(times["NMS, 300 candidates"])
    print(f"letterbox of 1920 x 1080 and NMS of 300 candidates: {100 * worst / base:.1f} % of the engine's time")


if __name__ == "__main__":
    main()
