"""A study so small that a model of it takes a second: a network of five convolutions on 64 x 64 pixels."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from prunedeploy.data.demo import DemoSettings, write_demo
from prunedeploy.models import load_darknet
from prunedeploy.pipeline.progress import Progress
from prunedeploy.study.sweep.driver import SweepOutcome, run_sweep
from prunedeploy.study.sweep.grid import Cell, Sweep, load_sweep
from prunedeploy.study.sweep.local_executor import LocalExecutor
from prunedeploy.study.sweep.tasks import Executor, Phase
from unsure_network import save_unsure

_CONVOLUTION = """
[convolutional]
batch_normalize=1
filters={filters}
size=3
stride={stride}
pad=1
activation=leaky
"""
TINY_CFG = (
    "[net]\nwidth=64\nheight=64\nchannels=3\n"
    + "".join(_CONVOLUTION.format(filters=filters, stride=stride) for filters, stride in ((16, 2), (32, 2), (32, 1)))
    + _CONVOLUTION.format(filters=32, stride=2)
    + "\n[convolutional]\nsize=1\nstride=1\npad=1\nfilters=30\nactivation=linear\n"
    + "\n[yolo]\nmask=0,1\nanchors=12,12, 30,30\nclasses=10\nnum=2\n"
)

SWEEP = """\
name: tiny
base: smoke
settings:
  attack: [{{steps: 2}}, ensemble]
  robustness:
    budget: quick
    images: 2
    error_kinds: false
  model:
    cfg: {folder}/tiny.cfg
    weights: {folder}/tiny.weights
  data:
    path: {folder}/scenes
  scores:
    images: 4
  score_optimization:
    steps: 1
  finetune:
    steps: 2
  evaluation:
    bootstrap: 0
  latency:
    runtimes: [{runtime}]
configurations:
  structured-scaled:
    method: structured
  unstructured-deeplift-grey:
    method: unstructured
    scores:
      name: deeplift
    data:
      greyscale: true
ratios: [{ratios}]
seeds: [0, 1]
"""


@dataclass(frozen=True)
class TinyStudy:
    """Where its network and scenes are."""

    folder: Path

    def write(self, path: Path, runtime: str = "tensorrt", ratios: str = "0.5") -> Path:
        """Write a sweep's configuration; TensorRT times nothing where there is no GPU, which saves most of the time."""
        path.write_text(SWEEP.format(folder=self.folder, runtime=runtime, ratios=ratios), encoding="utf-8")
        return path

    def load(self, path: Path, runtime: str = "tensorrt", ratios: str = "0.5") -> Sweep:
        return load_sweep(self.write(path, runtime, ratios))


def make_tiny_study(folder: Path) -> TinyStudy:
    """Network with random weights, and 16 training and 8 test scenes."""
    (folder / "tiny.cfg").write_text(TINY_CFG)
    save_unsure(load_darknet(folder / "tiny.cfg", seed=3), folder / "tiny.weights")
    write_demo(folder / "scenes", DemoSettings(train_scenes=16, test_scenes=8))
    return TinyStudy(folder)


def run_tiny(
    sweep: Sweep,
    store: Path,
    out: Path,
    *,
    cells: Sequence[Cell] | None = None,
    workers: int = 2,
    retry: bool = False,
    executors: Callable[[Phase, Path], Executor] | None = None,
) -> SweepOutcome:
    """Run a sweep with quiet progress."""
    return run_sweep(
        sweep,
        sweep.cells if cells is None else cells,
        store=store,
        out=out,
        executors=executors or (lambda phase, log: LocalExecutor(workers if phase == "train" else 1, log)),
        retry=retry,
        progress=Progress(quiet=True),
    )


def start_sweep(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """The real program on ``folder/study.yaml``."""
    repository = Path(__file__).resolve().parents[1]
    paths = os.pathsep.join(str(repository / name) for name in (".", "export", "engines"))
    places = ["--config", str(folder / "study.yaml"), "--store", str(folder / "store"), "--out", str(folder / "out")]
    return subprocess.Popen(
        [sys.executable, "-m", "prunedeploy.cli", "sweep", *places, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def child_workers(parent: int) -> list[int]:
    """Process ids of the workers that a process has started and that still live."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, ppid = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            arguments = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if int(ppid) == parent and state != "Z" and b"prunedeploy.study.sweep.worker" in arguments:
            found.append(int(folder.name))
    return found
