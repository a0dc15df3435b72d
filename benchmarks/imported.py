"""Exported detectors of other programs: what importing costs, how near the copies are, and what halving them gives.

    python benchmarks/imported.py FOLDER [--only yolov8n,...] [--size 160] [--other 256x320] [--seconds 5] [--threads 1]

FOLDER holds yolov5nu-160.onnx, yolov8n-160.onnx and yolo11n-160.onnx, 160 x 160 pixels. Import is timed in a process of
its own, whose peak memory, PyTorch included, is the figure. Random weights of such files die out on the way to the
output, so weights that do not are given to them; at another size (height x width) the original is rewritten for it.
Differences are relative to the largest box coordinate or score. Half of the weights go, by whole filters of the lowest
scaled scores, channels in multiples of 8. Latency is ONNX Runtime's of original, copy and halved copy, a
process each, in turns in one run.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from _common import ROOT, say_machine
from darknet_cfgs import deviation, gated
from numpy.typing import NDArray

from prunedeploy.evaluation import TorchRunner
from prunedeploy.importing import import_onnx, write_imported
from prunedeploy.models import Darknet, FoldedDarknet
from prunedeploy.models.cfg_rewriting import with_input_size
from prunedeploy.pruning.cut import make_cut
from prunedeploy.pruning.granularity import Filters
from prunedeploy.scores import scaled_scores
from prunedeploy_engines.bench.rounds import bench_models
from prunedeploy_engines.runtimes.onnxruntime.runner import OnnxRuntimeRunner
from prunedeploy_export import onnx_from_torch

sys.path.append(str(ROOT / "tests"))
from importing.exported import REAL, computed, lively, resized

Floats = NDArray[np.float32]
OWN_SIZE = 160


def one_import(path: Path) -> dict[str, float]:
    """Import a file and write what it became, in this process."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        write_imported(import_onnx(path), Path(folder) / "imported")
    seconds = time.perf_counter() - started
    return {"import_s": seconds, "import_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}


def difference(found: tuple[Floats, Floats], rows: Floats) -> float:
    """The largest of boxes and of scores, each relative to the largest value of the original's ``rows (N, 4 + C)``."""
    half = rows[:, 2:4] / 2
    original = np.concatenate((rows[:, :2] - half, rows[:, :2] + half), axis=1), rows[:, 4:]
    return max(float(np.abs(a[0] - b).max() / np.abs(b).max()) for a, b in zip(found, original, strict=True))


def differences(model: onnx.ModelProto, network: Darknet, size: tuple[int, int], folder: Path) -> tuple[float, float]:
    """Of the network in PyTorch and of its export in ONNX Runtime, at ``(height, width)``."""
    own = size == (OWN_SIZE, OWN_SIZE)
    at_size = model if own else resized(onnx.ModelProto.FromString(model.SerializeToString()), *size)
    images = np.random.default_rng(1).random((1, 3, *size), np.float32)
    rows = computed(at_size, images)[0].T
    sized = network
    if not own:
        sized = Darknet(with_input_size(network.cfg, size)).eval()
        sized.load_state_dict(network.state_dict())
    path = folder / f"again-{size[0]}x{size[1]}.onnx"
    onnx_from_torch(FoldedDarknet(sized), path)
    with TorchRunner(sized) as ours, OnnxRuntimeRunner(path) as again:
        return difference(ours.infer(images), rows), difference(again.infer(images), rows)


def examine(path: Path, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Everything of one file."""
    timed = subprocess.run(
        [sys.executable, __file__, str(path), "--import-alone"], stdout=subprocess.PIPE, text=True, check=True
    )
    row: dict[str, Any] = {"file": path.name, **json.loads(timed.stdout.splitlines()[-1])}
    model = lively(onnx.load(path))
    onnx.save(model, folder / "lively.onnx")
    network = import_onnx(folder / "lively.onnx").model
    row["convolutions"] = len(network.cfg.convolutions)
    for name, size in (("own", (OWN_SIZE, OWN_SIZE)), ("other", arguments.other)):
        row[name], row[f"{name}_again"] = differences(model, network, size, folder)

    side = arguments.size
    if side != OWN_SIZE:
        model = resized(model, side, side)
        onnx.save(model, folder / "lively.onnx")
        network = import_onnx(folder / "lively.onnx").model
    granularity = Filters(arguments.ratio)
    masks = granularity.selection(network.cfg, granularity.allocate(network.cfg))(scaled_scores(network)).as_bool()
    cut = make_cut(network, masks)
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        row["shrunk_is_masked"] = deviation(FoldedDarknet(cut.masked)(images), FoldedDarknet(cut.network)(images))
    row |= {"macs": network.cfg.macs, "pruned_macs": cut.network.cfg.macs}
    row |= {"parameters": network.parameter_count(), "pruned_parameters": cut.network.parameter_count()}
    row["gates"] = {
        name: gated(one, folder / f"{name}.onnx") for name, one in (("copy", network), ("pruned", cut.network))
    }
    foreign: dict[str, Any] = {
        "factory": "_foreign_file:open_foreign_file",
        "arguments": {"path": str(folder / "lively.onnx")},
    }
    foreign["arguments"] |= {"threads": arguments.threads}
    specs: dict[str, dict[str, Any]] = {"original": {**foreign, "kind": "compute"}}
    specs |= {
        name: {"path": str(folder / f"{name}.onnx"), "threads": arguments.threads, "kind": "compute"}
        for name in row["gates"]
        if (folder / f"{name}.onnx").exists()
    }
    found = bench_models(specs, seconds=arguments.seconds, min_calls=50)
    row["ms"] = {name: result.summary()["p50"] for name, result in found.items()}
    row["noisy"] = [name for name, result in found.items() if result.summary()["noisy"]]
    return row


def table(rows: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    """Print the rows as Markdown."""
    height, width = arguments.other
    other = f"at {width} x {height}"
    print(
        f"\n| file | layers | import | at {OWN_SIZE} | {other} | exported again | {other} | shrunk : masked | gates |"
    )
    print("|---" * 9 + "|")
    for row in rows:
        passed = all(found == "passed" for found in row["gates"].values())
        near = " | ".join(f"{row[key]:.0e}" for key in ("own", "other", "own_again", "other_again"))
        cost = f"{row['import_s']:.1f} s, {row['import_gb']:.2f} GB"
        gates = "passed" if passed else "; ".join(f"{name}: {found}" for name, found in row["gates"].items())
        print(f"| {row['file']} | {row['convolutions']} | {cost} | {near} | {row['shrunk_is_masked']:.0e} | {gates} |")
    of = f"{arguments.size} x {arguments.size}, threads: {arguments.threads}, {arguments.ratio:.0%} pruned, medians"
    print(f"\n{of}:\n")
    print("| file | parameters | MACs | original | copy | pruned | copy / original | original / pruned |")
    print("|---" * 8 + "|")
    for row in rows:
        ms = row["ms"]
        shown = " | ".join(f"{ms[name]:.2f} ms{'*' * (name in row['noisy'])}" if name in ms else "-" for name in NAMES)
        sizes = f"{row['parameters'] / 1e6:.2f} M : {row['pruned_parameters'] / 1e6:.2f} M"
        macs = f"{row['macs'] / 1e6:.0f} M : {row['pruned_macs'] / 1e6:.0f} M"
        factors = " | ".join(
            f"{ms[one] / ms[two]:.2f}" if {one, two} <= ms.keys() else "-"
            for one, two in (("copy", "original"), ("original", "pruned"))
        )
        print(f"| {row['file']} | {sizes} | {macs} | {shown} | {factors} |")
    print("\n\\* noisy: the coefficient of variation is above 0.1")


NAMES = ("original", "copy", "pruned")


def as_size(text: str) -> tuple[int, int]:
    """``256x320`` as (height, width)."""
    height, width = map(int, text.split("x"))
    return height, width


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only")
    parser.add_argument("--size", type=int, default=OWN_SIZE, help="of what is pruned and timed")
    parser.add_argument("--other", type=as_size, default=(256, 320), help="height x width of the second comparison")
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="the rows, too")
    parser.add_argument(
        "--import-alone", action="store_true", help="import the file that stands for FOLDER; print JSON"
    )
    arguments = parser.parse_args()
    if arguments.import_alone:
        print(json.dumps(one_import(arguments.folder)))
        return
    say_machine()
    rows = []
    for name in arguments.only.split(",") if arguments.only else REAL:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(examine(arguments.folder / f"{name}-{OWN_SIZE}.onnx", arguments, Path(folder)))
        print(json.dumps(rows[-1]), flush=True)
    table(rows, arguments)
    if arguments.json:
        arguments.json.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
