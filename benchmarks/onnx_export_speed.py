"""YOLOv3 at 416 in ONNX Runtime: our file against PyTorch's own export, and how far every ratio is from the peak.

    python benchmarks/onnx_export_speed.py [--seconds 10] [--threads 2] [--ratios 0.25,0.5,...] [--json F]

A process per file, interleaved in rounds; the peak is ONNX Runtime's on a 1024 x 1024 MatMul in the same run. The
ten layers that cost most say why a pruned network falls below it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from _common import say_machine, scenes
from _yolov3_cuts import Cuts
from torch import Tensor, nn

from prunedeploy.models import Darknet, decode
from prunedeploy_engines.bench.rounds import bench_models
from prunedeploy_engines.detection.letterbox import to_uint8_input
from prunedeploy_engines.machine.environment import machine_info
from prunedeploy_engines.runtimes.onnxruntime.runner import OnnxRuntimeRunner

PAPER_RATIOS = "0.25,0.5,0.65,0.75,0.85,0.9,0.95,0.99"


class Plain(nn.Module):
    """The network with its decoding, as somebody would export it who knows nothing of this project."""

    def __init__(self, model: Darknet) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes and scores."""
        return decode(self.model(images), self.model)


def plain_export(model: Darknet, path: Path) -> None:
    """``torch.onnx.export`` with nothing but the names and a dynamic batch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Plain(model).eval(),
            (torch.rand(1, *model.cfg.input_shape),),
            str(path),
            input_names=["images"],
            output_names=["boxes", "scores"],
            dynamic_axes={name: {0: "batch"} for name in ("images", "boxes", "scores")},
            dynamo=False,
        )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ratios", default=PAPER_RATIOS)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    say_machine()
    with tempfile.TemporaryDirectory() as folder:
        cuts = Cuts(Path(folder))
        plain = Path(folder) / "plain.onnx"
        plain_export(cuts.dense, plain)
        files = {"ours, dense": cuts.fp32()}
        files |= {f"ours, {ratio}": cuts.fp32(float(ratio)) for ratio in arguments.ratios.split(",")}
        files["ours, 0.9, multiples of 16"] = cuts.fp32(0.9, 16)
        images = Path(folder) / "images.npy"
        pixels = scenes(4, 416)[0]
        np.save(images, to_uint8_input(pixels.numpy()))
        agreement = largest_difference(plain, files["ours, dense"].path, pixels.numpy()[:1])
        print(f"largest difference of the two dense files: {agreement:.1e} of the largest value")
        common = {"threads": arguments.threads, "images": str(images)}
        specs = {"torch.onnx.export, dense": {"path": str(plain), **common}}
        specs |= {name: {"path": str(cut.path), **common} for name, cut in files.items()}
        specs["peak"] = {"runtime": "matmul", "threads": arguments.threads}
        measured = bench_models(specs, seconds=arguments.seconds, min_calls=30)
        rows = {name: result.summary() for name, result in measured.items()}
        peak = 2 * measured["peak"].describe["macs"] / rows["peak"]["p50"] / 1e6
        macs = {"torch.onnx.export, dense": cuts.dense.cfg.macs, **{n: cut.macs for n, cut in files.items()}}
        print(f"peak of ONNX Runtime on a MatMul: {peak:.0f} GFLOP/s (median)\n")
        heading = f"{'p50 ms':>8} {'p90':>8} {'p99':>8} {'n':>5} {'CV':>5} {'GFLOP/s':>8} {'peak':>6} {'faster':>7}"
        print(f"{'':28} {'GMACs':>7} {heading}")
        for name, count in macs.items():
            row = rows[name]
            rate = 2 * count / row["p50"] / 1e6
            faster = rows["torch.onnx.export, dense"]["p50"] / row["p50"]
            print(f"{name:28} {count / 1e9:7.2f} {row['p50']:8.2f} {row['p90']:8.2f} {row['p99']:8.2f} {row['n']:5d} "
                  f"{row['cv']:5.2f} {rate:8.0f} {rate / peak:6.2f} {faster:7.2f}")  # fmt: skip
        for name in [name for name in files if name in ("ours, dense", "ours, 0.75", "ours, 0.9", "ours, 0.99")]:
            say_layers(name, files[name].path, arguments.threads, pixels.numpy()[:1])
        if arguments.json is not None:
            document = {"rows": rows, "macs": macs, "peak_gflops": peak, "machine": machine_info()}
            arguments.json.write_text(json.dumps(document, indent=1))


def largest_difference(one: Path, other: Path, images: np.ndarray) -> float:
    """Of boxes and scores, relative to the largest value."""
    with OnnxRuntimeRunner(one) as a, OnnxRuntimeRunner(other) as b:
        pairs = zip(a.infer(images), b.infer(images), strict=True)
        return max(float(np.abs(x - y).max() / np.abs(x).max()) for x, y in pairs)


def say_layers(name: str, path: Path, threads: int, images: np.ndarray) -> None:
    """The share of each kind of operator, from ONNX Runtime's own profiler."""
    with OnnxRuntimeRunner(path, threads=threads) as runner:
        rows = runner.profile(images, top=None)
    kinds: dict[str, float] = {}
    for row in rows:
        kinds[row.kind] = kinds.get(row.kind, 0.0) + row.share
    shares = ", ".join(f"{kind} {100 * share:.0f} %" for kind, share in sorted(kinds.items(), key=lambda k: -k[1])[:6])
    print(f"\n{name}: {shares}")
    for row in sorted(rows, key=lambda row: -row.mean_ms)[:5]:
        print(f"    {row.name:34} {row.kind:16} {row.mean_ms:7.2f} ms {100 * row.share:5.1f} %")


if __name__ == "__main__":
    main()
