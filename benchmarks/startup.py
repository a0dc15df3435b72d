"""How long the command line takes to say something, and a second identical build to see that nothing is left to do.

    python benchmarks/startup.py [--build 'prunedeploy build --ratio 0.75']

Whole processes, wall time. Run the build once before, so that its second run is what is timed.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import subprocess
import sys
import time


def wall_seconds(command: list[str], runs: int) -> list[float]:
    """Wall time of every run after one that does not count."""
    times = []
    for number in range(runs + 1):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if number:
            times.append(time.perf_counter() - start)
    return times


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", default="", help="a build that has run before; default: only --help is timed")
    parser.add_argument("--runs", type=int, default=10)
    arguments = parser.parse_args()
    module = [sys.executable, "-m", "prunedeploy.cli"]
    rows = {"prunedeploy --help": wall_seconds([*module, "--help"], arguments.runs)}
    rows["python -c pass"] = wall_seconds([sys.executable, "-c", "pass"], arguments.runs)
    if arguments.build:
        command = [*module, *shlex.split(arguments.build)[1:]]
        rows[f"second `{arguments.build}`"] = wall_seconds(command, 2)
    for name, times in rows.items():
        spread = f"{min(times):.3f} to {max(times):.3f}, n = {len(times)}"
        print(f"{name}: median {statistics.median(times):.3f} s, {spread}")


if __name__ == "__main__":
    main()
