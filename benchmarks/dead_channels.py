"""What removing dead channels gains: filters, MACs and latency of pruned networks, per ratio.

    python benchmarks/dead_channels.py [--scores magnitude,scaled] [--ratios 0.5,0.95] [--seconds 2] [--out F.jsonl]

The demo network with its bundled robust weights, pruned at once without fine-tuning: which weights are zero decides
what is dead, not their values. "masked" is the network with zeros, "removed" the smaller one that computes the same.
ONNX Runtime, batch 1, a process per model, interleaved in rounds; --seconds 0 measures no latency.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from _common import say_machine
from torch import Tensor

from prunedeploy.models import Darknet, FoldedDarknet, load_darknet
from prunedeploy.pruning.dead_channels import remove_dead_channels
from prunedeploy.pruning.masks import apply_unstructured
from prunedeploy.pruning.unstructured import solve_unstructured
from prunedeploy.resources import asset_path, darknet_cfg_path
from prunedeploy.scores import Scores, magnitude_scores, random_scores, scaled_scores
from prunedeploy_engines.environment import machine_info
from prunedeploy_engines.process_bench import bench_models
from prunedeploy_export import onnx_from_torch

SCORES: dict[str, Callable[[Darknet], Scores]] = {
    "magnitude": magnitude_scores,
    "scaled": scaled_scores,
    "random": lambda model: random_scores(model, seed=0),
}
CUTS: dict[str, Callable[[Scores, Darknet, float], dict[int, Tensor]]] = {
    "unstructured uniform": lambda scores, model, ratio: solve_unstructured(scores, model.cfg, ratio),
}


def cuts(model: Darknet, scores: list[str], ratios: list[float]) -> Iterator[tuple[dict[str, object], Darknet]]:
    """Every pruned network, with what it is."""
    for score in scores:
        values = SCORES[score](model)
        for cut, solve in CUTS.items():
            for ratio in ratios:
                about = {"scores": score, "cut": cut, "ratio": ratio}
                yield about, apply_unstructured(model, solve(values, model, ratio))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scores", default="magnitude,scaled")
    parser.add_argument("--ratios", default="0.5,0.75,0.85,0.9,0.95,0.99")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    say_machine()
    model = load_darknet(darknet_cfg_path("yolov3-slim"), asset_path("demo-robust.weights"))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        specs = {}
        ratios = [float(ratio) for ratio in arguments.ratios.split(",")]
        for number, (row, masked) in enumerate(cuts(model, arguments.scores.split(","), ratios)):
            small, record = remove_dead_channels(masked)
            found = record.as_dict()
            del found["layers"]
            filters = sum(layer.out_channels for layer in model.cfg.convolutions)
            rows.append({**row, "filters_before": filters, **found})
            for kind, network in (("masked", masked), ("removed", small)):
                path = Path(folder) / f"{number}-{kind}.onnx"
                onnx_from_torch(FoldedDarknet(network), path)
                specs[f"{number}-{kind}"] = {"path": str(path), "threads": arguments.threads}
        if arguments.seconds:
            # Only what is compared runs at the same time, so that each pair is interleaved closely.
            for number, row in enumerate(rows):
                pair = {kind: specs[f"{number}-{kind}"] for kind in ("masked", "removed")}
                measured = bench_models(pair, seconds=arguments.seconds, min_calls=100)
                for kind, result in measured.items():
                    summary = result.summary()
                    row |= {f"p50_ms_{kind}": summary["p50"], f"cv_{kind}": summary["cv"]}
    print(
        f"{'scores':10} {'cut':22} {'ratio':>5} {'removed':>11} {'constant':>8} {'carriers':>8} {'MMACs':>13} "
        f"{'less':>6} {'p50 ms':>13} {'faster':>6} {'deviation':>9}"
    )
    for row in rows:
        less = 1 - row["macs_after"] / row["macs_before"]
        latency = faster = ""
        if "p50_ms_masked" in row:
            latency = f"{row['p50_ms_masked']:.2f} -> {row['p50_ms_removed']:.2f}"
            faster = f"{row['p50_ms_masked'] / row['p50_ms_removed']:.2f}"
        print(
            f"{row['scores']:10} {row['cut']:22} {row['ratio']:5g} "
            f"{row['filters_removed']:5d}/{row['filters_before']:5d} {row['constants_folded']:8d} {row['carriers']:8d} "
            f"{row['macs_before'] / 1e6:5.1f} -> {row['macs_after'] / 1e6:5.1f} {100 * less:4.0f} % "
            f"{latency:>13} {faster:>6} {row['deviation']:9.1e}"
        )
    if arguments.out is not None:
        with arguments.out.open("w") as file:
            for row in rows:
                file.write(json.dumps({**row, "threads": arguments.threads, "machine": machine_info()}) + "\n")


if __name__ == "__main__":
    main()
