"""Kill the driver of a sweep, and a worker of it, with SIGKILL at random moments, and compare what comes out.

    python benchmarks/sweep_kills.py [--kills 10] [--seed 0]

Every sweep is the real program with two workers, with a store and an output folder of its own: six models that are
trained, timed and drawn. Once in it a worker is killed and once the driver: up to a second and a half after a drawn
number of its stages was stored. Then the same command is given again at once, while workers of the dead driver may
still be ending.
The figures to show: after each kill no file is half there, and in the end every model has its rows once, with the
table, the stored results and the pictures of the undisturbed sweep, bit for bit.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _sweeps import MEASURED, command, must_end_well, rows_of, start, write_study
from PIL import Image

from prunedeploy.data.demo import DemoSettings
from prunedeploy.pipeline.store.key import check_result
from prunedeploy.pipeline.store.store import Store
from prunedeploy_engines.errors import PrunedeployError

WORKERS = 2
LONGEST_DELAY = 1.5
STUDY = """\
name: kills
base: smoke
settings:
  data:
    path: {data}
  scores:
    images: 4
  finetune:
    steps: 8
  evaluation:
    bootstrap: 0
  latency:
    runtimes: [onnxruntime]
configurations:
  structured-scaled:
    method: structured
  unstructured-deeplift-grey:
    method: unstructured
    scores:
      name: deeplift
    data:
      greyscale: true
ratios: [0.25]
seeds: [0, 1]
"""


def workers_of(driver: int) -> list[int]:
    """Process ids of the workers that a driver has started and that still live."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            arguments = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if int(parent) == driver and state != "Z" and b"prunedeploy.study.sweep.worker" in arguments:
            found.append(int(folder.name))
    return sorted(found)


@dataclass
class Trial:
    """One sweep and what is done to it.

    Attributes:
        study: Folder of the configuration.
        folder: Folder of store and rows.
        draw: Chooses the worker.
        kills: Who was killed, and what was the last stored stage then.
        broken: What was half there after a kill.
    """

    study: Path
    folder: Path
    draw: random.Random
    kills: list[tuple[str, str]] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def run(self, moments: dict[str, tuple[int, float]]) -> float:
        """Run the sweep to its end; return the seconds that it took.

        Args:
            moments: Whom to kill: when so many stages are stored, and so many seconds have passed since. One that
                comes when the sweep has ended, or no worker is left, kills nobody.
        """
        begun = time.monotonic()
        process = self._start()
        for whom, moment in sorted(moments.items(), key=lambda one: one[1]):
            victim = self._victim(process, whom, *moment)
            if victim is None:
                break
            during = last_stage(self.folder)
            os.kill(victim, signal.SIGKILL)
            if whom == "driver":
                process.wait()
            self.kills.append((whom, during))
            self.broken += half_written(self.folder)
            if whom == "driver":
                process = self._start()
        must_end_well(process, self.folder)
        return time.monotonic() - begun

    def _start(self) -> subprocess.Popen[bytes]:
        return start(command(self.study, self.folder, WORKERS), self.folder)

    def _victim(self, process: subprocess.Popen[bytes], whom: str, stages: int, seconds: float) -> int | None:
        """Whom to kill when it is time: of the workers one that lives, waited for if need be."""
        while process.poll() is None and len(results_of(self.folder)) < stages:
            time.sleep(0.005)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        while process.poll() is None:
            if whom == "driver":
                return process.pid
            if living := workers_of(process.pid):
                return self.draw.choice(living)
            time.sleep(0.01)
        return None


def results_of(folder: Path) -> list[Path]:
    """The stored results, the latest last."""
    return sorted((folder / "store" / "results").glob("*"), key=lambda path: (path / "stage.json").stat().st_mtime)


def last_stage(folder: Path) -> str:
    """Name of the last stored result."""
    results = results_of(folder)
    return results[-1].name.rpartition("-")[0] if results else "the start"


