"""What removing filters where they cost most time gains: allocation `latency` against `uniform` at equal ratios.

    python benchmarks/latency_allocation.py [--network yolov3] [--ratios 0.5,0.75,0.9] [--seconds 10] [--threads 2]

Times every distinct convolution of the network at a grid of widths in ONNX Runtime on this machine (what the stage
`convolution-times` does), allocates by it with scaled scores of random weights, exports, and measures all networks
interleaved, a process each. Accuracy is not looked at: an allocation that is faster may be worse.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from _common import random_yolov3, say_machine

from prunedeploy.models import FoldedDarknet
from prunedeploy.pipeline.stages.convolution_times import measure_convolutions
from prunedeploy.pruning.convolution_times import ConvolutionTimes, measuring_grid
from prunedeploy.pruning.cut import make_cut
from prunedeploy.pruning.granularity import Evidence, Filters
from prunedeploy.scores import scaled_scores
from prunedeploy_engines.bench.rounds import bench_models
from prunedeploy_export import onnx_from_torch


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="yolov3")
    parser.add_argument("--ratios", default="0.5,0.75,0.9")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    say_machine()
    dense = random_yolov3(arguments.network)
    grids = measuring_grid(dense.cfg)
    started = time.perf_counter()
    times = ConvolutionTimes(dense.cfg, measure_convolutions(grids, arguments.threads))
    points = sum(len(grid.filters) * len(grid.inputs) for grid in grids.values())
    print(f"{len(grids)} shapes, {points} points timed in {time.perf_counter() - started:.0f} s")
    scores = scaled_scores(dense)
    with tempfile.TemporaryDirectory() as folder:
        rows = {}
        for ratio in map(float, arguments.ratios.split(",")):
            for allocation, multiple in (("uniform", 8), ("uniform", 16), ("latency", 8)):
                filters = Filters(ratio, allocation, multiple=multiple)
                evidence = Evidence(scores, times)
                selection = filters.selection(dense.cfg, filters.allocate(dense.cfg, evidence))
                cut = make_cut(dense, selection(scores).as_bool())
                name = f"{ratio:g} {allocation} x{multiple}"
                path = Path(folder, f"{name}.onnx")
                onnx_from_torch(FoldedDarknet(cut.network), path)
                rows[name] = path, cut.network.cfg.macs
        onnx_from_torch(FoldedDarknet(dense), Path(folder, "dense.onnx"))
        rows = {"dense": (Path(folder, "dense.onnx"), dense.cfg.macs), **rows}
        specs = {name: {"path": str(path), "threads": arguments.threads} for name, (path, _) in rows.items()}
        results = bench_models(specs, seconds=arguments.seconds, min_calls=50)
        base = results["dense"].summary()["p50"]
        print("| | GMACs | p50 | p90 | CV | faster |\n|---|---|---|---|---|---|")
        for name, (_, macs) in rows.items():
            s = results[name].summary()
            noisy = ", noisy" if s["cv"] > 0.1 else ""
            print(f"| {name} | {macs / 1e9:.3g} | {s['p50']:.2f} ms | {s['p90']:.2f} ms | {s['cv']:.2f}{noisy} "
                  f"| {base / s['p50']:.2f} |")  # fmt: skip


if __name__ == "__main__":
    main()
