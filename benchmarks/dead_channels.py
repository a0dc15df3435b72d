"""What removing dead channels gains: filters, MACs and latency of pruned networks, per ratio.

    python benchmarks/dead_channels.py [--scores magnitude,deeplift] [--cuts weight:uniform,kernel:global]
                                       [--ratios 0.5,0.95] [--runtime onnxruntime] [--seconds 2] [--out F.jsonl]

The demo network with its bundled robust weights, pruned at once without fine-tuning: which weights are zero decides
what is dead, not their values. "masked" is the network with zeros, "removed" the smaller one that computes the same.
Batch 1, a process per model, interleaved in rounds; latency is given as the fastest tenth of the calls and as the
median, of which the first suffers less from what else the machine does. --seconds 0 measures none.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from _common import median, say_machine, scenes

from prunedeploy.data.batches import Batch
from prunedeploy.models import Darknet, FoldedDarknet, load_darknet
from prunedeploy.pruning.cut import make_cut
from prunedeploy.pruning.dead_channels import remove_dead_channels
from prunedeploy.pruning.granularity import Evidence, FiltersThenWeights, Granularity, Kernels, Weights
from prunedeploy.resources import asset_path, darknet_cfg_path
from prunedeploy.scores import Scores, deeplift_scores, magnitude_scores, random_scores, scaled_scores
from prunedeploy_engines.environment import machine_info
from prunedeploy_engines.process_bench import bench_models
from prunedeploy_export import onnx_from_torch

IMAGES = 16


def deeplift_scores_of_scenes(model: Darknet) -> Scores:
    """DeepLIFT on a few composed scenes."""
    images, targets = scenes(IMAGES, model.cfg.input_size[0])
    return deeplift_scores(model, [Batch(images, targets, list(range(IMAGES)))])


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


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scores", default="magnitude,deeplift")
    parser.add_argument("--cuts", default="weight:uniform,weight:global,kernel:uniform,kernel:global")
    parser.add_argument("--runtime", default="onnxruntime")
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
        for number, (row, masked) in enumerate(networks(model, arguments)):
            small, record = remove_dead_channels(masked)
            found = record.as_dict()
            del found["layers"]
            filters = sum(layer.out_channels for layer in masked.cfg.convolutions)
            rows.append({**row, "filters_before": filters, **found})
            for kind, network in (("masked", masked), ("removed", small)):
                path = Path(folder) / f"{number}-{kind}.onnx"
                onnx_from_torch(FoldedDarknet(network), path)
                common = {"runtime": arguments.runtime, "threads": arguments.threads}
                specs[f"{number}-{kind}"] = {"path": str(path), **common}
        if arguments.seconds:
            # Only what is compared runs at the same time, so that each pair is interleaved closely.
            for number, row in enumerate(rows):
                if not row["filters_removed"]:
                    continue  # the same network
                pair = {kind: specs[f"{number}-{kind}"] for kind in ("masked", "removed")}
                measured = bench_models(pair, seconds=arguments.seconds, min_calls=100)
                for kind, result in measured.items():
                    samples = sorted(result.latency.samples_ms)
                    row |= {f"p10_ms_{kind}": samples[len(samples) // 10], f"p50_ms_{kind}": median(samples)}
    print(
        f"{'scores':10} {'cut':15} {'ratio':>5} {'removed':>10} {'constant':>8} {'carriers':>8} {'MMACs':>14} "
        f"{'fewer':>6} {'p10 ms':>13} {'faster':>6} {'p50 ms':>13} {'faster':>6} {'deviation':>9}"
    )
    for row in rows:
        latency = ""
        for quantile in ("p10", "p50"):
            before, after = (row.get(f"{quantile}_ms_{kind}") for kind in ("masked", "removed"))
            if before is not None:
                latency += f" {before:5.2f} -> {after:5.2f} {before / after:6.2f}"
            else:
                latency += f" {'':13} {'':6}"
        print(
            f"{row['scores']:10} {row['cut']:15} {row['ratio']:5g} "
            f"{row['filters_removed']:5d}/{row['filters_before']:4d} {row['constants_folded']:8d} {row['carriers']:8d} "
            f"{row['macs_before'] / 1e6:5.1f} -> {row['macs_after'] / 1e6:5.1f} "
            f"{100 * (1 - row['macs_after'] / row['macs_before']):4.0f} %{latency} {row['deviation']:9.1e}"
        )
    if arguments.out is not None:
        with arguments.out.open("w") as file:
            for row in rows:
                file.write(json.dumps({**row, "threads": arguments.threads, "machine": machine_info()}) + "\n")


if __name__ == "__main__":
    main()
