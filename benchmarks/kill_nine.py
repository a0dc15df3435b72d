"""Kill a smoke build with SIGKILL at random moments, give the same command again, and compare the weights.

    python benchmarks/kill_nine.py [--kills 10] [--seed 0] [--set key=value ...]

Every build is the real program in a process of its own, with a store and an output folder of its own; the
moments are drawn from the duration of an undisturbed build. The figure to show: after each kill no file is half
there, and after the second command the final weights are those of the undisturbed build, bit for bit.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from prunedeploy.data.demo import DemoSettings, write_demo
from prunedeploy.pipeline.store.key import check_result
from prunedeploy_engines import load_bundle
from prunedeploy_engines.errors import PrunedeployError


def command(folder: Path, data: Path, sets: list[str]) -> list[str]:
    arguments = ["build", "--config", "smoke", "--data", str(data), "--store", str(folder / "store")]
    options = [part for one in sets for part in ("--set", one)]
    return [sys.executable, "-m", "prunedeploy.cli", *arguments, "--out", str(folder / "out"), *options]


def start(folder: Path, data: Path, sets: list[str]) -> subprocess.Popen[bytes]:
    folder.mkdir(exist_ok=True)
    # A session of its own, so that what the build has started is killed with it.
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(command(folder, data, sets), stdout=log, stderr=log, start_new_session=True)


def finish(folder: Path, data: Path, sets: list[str]) -> float:
    started = time.monotonic()
    code = start(folder, data, sets).wait()
    if code != 0:
        sys.exit(f"the build in {folder} ended with {code}:\n{(folder / 'log.txt').read_text()[-2000:]}")
    return time.monotonic() - started


def stored(folder: Path) -> list[str]:
    """Names of the whole results; checks that there are no others."""
    names = []
    for result in sorted((folder / "store" / "results").glob("*"), key=lambda path: path.stat().st_mtime):
        stage, _, digest = result.name.rpartition("-")
        check_result(result, digest)
        names.append(stage)
    return names


def half_written(folder: Path) -> str:
    """What is there under the name of something whole and is not; empty if nothing."""
    out = folder / "out"
    try:
        stored(folder)
        if (out / "bundle").exists():
            load_bundle(out / "bundle")
        for name in ("build.json", "results.json"):
            if (out / name).exists():
                json.loads((out / name).read_text())
    except (PrunedeployError, ValueError) as error:
        return str(error)
    return ""


def weights_of(folder: Path) -> str:
    return hashlib.sha256((folder / "out" / "model.weights").read_bytes()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", dest="sets", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    draw = random.Random(options.seed)
    failures = 0
    with tempfile.TemporaryDirectory(prefix="kill-nine-") as temporary:
        top = Path(temporary)
        data = write_demo(top / "data", DemoSettings(train_scenes=64, test_scenes=8))
        seconds = finish(top / "undisturbed", data, options.sets)
        expected = weights_of(top / "undisturbed")
        print(f"undisturbed: {seconds:.1f} s, model.weights {expected[:16]}\n")
        print(f"{'kill':>4} {'at':>8} {'during':<22} {'half-written':<12} {'resumed in':>10}  weights")
        for number in range(1, options.kills + 1):
            folder = top / str(number)
            moment = draw.uniform(0, seconds)
            process = start(folder, data, options.sets)
            time.sleep(moment)
            early = process.poll() is not None
            if not early:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            broken = half_written(folder)
            during = "already finished" if early else f"after {stored(folder)[-1]}" if stored(folder) else "the start"
            resumed = finish(folder, data, options.sets)
            same = weights_of(folder) == expected
            failures += bool(broken) or not same
            verdict = "identical" if same else "DIFFERENT"
            row = f"{number:>4} {moment:>6.1f} s {during:<22} {broken or 'nothing':<12} {resumed:>8.1f} s"
            print(f"{row}  {verdict}", flush=True)
    print(f"\n{options.kills - failures} of {options.kills} builds ended as if nothing had happened")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
