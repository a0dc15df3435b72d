"""Does a row of ``bench`` agree with a bare loop over plain ONNX Runtime in a fresh process?

    python benchmarks/latency_agreement.py [--seconds 5] [--cycles 6] [--threads 2] [--subject dense] [--trap]

Three arms take turns, cycle by cycle, in rotating order: ``bare`` (a fresh process, the onnxruntime package, a loop,
nothing of ours), ``alone`` (our row, measured alone) and ``among`` (our row, measured among five other models). What
is printed are ratios of medians with a 95 % bootstrap over the cycles, and the ratio of every cycle. The models are
YOLOv3 at 416 with random weights: dense, pruned to 0.5, 0.75 and 0.9, YOLOv3-tiny, and YOLOv3-tiny with another seed.
With ``--trap`` a fourth arm shows what the processes are for: the six sessions in one process, called in turn.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from _common import median, random_yolov3, say_machine

from prunedeploy.models import Darknet, FoldedDarknet
from prunedeploy.pruning.coupling import coupling_groups
from prunedeploy.pruning.importance import unit_importance
from prunedeploy.pruning.ratio import solve_structured
from prunedeploy.pruning.shrink import shrink
from prunedeploy.scores import scaled_scores
from prunedeploy_engines.bench_compare import compare_rounds
from prunedeploy_engines.process_bench import bench_models
from prunedeploy_export import onnx_from_torch

RATIOS = (0.5, 0.75, 0.9)
WARM_CALLS, MIN_CALLS = 20, 30

# Arguments: threads, seconds, files. The first file is timed; the others, if any, are called in between.
BARE = f"""
import json, sys, time
import numpy, onnxruntime

threads, seconds = int(sys.argv[1]), float(sys.argv[2])
sessions = []
for path in sys.argv[3:]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    sessions.append(onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]))
side = sessions[0].get_inputs()[0].shape[2]
images = [numpy.random.default_rng(i).random((1, 3, side, side), dtype=numpy.float32) for i in range(8)]
samples, number, end = [], 0, None
while end is None or time.perf_counter() < end or len(samples) < {MIN_CALLS}:
    start = time.perf_counter()
    sessions[0].run(None, {{"images": images[number % 8]}})
    stop = time.perf_counter()
    number += 1
    for other in sessions[1:]:
        other.run(None, {{"images": images[number % 8]}})
    if number == {WARM_CALLS}:
        end = time.perf_counter() + seconds
    elif end is not None:
        samples.append((stop - start) * 1000)
print(json.dumps(samples))
"""


def pruned(model: Darknet, ratio: float) -> Darknet:
    """Cut channels until so much of the weights is gone."""
    importance = unit_importance(scaled_scores(model), coupling_groups(model.cfg))
    return shrink(model, solve_structured(model.cfg, importance, ratio).keep)


def export_models(folder: Path) -> dict[str, Path]:
    """Write the six models."""
    dense = random_yolov3()
    models = {"dense": dense, **{f"pruned-{ratio}": pruned(dense, ratio) for ratio in RATIOS}}
    models |= {"tiny": random_yolov3("yolov3-tiny"), "tiny-2": random_yolov3("yolov3-tiny", seed=2)}
    paths = {}
    for name, model in models.items():
        paths[name] = folder / f"{name}.onnx"
        onnx_from_torch(FoldedDarknet(model), paths[name])
    return paths


def bare(paths: list[Path], threads: int, seconds: float) -> list[float]:
    """Milliseconds of the first model in a fresh process."""
    command = [sys.executable, "-c", BARE, str(threads), str(seconds), *map(str, paths)]
    samples: list[float] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return samples


def ours(names: list[str], paths: dict[str, Path], threads: int, seconds: float) -> dict[str, list[float]]:
    """Milliseconds of every row of one measurement."""
    specs = {name: {"path": paths[name], "threads": threads} for name in names}
    results = bench_models(specs, seconds=seconds, min_calls=MIN_CALLS)
    return {name: list(result.latency.samples_ms) for name, result in results.items()}


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--cycles", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--subject", action="append")
    parser.add_argument("--trap", action="store_true")
    arguments = parser.parse_args()
    threads, seconds = arguments.threads, arguments.seconds
    subjects = arguments.subject or ["pruned-0.9", "tiny", "dense"]
    say_machine()
    with tempfile.TemporaryDirectory() as folder:
        paths = export_models(Path(folder))
        times: dict[tuple[str, str], list[list[float]]] = {}

        def keep(subject: str, arm: str, samples: list[float]) -> None:
            times.setdefault((subject, arm), []).append(samples)

        for cycle in range(arguments.cycles):
            for turn in range(3):
                arm = (turn + cycle) % 3
                if arm == 0:
                    for name in subjects:
                        keep(name, "bare", bare([paths[name]], threads, seconds))
                elif arm == 1:
                    for name in subjects:
                        keep(name, "alone", ours([name], paths, threads, seconds)[name])
                else:
                    for name, samples in ours(list(paths), paths, threads, seconds).items():
                        if name in subjects:
                            keep(name, "among", samples)
            if arguments.trap:
                for name in subjects:
                    files = [paths[name], *(path for other, path in paths.items() if other != name)]
                    keep(name, "one process, in turn", bare(files, threads, seconds))
            medians = {f"{name} {arm}": round(median(runs[-1]), 2) for (name, arm), runs in times.items()}
            print(f"cycle {cycle + 1} of {arguments.cycles}: {medians}", file=sys.stderr, flush=True)
    arms = ["alone", "among", *(["one process, in turn"] if arguments.trap else [])]
    print(f"{'':12} {'':22} {'p50 ms':>8} {'/ bare':>7}   95 % interval     each cycle")
    for name in subjects:
        base = times[name, "bare"]
        print(f"{name:12} {'bare':22} {median(list(itertools.chain(*base))):8.2f}")
        for arm in arms:
            result = compare_rounds(base, times[name, arm])
            cycles = [median(b) / median(a) for a, b in zip(base, times[name, arm], strict=True)]
            pooled = median(list(itertools.chain(*times[name, arm])))
            print(
                f"{name:12} {arm:22} {pooled:8.2f} {result.ratio:7.3f}"
                f"   {result.low:.3f} to {result.high:.3f}   {' '.join(f'{ratio:.2f}' for ratio in cycles)}"
            )


if __name__ == "__main__":
    main()
