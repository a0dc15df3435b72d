"""What the machinery of a sweep costs beside its stages, and what a second worker on a second core is worth.

    python benchmarks/sweep_overhead.py [--rounds 2] [--steps 40] [--images 60]

In each round the same models are made three times, each time by a fresh process on an empty store: by a bare loop over
their stages (no driver, workers, rows), by a sweep with one worker, and by a sweep with two. A model takes some 20
seconds on one core, so that what a start costs is seen in proportion; models of a real study take longer. Times
include starting Python and loading PyTorch. The figures to show: one worker takes less than 3 % more than the loop,
two finish stages at least 1.6 times as fast as one while models are trained; latency is measured one model at a time,
by design. On a busy machine only what is outside of stages means anything.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from _sweeps import write_study

from prunedeploy.data.demo import DemoSettings
from prunedeploy_engines.machine.environment import cpu_info

STUDY = """\
name: overhead
base: demo
settings:
  data:
    path: {{data}}
    eval_images: {images}
  pretrain:
    from: given
    steps: {steps}
    batch_size: 4
    warmup_steps: 0
  score_optimization:
    steps: 4
    batch_size: 8
  finetune:
    steps: {steps}
    batch_size: 8
    distillation_weight: 0
  evaluation:
    bootstrap: 0
  latency:
    runtimes: [onnxruntime]
configurations:
  structured-scaled:
    method: structured
  unstructured-deeplift:
    method: unstructured
    scores:
      name: deeplift
ratios: [0.5]
seeds: [0, 1]
"""

LOOP = """
import json, sys, time
from pathlib import Path
from prunedeploy.pipeline.progress import Progress
from prunedeploy.pipeline.store.store import Store
from prunedeploy.process_setup import keep_freed_memory
from prunedeploy.study.statistics.design import REFERENCES
keep_freed_memory()
from prunedeploy.study.sweep.cell import timed_stage, timing_runtime, trained_stages
from prunedeploy.study.sweep.contexts import Contexts, ObservedContext
from prunedeploy.study.sweep.grid import load_sweep
events = []
def observe(result):
    if result.computed:
        events.append([time.time(), result.name, result.seconds])
cells = [cell for cell in load_sweep(sys.argv[1]).cells if cell.key[0] not in REFERENCES]
contexts = Contexts(Progress(quiet=True))
for cell in cells:
    with Store(Path(sys.argv[2]) / "store") as store:
        context = ObservedContext(**contexts.fields(cell.config, store), observe=observe)
        stages = trained_stages(context, False)
        timed_stage(context, stages, timing_runtime(context))
print(json.dumps({"events": events, "cells": len(cells)}))
"""
SWEEP = """
import json, sys, time
from functools import cache
from pathlib import Path
from prunedeploy.pipeline.progress import Progress
from prunedeploy.process_setup import keep_freed_memory
from prunedeploy.study.statistics.design import REFERENCES
keep_freed_memory()
from prunedeploy.study.sweep.driver import run_sweep
from prunedeploy.study.sweep.grid import load_sweep
from prunedeploy.study.sweep.local_executor import LocalExecutor
from prunedeploy.study.sweep.tasks import StageDone
events = []
class Observed(LocalExecutor):
    def run(self, tasks):
        for event in super().run(tasks):
            if isinstance(event, StageDone) and event.computed:
                events.append([time.time(), event.name, event.seconds])
            yield event
