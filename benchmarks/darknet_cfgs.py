"""People's cfgs, each at its own size with random weights: read, compared with OpenCV, halved, exported, read back.

    python benchmarks/darknet_cfgs.py run FOLDER [--only NAME,...] [--out docs/measurements/darknet-cfgs.jsonl]
    python benchmarks/darknet_cfgs.py table [--out docs/measurements/darknet-cfgs.jsonl]
    python benchmarks/darknet_cfgs.py rounding CFG...

``run`` takes every cfg of a folder in a process of its own, so that its peak memory is its own, and writes a line for
each; those that have a line are left out, so a run that was killed goes on. Weights are random, normalisation is fitted
on composed scenes and shifted, so that rounding does not grow. Half of the weights go, by whole filters of the lowest
scaled scores. Deviations of heads are relative to how far a head strays from its channels' means. ``--latency``
measures ONNX Runtime, both files in turns, on ``--threads``.
``rounding`` compares heads in float32, ours and OpenCV's, with ours in float64.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from _common import scenes
from torch import Tensor
from yolov3_prune_export import export_with_gates

from prunedeploy.models import Darknet, DarknetCfg, FoldedDarknet, load_darknet, read_cfg
from prunedeploy.pruning.cut import make_cut
from prunedeploy.pruning.granularity import Filters
from prunedeploy.scores import scaled_scores
from prunedeploy.training.adversarial import recalibrate_normalisation
from prunedeploy_engines.bench.rounds import bench_models
from prunedeploy_engines.errors import PrunedeployError

RATIO = 0.5
SHIFT = 1.5
"""Shift of normalisation, in standard deviations. At 0 activations bend most of their inputs, and so deep a network of
random weights enlarges any difference layer by layer, whoever computes it: float32 is up to 9e-4 from float64. So far
into their upper part 7 % of the inputs still come to the lower one, and differences stay as small as they began."""
OUT = Path(__file__).parents[1] / "docs" / "measurements" / "darknet-cfgs.jsonl"


def own_size(cfg: DarknetCfg, count: int = 1) -> Tensor:
    """Composed scenes at a network's input size and with its channels."""
    channels, height, width = cfg.input_shape
    images, _ = scenes(count, 416)
    return F.interpolate(images, (height, width), mode="bilinear")[:, :channels].contiguous()


def deviation(reference: Sequence[Tensor], candidate: Sequence[Tensor]) -> float:
    """Largest difference of any output, relative to how far that output strays from its channels' means over the map.

    Relative to the values themselves, the bias of an untrained head would hide any difference.
    """
    return max(
        float((a - b).abs().max() / (a - a.mean((2, 3), keepdim=True)).abs().max())
        for a, b in zip(reference, candidate, strict=True)
    )


def opencv_name(model: Darknet, index: int) -> str:
    """OpenCV's name of a convolution's output: an activation counts as one layer more."""
    activation = model.conv(index).layer.activation
    return f"conv_{index}" if activation == "linear" else f"{activation}_{index + 1}"


def heads_of_opencv(model: Darknet, images: Tensor, folder: Path) -> list[Tensor] | str:
    """What OpenCV's Darknet reader computes for the layers that heads read; why not, where it cannot."""
    model.save(folder / "cv.cfg", folder / "cv.weights")
    try:
        network = cv2.dnn.readNetFromDarknet(str(folder / "cv.cfg"), str(folder / "cv.weights"))
        network.setInput(images.numpy())
        found = network.forward([opencv_name(model, head.inputs[0]) for head in model.cfg.heads])
    except cv2.error as error:
        return str(error).partition("error: ")[2].split("\n")[0][:120] or "refused"
    return [torch.from_numpy(np.array(one)) for one in found]


def compared_with_opencv(model: Darknet, images: Tensor, folder: Path) -> float | str:
    """Deviation of the raw heads from OpenCV's."""
    theirs = heads_of_opencv(model, images, folder)
    if isinstance(theirs, str):
        return theirs
    with torch.no_grad():
        ours = FoldedDarknet(model)(images)
    return deviation(theirs, [one.view_as(other) for one, other in zip(ours, theirs, strict=True)])


def fitted(cfg: DarknetCfg) -> tuple[Darknet, Tensor]:
    """The network with random weights and fitted normalisation, and the images that it was fitted on."""
    model, images = load_darknet(cfg, seed=0), own_size(cfg)
    normalised = [model.conv(layer.index) for layer in cfg.convolutions if layer.batch_normalize]
    with torch.no_grad():
        for conv in normalised:
            conv.bias.fill_(SHIFT)
        recalibrate_normalisation(model, [images])
        for conv in normalised:
            conv.variance.clamp_(min=0.1)  # at tiny ones OpenCV's epsilon, within the root, shows
    return model, images


def rounding(arguments: argparse.Namespace) -> None:
    """Print how far float32 is from float64, by ours and by OpenCV."""
    for path in arguments.paths:
        model, images = fitted(read_cfg(path))
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            exact = FoldedDarknet(model, torch.float64)(images.double())
            found = {"ours": FoldedDarknet(model)(images), "OpenCV": heads_of_opencv(model, images, Path(folder))}
        for name, heads in found.items():
            if not isinstance(heads, str):
                far = deviation(exact, [one.view_as(other) for one, other in zip(heads, exact, strict=True)])
                print(f"{path.stem}: {name} in float32 is {far:.1e} from float64", flush=True)


