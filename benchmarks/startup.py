"""How long the command line takes to say something, and what a cold start of `detect` is made of.

    python benchmarks/startup.py [--bundle BUNDLE] [--build 'prunedeploy build --ratio 0.75']

Whole processes, wall and CPU time; on a busy machine the CPU time says more. Run the build once before, so that its
second run, which has nothing left to do, is what is timed. `install_size.py` times `detect` as it is installed on a
device.
"""

from __future__ import annotations

import argparse
import json
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from prunedeploy_engines.bundle.source import find_model

PHASES = """
import json, sys, time
marks = [(time.perf_counter(), time.process_time())]
def mark():
    marks.append((time.perf_counter(), time.process_time()))
import onnxruntime, PIL.Image
from prunedeploy_engines.bundle import load_bundle
import prunedeploy_engines.runtimes.onnxruntime.runner
mark()
bundle = load_bundle(sys.argv[1])
mark()
runner = bundle.runner()
mark()
bundle.detect(sys.argv[2], runner=runner)
mark()
print(json.dumps([[b - a for a, b in zip(one, two)] for one, two in zip(marks, marks[1:])]))
"""
PHASE_NAMES = ("imports", "files verified", "session opened", "first image")


def process_seconds(command: list[str], runs: int) -> list[tuple[float, float]]:
    """Wall and CPU time of every run after one that does not count."""
    times = []
    for number in range(runs + 1):
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        if number:
            times.append((wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime))
    return times


def phase_seconds(bundle: Path, image: Path, runs: int) -> dict[str, list[tuple[float, float]]]:
    """Wall and CPU time of the parts of a `detect`, by part, each run in a fresh process."""
    command = [sys.executable, "-c", PHASES, str(bundle), str(image)]
    told = [json.loads(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(runs)]
    return {name: [tuple(run[number]) for run in told] for number, name in enumerate(PHASE_NAMES)}


def show(name: str, times: list[tuple[float, float]]) -> None:
    """Print a row."""
    walls, cpus = zip(*times, strict=True)
    spread = f"{min(walls):.3f} to {max(walls):.3f}, n = {len(walls)}"
    print(f"{name}: median {statistics.median(walls):.3f} s, {spread}; CPU time {statistics.median(cpus):.3f} s")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", default="", help="a build that has run before; default: none is timed")
    parser.add_argument("--bundle", type=Path, help="to time `detect` on; default: it is not timed")
    parser.add_argument("--runs", type=int, default=10)
    arguments = parser.parse_args()
    module = [sys.executable, "-m", "prunedeploy.cli"]
    show("python -c pass", process_seconds([sys.executable, "-c", "pass"], arguments.runs))
    show("prunedeploy --help", process_seconds([*module, "--help"], arguments.runs))
    show("prunedeploy doctor", process_seconds([*module, "doctor"], arguments.runs))
    if arguments.bundle is not None:
        with tempfile.TemporaryDirectory() as folder:
            image = Path(folder) / "photo.png"
            Image.fromarray(np.zeros((480, 640, 3), np.uint8)).save(image)
            command = [*module, "detect", str(arguments.bundle), str(image)]
            show(f"prunedeploy detect {arguments.bundle}", process_seconds(command, arguments.runs))
            bundle = find_model(arguments.bundle).bundle or arguments.bundle
            for name, times in phase_seconds(bundle, image, arguments.runs).items():
                show(f"  {name}", times)
    if arguments.build:
        command = [*module, *shlex.split(arguments.build)[1:]]
        show(f"second `{arguments.build}`", process_seconds(command, 2))


if __name__ == "__main__":
    main()
