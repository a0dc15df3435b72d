"""Fixtures and settings that every test shares."""

from __future__ import annotations

import gc
import importlib.abc
import os
import resource
import signal
import sys
from collections import Counter
from collections.abc import Generator, Iterator
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import settings

from effort import examples

# Read when torch and its BLAS are first imported, so it must stand before any test module is. Of several test processes
# each has one thread: they share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")


class OpenVinoStaysOut(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Lets OpenVINO be found, as installed, but not be loaded here: decision 0008. Its tests run it in processes."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        found = PathFinder.find_spec(name) if name == "openvino" else None
        if found is not None:
            found.loader = self
        return found

    def exec_module(self, module: ModuleType) -> None:
        raise AssertionError("OpenVINO must not be imported beside PyTorch: run it in a process (decision 0008)")


sys.meta_path.insert(0, OpenVinoStaysOut())

# A shell in the background has its children ignore Ctrl-C, and theirs; some tests send it to programs that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes depends on the machine, and no test here judges that. In CI the same
# examples run every time, so that a red run is red again.
settings.register_profile("local", deadline=None, max_examples=examples(100))
settings.register_profile("ci", deadline=None, max_examples=examples(100), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")

REPOSITORY = Path(__file__).resolve().parents[1]


def cpu_seconds() -> float:
    """CPU time of this process and of those it has started and waited for."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


class CpuClock:
    """Notes with each report the CPU seconds since the one before, of setup, call or teardown and their processes."""

    def __init__(self) -> None:
        self._last = cpu_seconds()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        now = cpu_seconds()
        report.cpu_seconds, self._last = now - self._last, now
        return report


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    """Collect the tests without collecting garbage, of which there is none yet; searching for it takes a third longer.

    What is there at the end stays, so it is never looked through again. Then the clock starts.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()
        session.config.pluginmanager.register(CpuClock())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what each part of the tests took, the costliest part first.

    CPU seconds stay the same on a busy machine; seconds of a test process do not, and have what it waited for in them.
    """
    cpu: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    tests: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                part = "/".join(report.nodeid.split("::")[0].split("/")[:3])
                cpu[part] += getattr(report, "cpu_seconds", 0.0)
                seconds[part] += report.duration
                tests[part] += report.when == "call"
    if sum(tests.values()) > 1:
        in_all = f"{sum(cpu.values()):.0f} s of CPU, {sum(seconds.values()):.0f} s"
        terminalreporter.section(f"time of each part, {in_all} in all")
        for part, took in cpu.most_common(40):
            terminalreporter.write_line(f"{took:7.1f} s of CPU {seconds[part]:7.1f} s  {tests[part]:4} tests  {part}")


@pytest.fixture(scope="session", autouse=True)
def own_measuring_lock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test judges a time, so none waits until other processes on the machine have measured."""
    lock = tmp_path_factory.getbasetemp() / "measuring.lock"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prunedeploy_engines.locks.shared_lock_file", lambda: lock)
        yield


@pytest.fixture(scope="session", autouse=True)
def cheap_surroundings() -> Iterator[None]:
    """What costs a test time and tells it nothing, in this process; programs that tests start have the real thing.

    No test outlives a power cut, so files are not forced to the disk. Latency is measured in few rounds, and the peak
    that it is compared with on a small MatMul.
    """
    from prunedeploy_engines.bench.spec import _DEFAULTS

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        patch.setitem(_DEFAULTS, "size", 64)
        patch.setattr("prunedeploy_engines.bench.run.ROUNDS", 2)
        yield


@pytest.fixture(scope="session")
def repository() -> Path:
    """Top folder of the checkout the tests run in."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of genuine material (Darknet weights, photos), which stands beside the checkout or nowhere."""
    folder = REPOSITORY.parent / "shared"
    if not (folder / "real").is_dir():
        pytest.skip("needs the genuine weights and photos in ../shared, which are not part of the project")
    return folder