sweep = load_sweep(sys.argv[1])
cells = [cell for cell in sweep.cells if cell.key[0] not in REFERENCES]
folder = Path(sys.argv[2])
local = cache(lambda log: Observed(int(sys.argv[3]), log))
outcome = run_sweep(
    sweep, cells, store=folder / "store", out=folder / "out", executors=lambda phase, log: local(log),
    progress=Progress(quiet=True),
)
assert (outcome.trained, outcome.timed) == (len(cells), len(cells)), "every model is made"
print(json.dumps({"events": events, "cells": len(cells)}))
"""
LATENCY = "file-latency"


@dataclass(frozen=True)
class Made:
    """One process that made all models.

    Attributes:
        wall: From its start to its end, seconds.
        events: Moment after the start at which a stage was done, its name, and what it took.
        cells: How many models.
    """

    wall: float
    events: tuple[tuple[float, str, float], ...]
    cells: int

    @property
    def stages(self) -> float:
        """Seconds in stages, of all workers together."""
        return sum(seconds for *_, seconds in self.events)

    @property
    def trained(self) -> tuple[tuple[float, str, float], ...]:
        """The stages that workers do beside each other."""
        return tuple(event for event in self.events if event[1] != LATENCY)

    @property
    def first(self) -> float:
        """When the first stage began."""
        return min(done - seconds for done, _, seconds in self.events)

    @property
    def training(self) -> float:
        """From the beginning of the first stage to the end of the last one before latency is measured."""
        return max(done for done, *_ in self.trained) - self.first

    @property
    def training_rate(self) -> float:
        """Stages per second of that time."""
        return len(self.trained) / self.training

    @property
    def in_training(self) -> float:
        """Seconds in these stages, of all workers together."""
        return sum(seconds for *_, seconds in self.trained)

    @property
    def around(self) -> float:
        """Before the first stage and after the last one."""
        return self.first + self.wall - max(done for done, *_ in self.events)


def make(program: str, study: Path, *more: str) -> Made:
    """Run a program on an empty folder."""
    with tempfile.TemporaryDirectory(prefix="sweep-overhead-") as folder:
        command = [sys.executable, "-c", program, str(study / "study.yaml"), folder, *more]
        begun, started = time.time(), time.perf_counter()
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        wall = time.perf_counter() - started
    told: dict[str, Any] = json.loads(done.stdout)
    events = tuple((moment - begun, name, seconds) for moment, name, seconds in told["events"])
    return Made(wall, events, told["cells"])


def say(name: str, made: Made) -> None:
    """Print where the time of one process went."""
    print(
        f"{name:12} {made.wall:6.1f} s, in stages {made.stages:6.1f} s, before and after them {made.around:4.1f} s; "
        f"{len(made.trained)} stages of training in {made.training:5.1f} s: {made.training_rate:.3f}/s",
        flush=True,
    )


def main() -> None:
    """Print every run, then what they come to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=40, help="of a pre-training, and of a fine-tuning")
    parser.add_argument("--images", type=int, default=60, help="of an evaluation")
    options = parser.parse_args()
    print(f"CPU {cpu_info()['name']}; torch with one thread in each process")
    made: dict[str, list[Made]] = {"loop": [], "one worker": [], "two workers": []}
    with tempfile.TemporaryDirectory(prefix="sweep-overhead-study-") as temporary:
        study = Path(temporary)
        text = STUDY.format(steps=options.steps, images=options.images)
        write_study(study, text, DemoSettings(train_scenes=200, test_scenes=options.images))
        for _ in range(options.rounds):
            runs = {"loop": (LOOP,), "one worker": (SWEEP, "1"), "two workers": (SWEEP, "2")}
            for name, (program, *more) in runs.items():
                made[name].append(make(program, study, *more))
                say(name, made[name][-1])
    pairs = list(zip(made["loop"], made["one worker"], strict=True))
    loop = median(one.wall for one in made["loop"])
    cells = made["loop"][0].cells
    outside = median((one.wall - one.stages) - (bare.wall - bare.stages) for bare, one in pairs)
    around = median(one.around - bare.around for bare, one in pairs)
    print(f"\none worker against the loop, {cells} models of {loop / cells:.1f} s:")
    print(f"  wall time {100 * (median(one.wall / bare.wall for bare, one in pairs) - 1):+.1f} %")
    print(f"  outside of stages {outside:+.1f} s, that is {100 * outside / loop:+.1f} %:")
    print(f"  {around:+.1f} s before the first and after the last stage, {(outside - around) / cells:+.2f} s per model")
    pairs = list(zip(made["one worker"], made["two workers"], strict=True))
    faster = median(two.training_rate / one.training_rate for one, two in pairs)
    slower = median(two.in_training / one.in_training for one, two in pairs)
    idle = [1 - two.in_training / (2 * two.training) for two in made["two workers"]]
    print("\ntwo workers against one:")
    print(f"  stages of training per second {faster:.2f} times as many")
    print(f"  a stage takes {slower:.2f} times as long beside another one")
    print(f"  {100 * median(idle):.0f} % of the workers' time is in no stage")


if __name__ == "__main__":
    main()
