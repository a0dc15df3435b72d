"""What removing dead channels gains: filters, MACs and latency of pruned networks, per ratio.

    python benchmarks/dead_channels.py [--scores magnitude,deeplift] [--cuts weight:uniform,kernel:global]
        [--ratios 0.5,0.95] [--multiples 1,4] [--runtime onnxruntime] [--seconds 2] [--cpu-time] [--out F.jsonl]

The demo network with its bundled robust weights, pruned at once without fine-tuning: which weights are zero decides
what is dead, not their values. "masked" is the network with zeros; beside it are those without dead channels, widths
kept at multiples of 1 (all that is dead goes) and of 4 (what a build does).

Median latency, batch 1, a process per model, interleaved in rounds; --seconds 0 measures none. --cpu-time gives
instead the CPU time of ONNX Runtime on one thread, calls taking turns: on a machine that does other work at the same
time it says which network costs less, where latencies say nothing.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from _common import median, say_machine, scenes

from prunedeploy.data.batches import Batch
from prunedeploy.models import Darknet, FoldedDarknet, load_darknet
from prunedeploy.pruning.cut import make_cut
from prunedeploy.pruning.dead_channels import remove_dead_channels
from prunedeploy.pruning.granularity import Evidence, FiltersThenWeights, Granularity, Kernels, Weights
from prunedeploy.resources import asset_path, darknet_cfg_path
from prunedeploy.scores import Scores, deeplift, magnitude_scores, random_scores, scaled_scores
from prunedeploy_engines.bench.rounds import bench_models
from prunedeploy_engines.machine.environment import machine_info
from prunedeploy_export import onnx_from_torch

IMAGES = 16


def deeplift_scores_of_scenes(model: Darknet) -> Scores:
    """DeepLIFT on a few composed scenes."""
    images, targets = scenes(IMAGES, model.cfg.input_size[0])
    return deeplift(model, [Batch(images, targets, list(range(IMAGES)))]).scores


SCORES: dict[str, Callable[[Darknet], Scores]] = {
    "magnitude": magnitude_scores,
    "scaled": scaled_scores,
    "deeplift": deeplift_scores_of_scenes,
    "random": lambda model: random_scores(model, seed=0),
}
GRANULARITIES: dict[str, type[Granularity]] = {"weight": Weights, "kernel": Kernels, "hybrid": FiltersThenWeights}


def networks(model: Darknet, arguments: argparse.Namespace) -> Iterator[tuple[dict[str, Any], Darknet]]:
    """Every pruned network, with what it is."""
    for score in arguments.scores.split(","):
        scores = SCORES[score](model)
        for cut in arguments.cuts.split(","):
            name, allocation = cut.split(":")
            for ratio in map(float, arguments.ratios.split(",")):
                granularity = GRANULARITIES[name](ratio, allocation)
                allocated = granularity.allocate(model.cfg, Evidence(scores))
                masks = granularity.selection(model.cfg, allocated)(scores).as_bool()
                yield {"scores": score, "cut": cut, "ratio": ratio}, make_cut(model, masks).network


def cpu_times(paths: dict[str, Path], seconds: float) -> dict[str, float]:
    """Median CPU time of a call in ms, one thread, calls taking turns."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    sessions = {name: onnxruntime.InferenceSession(path, options) for name, path in paths.items()}
    height, width = next(iter(sessions.values())).get_inputs()[0].shape[2:]
    images = np.random.default_rng(0).random((1, 3, height, width), dtype=np.float32)
    samples: dict[str, list[float]] = {name: [] for name in sessions}
    while min(sum(values) for values in samples.values()) < 1e3 * seconds:
        for name, session in sessions.items():
            session.run(None, {"images": images})  # into the cache again
            for _ in range(5):
                started = time.thread_time()
                session.run(None, {"images": images})
                samples[name].append(1e3 * (time.thread_time() - started))
    return {name: median(values) for name, values in samples.items()}


def latencies(paths: dict[str, Path], arguments: argparse.Namespace) -> dict[str, float]:
    """Median latency of a call in ms."""
    specs = {
        name: {"path": str(path), "runtime": arguments.runtime, "threads": arguments.threads}
        for name, path in paths.items()
    }
    results = bench_models(specs, seconds=arguments.seconds, min_calls=100)
    return {name: result.summary()["p50"] for name, result in results.items()}


def measure(masked: Darknet, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Remove dead channels in every way and time the networks, all of one cut at once."""
    row: dict[str, Any] = {"filters": sum(layer.out_channels for layer in masked.cfg.convolutions)}
    row["macs"] = masked.cfg.macs
    compared = {"masked": masked}
    for multiple in map(int, arguments.multiples.split(",")):
        small, record = remove_dead_channels(masked, multiple)
        found = record.as_dict()
        del found["layers"]
        row[f"removed_x{multiple}"] = found
        if small is not masked:
            compared[f"x{multiple}"] = small
    row["ms"] = {}
    if arguments.seconds and len(compared) > 1:
        paths = {name: folder / f"{name}.onnx" for name in compared}
        for name, network in compared.items():
            onnx_from_torch(FoldedDarknet(network), paths[name])
        row["ms"] = cpu_times(paths, arguments.seconds) if arguments.cpu_time else latencies(paths, arguments)
    return row


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scores", default="magnitude,deeplift")
    parser.add_argument("--cuts", default="weight:uniform,weight:global,kernel:uniform,kernel:global")
    parser.add_argument("--ratios", default="0.5,0.75,0.85,0.9,0.95,0.99")
    parser.add_argument("--multiples", default="1,4")
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    say_machine()
    model = load_darknet(darknet_cfg_path("yolov3-slim"), asset_path("demo-robust.weights"))
    ways = [f"x{multiple}" for multiple in arguments.multiples.split(",")]
    clock = "CPU ms" if arguments.cpu_time else "ms"
    heading = "".join(f"| {f'dead {way}':>9} {'MMACs':>6} {'fewer':>5} {clock:>6} {'faster':>6} " for way in ways)
    print(f"{'scores':10} {'cut':15} {'ratio':>5} {clock:>6} {heading}| {'carriers':>8} {'deviation':>9}")
    with tempfile.TemporaryDirectory() as folder:
        for about, masked in networks(model, arguments):
            row = {**about, **measure(masked, Path(folder), arguments)}
            print(line(row, ways), flush=True)
            if arguments.out is not None:
                settings = {"runtime": arguments.runtime, "threads": arguments.threads, "cpu_time": arguments.cpu_time}
                with arguments.out.open("a") as file:
                    file.write(json.dumps({**row, **settings, "machine": machine_info()}) + "\n")


def line(row: dict[str, Any], ways: list[str]) -> str:
    """One row of the table."""
    before = row["ms"].get("masked")
    text = f"{row['scores']:10} {row['cut']:15} {row['ratio']:5g} {'' if before is None else f'{before:.2f}':>6} "
    for way in ways:
        found, after = row[f"removed_{way}"], row["ms"].get(way)
        fewer = 100 * (1 - found["macs_after"] / row["macs"])
        times = f"{'':6} {'':6}" if before is None or after is None else f"{after:6.2f} {before / after:6.2f}"
        text += f"| {found['filters_removed']:4d}/{row['filters']:4d} {found['macs_after'] / 1e6:6.1f} "
        text += f"{fewer:3.0f} % {times} "
    found = [row[f"removed_{way}"] for way in ways]
    return f"{text}| {found[0]['carriers']:8d} {max(one['deviation'] for one in found):9.1e}"


if __name__ == "__main__":
    main()
