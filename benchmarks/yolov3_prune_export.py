"""Full YOLOv3 (62 M parameters, random weights, 416 x 416): prune, shrink, export, gates; latency against dense.

    python benchmarks/yolov3_prune_export.py [--seconds 10] [--torch-pruning]

For 75 % and 90 %: seconds of each step and peak memory of a process of its own, then ONNX Runtime's latency of the
dense and the pruned networks, a process each, interleaved. With ``--torch-pruning`` (pip install torch-pruning) the
cut of Torch-Pruning's group magnitude importance, channels in multiples of 8, of the same network is measured beside.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
from _common import narrowed, random_yolov3, scenes

from prunedeploy.evaluation import TorchRunner
from prunedeploy.models import Darknet, FoldedDarknet, load_darknet
from prunedeploy_engines.bench.rounds import bench_models
from prunedeploy_engines.runtimes.onnxruntime.runner import OnnxRuntimeRunner
from prunedeploy_export import check_detection_parity, check_tensor_parity, onnx_from_torch

RATIOS = (0.75, 0.9)
MULTIPLES = (8, 16)  # 8 is the default; 16 is what one AVX-512 register holds


def export_with_gates(model: Darknet, path: Path, images: npt.NDArray[np.float32]) -> dict[str, float]:
    """Export and pass the gates of tensors and detections; seconds of each."""
    started = time.perf_counter()
    onnx_from_torch(FoldedDarknet(model), path)
    exported = time.perf_counter()
    with TorchRunner(model) as parent, OnnxRuntimeRunner(path) as engine:
        reference, candidate = parent.infer(images), engine.infer(images)
    check_tensor_parity(reference, candidate)
    check_detection_parity(reference, candidate, score_threshold=0.01)
    return {"export_s": exported - started, "gates_s": time.perf_counter() - exported}


def two_scenes(model: Darknet) -> npt.NDArray[np.float32]:
    """What the gates compare on."""
    return scenes(2, model.cfg.input_size[0])[0].numpy()


def one_cut(weights: Path, ratio: float, multiple: int, out: Path) -> None:
    """Load, score, prune, shrink, save, export and gate one ratio; prints JSON."""
    started = time.perf_counter()
    from prunedeploy.resources import darknet_cfg_path

    model = load_darknet(darknet_cfg_path("yolov3"), weights)
    loaded = time.perf_counter()
    pruned, widths = narrowed(model, ratio, multiple)
    cut = time.perf_counter()
    pruned.save(out / "pruned.cfg", out / "pruned.weights")
    rest = export_with_gates(pruned, out / f"ours-{ratio}-x{multiple}.onnx", two_scenes(pruned))
    print(json.dumps({
        "ratio": ratio, "achieved": widths.ratio_achieved, "multiple": widths.multiple, "macs": pruned.cfg.macs,
        "load_s": loaded - started, "score_prune_shrink_s": cut - loaded, **rest,
        "total_s": time.perf_counter() - started,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }))  # fmt: skip


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--torch-pruning", action="store_true")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        one_cut(Path(arguments.one[0]), float(arguments.one[1]), int(arguments.one[2]), Path(arguments.one[3]))
        return
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        dense = random_yolov3()
        dense.save(out / "dense.cfg", out / "dense.weights")
        export_with_gates(dense, out / "dense.onnx", two_scenes(dense))
        print(f"dense: {dense.cfg.macs / 1e9:.2f} GMACs, {dense.parameter_count():,} values")
        models = {"dense": dense.cfg.macs}
        for ratio, multiple in itertools.product(RATIOS, MULTIPLES):
            part = [str(out / "dense.weights"), str(ratio), str(multiple), str(out)]
            done = subprocess.run(
                [sys.executable, __file__, "--one", *part], capture_output=True, text=True, check=True
            )
            row = json.loads(done.stdout)
            print({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()})
            models[f"ours-{ratio}-x{multiple}"] = row["macs"]
        if arguments.torch_pruning:
            from _torch_pruning import torch_pruning_cut

            for ratio in RATIOS:
                macs, seconds = torch_pruning_cut(dense, ratio, out / f"torch-pruning-{ratio}.onnx")
                print(f"Torch-Pruning {ratio}: cut in {seconds:.2f} s, {macs / 1e9:.2f} GMACs")
                models[f"torch-pruning-{ratio}"] = macs
        specs = {name: {"path": str(out / f"{name}.onnx"), "threads": arguments.threads} for name in models}
        specs["peak"] = {"runtime": "matmul", "threads": arguments.threads}
        results = bench_models(specs, seconds=arguments.seconds, min_calls=50)
        base = results["dense"].summary()["p50"]
        peak = 2 * results["peak"].describe["macs"] / results["peak"].summary()["p50"] / 1e6
        print(f"peak of ONNX Runtime on a MatMul: {peak:.0f} GFLOP/s")
        print(f"{'':20} {'p50 ms':>8} {'p90 ms':>8} {'p99 ms':>8} {'n':>5} {'CV':>5} {'speed-up':>8} {'of peak':>8}")
        for name, macs in models.items():
            s = results[name].summary()
            print(
                f"{name:20} {s['p50']:8.2f} {s['p90']:8.2f} {s['p99']:8.2f} {s['n']:5d} {s['cv']:5.2f} "
                f"{base / s['p50']:8.2f} {2 * macs / s['p50'] / 1e6 / peak:8.2f}"
            )


if __name__ == "__main__":
    main()
