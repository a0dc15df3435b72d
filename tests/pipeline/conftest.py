"""A network, a data set and a configuration so small that a whole build takes a second or two."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from prunedeploy.config import load_config
from prunedeploy.data.demo import DemoSettings, write_demo
from prunedeploy.models import load_darknet
from prunedeploy.pipeline.build import BuildOutcome, build
from prunedeploy.pipeline.progress import Progress
from unsure_network import save_unsure

REPOSITORY = Path(__file__).parents[2]

# Two heads, a shortcut and a route between scales, as in YOLOv3.
TINY_CFG = """\
[net]
width=64
height=64
channels=3

[convolutional]
batch_normalize=1
filters=16
size=3
stride=2
pad=1
activation=leaky

[convolutional]
batch_normalize=1
filters=32
size=3
stride=2
pad=1
activation=leaky

[convolutional]
batch_normalize=1
filters=32
size=3
stride=1
pad=1
activation=leaky

[shortcut]
from=-2
activation=linear

[convolutional]
batch_normalize=1
filters=64
size=3
stride=2
pad=1
activation=leaky

[convolutional]
size=1
stride=1
pad=1
filters=30
activation=linear

[yolo]
mask=2,3
anchors=8,8, 16,16, 24,24, 40,40
classes=10
num=4

[route]
layers=-3

[upsample]
stride=2

[route]
layers=-1,3

[convolutional]
batch_normalize=1
filters=32
size=1
stride=1
pad=1
activation=leaky

[convolutional]
size=1
stride=1
pad=1
filters=30
activation=linear

[yolo]
mask=0,1
anchors=8,8, 16,16, 24,24, 40,40
classes=10
num=4
"""


# Random weights have hardly any mAP to lose: no tolerance decides here.
EVERY_PRECISION = (
    "export.precisions=fp32,fp16,int8",
    "export.int8.calibration_images=4",
    "export.int8.map_budget=null",
    "export.int8.match_share=0",
    "export.int8.parity_tolerance=10",
    "export.int8.map_tolerance=1",
    "export.fp16.map_tolerance=1",
)


@dataclass(frozen=True)
class TinyCase:
    """Files of a tiny build, and how to run it.

    ``latency.runtimes=tensorrt`` measures no latency where there is no GPU, which saves most of the time.
    """

    cfg: Path
    weights: Path
    data: Path
    sets: tuple[str, ...] = ("latency.runtimes=tensorrt", "report.grid_images=1", "evaluation.bootstrap=3")

    def arguments(self, *sets: str) -> list[str]:
        """The ``--set`` of a build; the last of two for one key wins."""
        own = (f"model.cfg={self.cfg}", f"model.weights={self.weights}", f"data.path={self.data}")
        return [*own, *self.sets, *sets]

    def build(self, store: Path, out: Path, *sets: str, **more: Any) -> BuildOutcome:
        config = load_config("smoke", self.arguments(*sets))
        return build(config, store=store, out=out, progress=Progress(quiet=True), **more)


@pytest.fixture(scope="session", autouse=True)
def few_rounds() -> Iterator[None]:
    """Latency is measured in few rounds: no test judges it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prunedeploy.pipeline.stages.latency.ROUNDS", 2)
        yield


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 training and 8 test scenes of the demo set."""
    folder = tmp_path_factory.mktemp("data") / "scenes"
    return write_demo(folder, DemoSettings(train_scenes=16, test_scenes=8))


@pytest.fixture(scope="session")
def demo_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store for builds of the demo network, whose stages all modules share, in all test processes."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    return folder / "demo-store"


@pytest.fixture(scope="session")
def tiny_case(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> TinyCase:
    """A network of seven convolutions with random weights on 64 x 64 pixels."""
    folder = tmp_path_factory.mktemp("network")
    cfg, weights = folder / "tiny.cfg", folder / "tiny.weights"
    cfg.write_text(TINY_CFG)
    save_unsure(load_darknet(cfg, seed=3), weights)
    return TinyCase(cfg, weights, tiny_data)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_case: TinyCase) -> tuple[Path, Path, BuildOutcome]:
    """Store, output folder and outcome of an undisturbed tiny build; not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    outcome = tiny_case.build(folder / "store", folder / "out")
    return folder / "store", folder / "out", outcome


# Imports once; each line on its standard input is then a build in a process of its own, forked from it before it
# has computed anything.
_FORK_SERVER = """
import json, os, resource, sys
from pathlib import Path
from prunedeploy.config import load_config
from prunedeploy.pipeline.build import build
from prunedeploy.pipeline.progress import Progress
from prunedeploy_engines.errors import PrunedeployError
import onnx, onnxruntime, pycocotools.cocoeval, prunedeploy.pipeline.stages.evaluate
import torch._dynamo  # which a process imports when it makes its first optimiser

def run(order):
    if order["file_limit"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["file_limit"],) * 2)
    config = load_config("smoke", order["sets"])
    try:
        outcome = build(config, store=Path(order["store"]), out=Path(order["out"]), progress=Progress(quiet=True))
        answer, code = {"computed": outcome.computed}, 0
    except PrunedeployError as error:
        answer, code = {"error": str(error)}, 2
    half = Path(order["answer"] + ".tmp")
    half.write_text(json.dumps(answer))
    half.rename(order["answer"])
    return code

print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = run(json.loads(line))
        finally:
            sys.stderr.flush()
            os._exit(code)
    print(child, flush=True)
    if json.loads(line)["wait"]:
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class BuildProcesses:
    """Starts builds as processes that can be killed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        paths = [REPOSITORY, REPOSITORY / "export", REPOSITORY / "engines"]
        environment["PYTHONPATH"] = os.pathsep.join(map(str, paths))
        self._server = subprocess.Popen(
            [sys.executable, "-c", _FORK_SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert self._line() == "ready"
        self._number = 0

    def _line(self) -> str:
        assert self._server.stdout is not None
        return self._server.stdout.readline().strip()

    def start(self, store: Path, out: Path, sets: Sequence[str], wait: bool, file_limit: int = 0) -> tuple[int, Path]:
        """Start a build; return its process id and where it will write its answer.

        With ``wait``, `exit_code` waits for it. ``file_limit`` is the largest file in bytes that it may write.
        """
        self._number += 1
        answer = self.folder / f"answer-{self._number}.json"
        paths = {"store": str(store), "out": str(out), "answer": str(answer)}
        order = {**paths, "sets": list(sets), "wait": wait, "file_limit": file_limit}
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        return int(self._line()), answer

    def exit_code(self) -> int:
        """Wait for the build that was started last, with ``wait``."""
        return int(self._line())

    def run(self, store: Path, out: Path, sets: Sequence[str], file_limit: int = 0) -> dict[str, Any]:
        """Run a build to its end and return its answer."""
        _, answer = self.start(store, out, sets, True, file_limit)
        assert self.exit_code() in {0, 2}, "the build process ended with a bug"
        document: dict[str, Any] = json.loads(answer.read_text())
        return document

    def close(self) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait()


@pytest.fixture(scope="session")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BuildProcesses]:
    started = BuildProcesses(tmp_path_factory.mktemp("answers"))
    yield started
    started.close()


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[Path], Path]:
    """Copy a folder so that a test may change it; time stamps are kept."""

    def copy(folder: Path) -> Path:
        return Path(shutil.copytree(folder, tmp_path / f"copy-of-{folder.name}"))

    return copy