def half_written(folder: Path) -> list[str]:
    """What is there under the name of something whole and is not."""
    broken = []
    out = folder / "out"
    documents = [path for path in (out / "sweep.json", out / "samples" / "samples.json") if path.exists()]
    checks: list[tuple[Path, Any]] = [(path, lambda path: json.loads(path.read_bytes())) for path in documents]
    pictures = [*out.glob("samples/*/*.png"), *out.glob("samples/*/*.webp")]
    checks += [(path, lambda path: Image.open(path).load()) for path in pictures]
    results = (folder / "store" / "results").glob("*")
    checks += [(path, lambda path: check_result(path, path.name.rpartition("-")[2])) for path in results]
    if (out / "rows.jsonl").exists():
        checks.append((out / "rows.jsonl", lambda path: whole_lines(folder)))
    for path, check in checks:
        try:
            check(path)
        except (PrunedeployError, ValueError, OSError) as error:
            broken.append(f"{path.relative_to(folder)}: {error}")
    return broken


def whole_lines(folder: Path) -> None:
    """Refuse a row file whose last line breaks off, or that has anything else in it than rows."""
    rows_of(folder)
    content = (folder / "out" / "rows.jsonl").read_bytes()
    if content and not content.endswith(b"\n"):
        raise ValueError("the last line breaks off")


def what_came_out(folder: Path) -> dict[str, Any]:
    """Everything of a finished sweep that must be the same whatever happened to it, by what it is called."""
    rows = rows_of(folder)
    trained = Counter(row.cell for row in rows if row.params is not None)
    timed = Counter(row.cell for row in rows if row.time_ms is not None)
    table = {row.cell: tuple(getattr(row, name) for name in MEASURED) for row in rows if row.params is not None}
    with Store(folder / "store") as store:
        stored = sorted((row.kind, row.name, row.digest) for row in store.ls(hashed=True))
    weights = {path.parent.name: digest(path) for path in folder.glob("store/results/*/model.weights")}
    pictures = {path.relative_to(folder).as_posix(): digest(path) for path in folder.glob("out/samples/*/*")}
    return {
        "rows of training": trained,
        "rows of latency": timed,
        "errors": [row.error for row in rows if row.error is not None],
        "table": table,
        "store": stored,
        "weights": weights,
        "pictures": pictures,
    }


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check_undisturbed(found: dict[str, Any]) -> None:
    """See that there is something to compare: every model once, and not all with the same mAP."""
    counts = [*found["rows of training"].values(), *found["rows of latency"].values()]
    assert len(counts) == 12, "six models are trained and timed"
    assert set(counts) == {1}, "each once"
    assert len({values[MEASURED.index("map_clean")] for values in found["table"].values()}) > 3, "mAP tells them apart"
    assert len(found["pictures"]) > 0
    assert {kind for kind, *_ in found["store"]} == {"result"}


def main() -> None:
    """Print a line per sweep; exit with 1 if one came out different."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10, help="of the driver, and as many of a worker")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    killed, bad, sweeps = Counter[str](), 0, 0
    with tempfile.TemporaryDirectory(prefix="sweep-kills-") as temporary:
        top = Path(temporary)
        write_study(top / "study", STUDY, DemoSettings(train_scenes=64, test_scenes=8))
        seconds = Trial(top / "study", top / "undisturbed", draw).run({})
        expected = what_came_out(top / "undisturbed")
        check_undisturbed(expected)
        count = len(expected["store"])
        print(
            f"seed {options.seed}; undisturbed: {len(expected['table'])} models, {count} stages, {seconds:.1f} s\n",
            flush=True,
        )
        print(f"{'sweep':>5}  {'took':>7}  half-written  what came out")
        while min(killed["driver"], killed["worker"]) < options.kills:
            sweeps += 1
            trial = Trial(top / "study", top / str(sweeps), draw)
            left = [whom for whom in ("worker", "driver") if killed[whom] < options.kills]
            took = trial.run({whom: (draw.randint(0, count), draw.uniform(0, LONGEST_DELAY)) for whom in left})
            found = what_came_out(trial.folder)
            different = [name for name in expected if found[name] != expected[name]]
            bad += bool(different or trial.broken)
            verdict = f"DIFFERENT: {', '.join(different)}" if different else "identical"
            print(f"{sweeps:>5}  {took:>5.1f} s  {'; '.join(trial.broken) or 'nothing':<12}  {verdict}", flush=True)
            for whom, during in trial.kills:
                killed[whom] += 1
                print(f"{'':>7}{whom} killed after {during}", flush=True)
    print(f"\n{killed['driver']} kills of the driver, {killed['worker']} of a worker in {sweeps} sweeps: {bad} differ")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