def examine(path: Path, folder: Path) -> dict[str, Any]:
    """Everything but latency of one cfg."""
    started = time.perf_counter()
    try:
        cfg = read_cfg(path)
    except PrunedeployError as error:
        return {"cfg": path.stem, "refused": str(error).removeprefix(f"{path}:")}
    row: dict[str, Any] = {"cfg": path.stem, "read_s": time.perf_counter() - started}
    model, images = fitted(cfg)
    row |= {
        "input": list(cfg.input_shape), "layers": len(cfg.layers), "macs": cfg.macs,
        "parameters": model.parameter_count(), "opencv": compared_with_opencv(model, images, folder),
    }  # fmt: skip
    granularity = Filters(RATIO)
    masks = granularity.selection(cfg, granularity.allocate(cfg))(scaled_scores(model)).as_bool()
    cut = make_cut(model, masks)
    with torch.no_grad():
        masked, shrunk = FoldedDarknet(cut.masked)(images), FoldedDarknet(cut.network)(images)
    row |= {
        "pruned_macs": cut.network.cfg.macs,
        "pruned_parameters": cut.network.parameter_count(),
        "shrunk_is_masked": deviation(masked, shrunk),
        "opencv_pruned": compared_with_opencv(cut.network, images, folder),
    }
    del masked, shrunk
    for name, network in (("dense", model), ("pruned", cut.network)):
        row[f"gates_{name}"] = gated(network, folder / f"{name}.onnx")
    return {**row, "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}


def gated(network: Darknet, path: Path) -> str:
    """Export; ``passed``, or what a gate says."""
    try:
        export_with_gates(network, path, own_size(network.cfg).numpy())
    except PrunedeployError as error:
        return str(error)
    return "passed"


def latency(folder: Path, seconds: float, threads: int) -> dict[str, float]:
    """Medians in ms of the two files of `examine`, in turns."""
    specs = {name: {"path": str(folder / f"{name}.onnx"), "threads": threads} for name in ("dense", "pruned")}
    found = bench_models(specs, seconds=seconds, min_calls=5, warmup_calls=1, rounds=5, round_warm_calls=1)
    return {f"{name}_ms": found[name].summary()["p50"] for name in specs}


def run(arguments: argparse.Namespace) -> None:
    """Append a line for every cfg that has none."""
    done = {row["cfg"] for row in rows(arguments.out)} if arguments.out.exists() else set()
    paths = [path for path in sorted(arguments.folder.glob("*.cfg")) if path.stem not in done]
    paths = sorted(paths, key=lambda path: path.stat().st_size)
    for path in paths:
        if arguments.only and path.stem not in arguments.only.split(","):
            continue
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, "one", str(path), folder]
            finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
            if finished.returncode:
                print(f"{path.stem}: ended with {finished.returncode}", file=sys.stderr)
                continue
            row = json.loads(finished.stdout.splitlines()[-1])
            if arguments.latency and row.get("gates_pruned") == row.get("gates_dense") == "passed":
                row |= latency(Path(folder), arguments.seconds, arguments.threads)
        print(row, flush=True)
        with arguments.out.open("a") as file:
            file.write(json.dumps(row) + "\n")


def rows(path: Path) -> list[dict[str, Any]]:
    """What was measured."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def table(arguments: argparse.Namespace) -> None:
    """Print the rows as Markdown."""
    columns = "cfg, input, layers, parameters, GMACs, halved, OpenCV, halved in OpenCV, shrunk = masked, gates, "
    names = [*(columns + "ONNX Runtime, memory").split(", ")]
    print("| " + " | ".join(names) + " |\n|" + "---|" * len(names))
    found = sorted(rows(arguments.out), key=lambda row: str(row["cfg"]))
    for row in found:
        if "refused" not in row:
            print("| " + " | ".join(cells(row)) + " |")
    print()
    for row in found:
        if "refused" in row:
            print(f"- {row['cfg']}: {row['refused']}")


def cells(row: dict[str, Any]) -> list[str]:
    """One row of the table."""
    both = row["gates_dense"] == row["gates_pruned"] == "passed"
    theirs = [row[key] if isinstance(row[key], str) else f"{row[key]:.0e}" for key in ("opencv", "opencv_pruned")]
    times = ""
    if "dense_ms" in row:
        times = f"{row['dense_ms']:.0f} : {row['pruned_ms']:.0f} ms, {row['dense_ms'] / row['pruned_ms']:.1f}"
    return [
        row["cfg"],
        f"{row['input'][2]} x {row['input'][1]}",
        str(row["layers"]),
        f"{row['parameters'] / 1e6:.1f} M",
        f"{row['macs'] / 1e9:.1f}",
        f"{row['pruned_macs'] / 1e9:.1f}",
        *theirs,
        f"{row['shrunk_is_masked']:.0e}" if row["shrunk_is_masked"] else "0",
        "passed" if both else "**failed**",
        times,
        f"{row['peak_gb']:.1f} GB",
    ]


def main() -> None:
    """Run or print."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    for name, call in (("run", run), ("table", table)):
        command = commands.add_parser(name)
        command.set_defaults(call=call)
        command.add_argument("--out", type=Path, default=OUT)
        if call is run:
            command.add_argument("folder", type=Path)
            command.add_argument("--only")
            command.add_argument("--latency", action="store_true")
            command.add_argument("--seconds", type=float, default=2.0)
            command.add_argument("--threads", type=int, default=2)
    exact = commands.add_parser("rounding")
    exact.add_argument("paths", type=Path, nargs="+")
    exact.set_defaults(call=rounding)
    one = commands.add_parser("one")
    one.add_argument("path", type=Path)
    one.add_argument("scratch", type=Path)
    one.set_defaults(call=lambda given: print(json.dumps(examine(given.path, given.scratch))))
    arguments = parser.parse_args()
    arguments.call(arguments)


if __name__ == "__main__":
    main()
