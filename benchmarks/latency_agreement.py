"""Does a row of ``bench`` agree with a bare loop over plain ONNX Runtime in a fresh process?

    python benchmarks/latency_agreement.py [--seconds 1] [--cycles 8] [--threads 2] [--subject dense] [--trap]

Two arms: ``alone`` (our row, measured alone) and ``among`` (our row, measured among five other models), each between
two runs of a bare loop (a fresh process, the onnxruntime package, nothing of ours). A machine whose clock changes
every few seconds differs from itself by more than what is asked here; so the ratio of a cycle is ours over the mean
of the two bare medians around it, all cycles are printed, and beside the median of all of them stands that of the
cycles in which the two bare loops agreed within 3 %: the machine held still. The models are YOLOv3 at 416 with random
weights: dense, pruned to 0.5, 0.75 and 0.9, YOLOv3-tiny, and YOLOv3-tiny with another seed. With ``--trap`` a third
arm shows what the processes are for: the six sessions in one process, called in turn.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from _common import median, narrowed, random_yolov3, say_machine

from prunedeploy.models import FoldedDarknet
from prunedeploy_engines.bench.rounds import bench_models
from prunedeploy_export import onnx_from_torch

RATIOS = (0.5, 0.75, 0.9)
WARM_CALLS, MIN_CALLS = 10, 20
STILL = 0.03

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


def export_models(folder: Path) -> dict[str, Path]:
    """Write the six models."""
    dense = random_yolov3()
    models = {"dense": dense, **{f"pruned-{ratio}": narrowed(dense, ratio)[0] for ratio in RATIOS}}
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


def ours(name: str, names: list[str], paths: dict[str, Path], threads: int, seconds: float) -> list[float]:
    """Milliseconds of one row of a measurement of several."""
    specs = {other: {"path": paths[other], "threads": threads} for other in names}
    return list(bench_models(specs, seconds=seconds, min_calls=MIN_CALLS)[name].latency.samples_ms)


@dataclass(frozen=True)
class Cycle:
    """Medians in milliseconds: a bare loop, our row, a bare loop."""

    before: float
    row: float
    after: float

    @property
    def ratio(self) -> float:
        """Ours over bare."""
        return 2 * self.row / (self.before + self.after)

    @property
    def still(self) -> bool:
        """Whether the machine was as fast after our row as before."""
        return abs(self.before / self.after - 1) <= STILL


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--cycles", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--subject", action="append")
    parser.add_argument("--trap", action="store_true")
    arguments = parser.parse_args()
    threads, seconds = arguments.threads, arguments.seconds
    subjects = arguments.subject or ["pruned-0.9", "tiny"]
    say_machine()
    with tempfile.TemporaryDirectory() as folder:
        paths = export_models(Path(folder))
        cycles: dict[tuple[str, str], list[Cycle]] = {}
        for number in range(arguments.cycles):
            for name in subjects:
                arms = {
                    "alone": partial(ours, name, [name], paths, threads, seconds),
                    "among": partial(ours, name, list(paths), paths, threads, seconds),
                }
                if arguments.trap:
                    files = [paths[name], *(path for other, path in paths.items() if other != name)]
                    arms["one process, in turn"] = partial(bare, files, threads, seconds)
                before = median(bare([paths[name]], threads, seconds))
                for arm, measured in arms.items():
                    row = median(measured())
                    after = median(bare([paths[name]], threads, seconds))
                    cycles.setdefault((name, arm), []).append(Cycle(before, row, after))
                    before = after
            print(f"cycle {number + 1} of {arguments.cycles}", file=sys.stderr, flush=True)
    print(f"{'':12} {'':22} {'bare ms':>8} {'ours ms':>8} {'/ bare':>7} {'still':>14}   each cycle, * moved")
    for (name, arm), measured_cycles in cycles.items():
        still = [cycle.ratio for cycle in measured_cycles if cycle.still]
        shown = " ".join(f"{cycle.ratio:.3f}{'' if cycle.still else '*'}" for cycle in measured_cycles)
        bares = median([time for cycle in measured_cycles for time in (cycle.before, cycle.after)])
        held = f"{median(still):.3f} of {len(still)}" if still else "none"
        print(
            f"{name:12} {arm:22} {bares:8.2f} {median([cycle.row for cycle in measured_cycles]):8.2f} "
            f"{median([cycle.ratio for cycle in measured_cycles]):7.3f} {held:>14}   {shown}"
        )


if __name__ == "__main__":
    main()
