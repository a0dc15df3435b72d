"""A sweep on a real Ray cluster of two nodes: the table of the local executor, whatever is lost meanwhile."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from prunedeploy.pipeline.store.key import machine_id
from prunedeploy.pipeline.store.store import Store
from prunedeploy.study.rows.file import read_rows
from prunedeploy.study.sweep import ray_cluster
from prunedeploy.study.sweep.driver import ROWS, SweepOutcome
from prunedeploy.study.sweep.ray_cluster import RayCluster
from prunedeploy.study.sweep.ray_executor import RayExecutor
from prunedeploy.study.sweep.ray_task import locks_reach, work
from prunedeploy.study.sweep.tasks import Event, Executor, StageDone, Task
from prunedeploy_engines.errors import ConfigError
from prunedeploy_engines.locks import FileLock
from ray_nodes import Node, Nodes, free_port
from tiny_study import TinyStudy, run_tiny, start_sweep

NOT_MEASURED = {"finished", "score_seconds", "optimise_seconds"}


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as environment:  # before Ray is imported
        environment.setenv("RAY_AUTH_MODE", "token")
        environment.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        environment.delenv("RAY_ADDRESS", raising=False)
        pytest.importorskip("ray", reason="needs Ray: pip install prunedeploy[cluster]")
        cluster = Nodes()
        try:
            yield cluster
        finally:
            cluster.stop()


@pytest.fixture
def connect(nodes: Any) -> Iterator[Callable[[], RayCluster]]:
    """Connected once, when the test is ready: the tests of refusals connect by themselves."""
    opened: list[RayCluster] = []

    def connect() -> RayCluster:
        opened.append(RayCluster(nodes.address, cpus=1))
        return opened[0]

    yield connect
    for cluster in opened:
        cluster.close()


class Disturbed(Executor):
    """Calls ``disturb`` with the number of an event before it is passed on."""

    def __init__(self, inner: RayExecutor, disturb: Callable[[int, Event], None]) -> None:
        self.inner = inner
        self.disturb = disturb

    def run(self, tasks: Sequence[Task]) -> Generator[Event, None, None]:
        for number, event in enumerate(self.inner.run(tasks), 1):
            self.disturb(number, event)
            yield event


def sweep_with(cluster: RayCluster, finished: Any, folder: Path, disturb: Callable[[int, Event], None]) -> SweepOutcome:
    def executors(phase: str, log: Path) -> Disturbed:
        return Disturbed(RayExecutor(cluster, log), disturb)

    return run_tiny(finished.sweep, folder / "store", folder / "out", executors=executors)


def table(out: Path) -> dict[Any, dict[str, Any]]:
    """Everything in the rows that is no time, by cell; every cell has one row."""
    rows = list(read_rows(out / ROWS).rows)
    assert set(Counter(row.cell for row in rows).values()) == {1}
    return {row.cell: {k: v for k, v in vars(row).items() if k not in NOT_MEASURED} for row in rows}


def stages(store: Path) -> set[str]:
    """Names and digests of all results."""
    return {path.name for path in (store / "results").iterdir()}


def assert_as_local(outcome: SweepOutcome, finished: Any) -> None:
    """No row lost, none doubled, same numbers to the last bit, nothing left half-made."""
    assert (outcome.trained, dict(outcome.failed)) == (6, {})
    assert table(outcome.out) == table(finished.out)
    store = outcome.out.parent / "store"
    assert stages(store) == stages(finished.store)
    assert list((store / "work").iterdir()) == []
    assert list((store / "checkpoints").iterdir()) == []
    assert list((store / "locks").glob("probe-*")) == []


@pytest.mark.slow
def test_two_nodes_give_the_table_of_the_local_executor_though_processes_of_ray_are_killed(
    nodes: Any, connect: Any, finished: Any, tmp_path: Path
) -> None:
    used: set[str] = set()
    killed: list[int] = []

    def disturb(number: int, event: Event) -> None:
        tasks = {"head": nodes.head.tasks(), "second": nodes.second.tasks()}
        used.update(name for name, found in tasks.items() if found)
        # At the end of a pre-training others wait for the stage that the killed task was to make next.
        if len(killed) < 2 and isinstance(event, StageDone) and event.name == "pretrain":
            for process in tasks["second"] or tasks["head"]:
                os.kill(process, signal.SIGKILL)
                killed.append(process)

    outcome = sweep_with(connect(), finished, tmp_path, disturb)
    assert used == {"head", "second"}
    assert len(killed) >= 2
    assert_as_local(outcome, finished)


def test_loss_of_a_node_loses_no_row_and_doubles_none(nodes: Any, connect: Any, finished: Any, tmp_path: Path) -> None:
    lost: list[int] = []

    def disturb(number: int, event: Event) -> None:
        if not lost and number > 3 and (tasks := nodes.second.tasks()):
            lost.extend(tasks)
            nodes.second.lose()

    outcome = sweep_with(connect(), finished, tmp_path, disturb)
    assert lost
    assert nodes.second.processes() == []
    assert_as_local(outcome, finished)
    nodes.start_second()


@pytest.mark.slow
def test_latency_is_measured_on_the_drivers_node_and_the_program_prints_json_alone(
    nodes: Any, tiny_study: TinyStudy, tmp_path: Path
) -> None:
    tiny_study.write(tmp_path / "study.yaml", runtime="onnxruntime")
    where = ["--executor", "ray", "--ray-address", nodes.address, "--samples", "0", "--json"]
    program = start_sweep(tmp_path, *where, "--only", "configuration=structured-scaled", "--only", "seed=0")
    output, errors = program.communicate()
    assert program.returncode == 0, errors
    document = json.loads(output)
    assert (document["trained"], document["timed"], document["failed"]) == (1, 1, [])
    trained, timed = read_rows(tmp_path / "out" / ROWS).rows
    (path,) = (tmp_path / "store").glob("results/file-latency-*/latency.json")
    assert (trained.time_ms, timed.time_ms) == (None, json.loads(path.read_text())["mean"])
    assert timed.machine == machine_id()
    assert "train: structured-scaled 0.5 0" in (tmp_path / "out" / "workers.log").read_text()


@pytest.mark.slow
def test_interrupt_cancels_tasks_and_leaves_nothing_half_made(
    nodes: Any, tiny_study: TinyStudy, tmp_path: Path
) -> None:
    tiny_study.write(tmp_path / "study.yaml")
    program = start_sweep(tmp_path, "--executor", "ray", "--ray-address", nodes.address)
    while not list((tmp_path / "store").glob("results/pretrain-*")):
        assert program.poll() is None
        time.sleep(0.01)
    program.send_signal(signal.SIGINT)
    output, errors = program.communicate()
    assert (program.returncode, output) == (130, "")
    assert errors.splitlines()[-1] == "interrupted; the same command resumes"
    assert "Traceback" not in errors
    assert nodes.head.tasks() + nodes.second.tasks() == []
    assert list((tmp_path / "store" / "work").iterdir()) == []
    assert list((tmp_path / "store" / "locks").glob("probe-*")) == []


@pytest.mark.slow
def test_loss_of_the_head_is_one_line_and_the_same_command_goes_on(
    nodes: Any, finished: Any, tiny_study: TinyStudy, tmp_path: Path
) -> None:
    tiny_study.write(tmp_path / "study.yaml")
    folder = Path(tempfile.mkdtemp(prefix="pd-ray-"))
    head = Node(folder, None)
    try:
        program = start_sweep(tmp_path, "--executor", "ray", "--ray-address", head.address)
        while not list((tmp_path / "store").glob("results/pretrain-*")):
            assert program.poll() is None
            time.sleep(0.01)
    finally:
        head.lose()
        shutil.rmtree(folder)
    _, errors = program.communicate()
    assert program.returncode == 2
    line = f"prunedeploy: error: --ray-address {head.address}: the cluster has not answered for 20 s; fix it; the same"
    assert errors.splitlines()[-1].startswith(line)
    program = start_sweep(tmp_path, "--executor", "ray", "--ray-address", nodes.address)
    program.communicate()
    assert program.returncode == 0
    assert table(tmp_path / "out") == table(finished.out)


def test_refusals_are_one_line(nodes: Any, connect: Any, finished: Any, tmp_path: Path) -> None:
    cluster = connect()
    with pytest.raises(ConfigError, match=r"no node has 64 CPUs; add a node, or lower the sweep's threads"):
        run_on(RayExecutor(cluster, tmp_path / "log", threads=64), finished, tmp_path)
    executor = RayExecutor(cluster, tmp_path / "log")
    executor._identity["torch"] = "1.0.0"
    with pytest.raises(ConfigError, match=r"node .*: is not like the driver: torch .*, not 1\.0\.0; install the same"):
        run_on(executor, finished, tmp_path)
    assert list((tmp_path / "store" / "locks").glob("probe-*")) == []


def run_on(executor: RayExecutor, finished: Any, folder: Path) -> SweepOutcome:
    return run_tiny(finished.sweep, folder / "store", folder / "out", executors=lambda phase, log: executor)


def test_address_where_nothing_listens_is_one_line(tiny_study: TinyStudy, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install prunedeploy[cluster]")
    tiny_study.write(tmp_path / "study.yaml")
    address = f"127.0.0.1:{free_port()}"
    program = start_sweep(tmp_path, "--executor", "ray", "--ray-address", address)
    output, errors = program.communicate()
    assert (program.returncode, output) == (2, "")
    (line,) = errors.splitlines()
    assert line.startswith(f"prunedeploy: error: --ray-address {address}: no Ray cluster answers (")
    assert "`ray status`" in line
    assert not (tmp_path / "out").exists()


def test_address_where_something_else_listens_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel takes the connection, and nobody ever answers."""
    pytest.importorskip("ray", reason="needs Ray: pip install prunedeploy[cluster]")
    monkeypatch.setattr(ray_cluster, "SECONDS_TO_ANSWER", 3.0)
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(ConfigError, match=rf"--ray-address {address}: no Ray cluster answers within 3 s; check"):
            RayCluster(address, cpus=1)


@pytest.mark.parametrize(
    ("address", "line"),
    [("ray://127.0.0.1:10001", "Ray Client cannot be used; give HOST:PORT"), ("cluster", "is not an address; give")],
)
def test_what_is_no_address_is_said(address: str, line: str) -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install prunedeploy[cluster]")
    with pytest.raises(ConfigError, match=f"--ray-address {address}: {line}"):
        RayCluster(address, cpus=1)


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"--executor ray: Ray is not installed; pip install prunedeploy\[cluster\]"):
        RayCluster("auto", cpus=1)


def test_node_that_has_another_folder_at_the_stores_path_is_refused(tmp_path: Path) -> None:
    """What runs on a node, run here: with a probe that is missing, with another one, and with no folder to run in."""
    Store(tmp_path / "store").close()
    probe = tmp_path / "store" / "locks" / "probe-1"
    given = {"probe": {"path": str(probe), "content": "1"}, "folder": str(tmp_path), "threads": 1, "task": {}}
    refused = rf"{tmp_path / 'store'}: node .* does not see this store; give --store a folder that all nodes share"
    for content in (None, "2"):
        if content is not None:
            probe.write_text(content)
        (message,) = map(json.loads, work(json.dumps(given)))
        assert re.match(refused, message["unfit"])
    probe.write_text("1")
    (message,) = map(json.loads, work(json.dumps({**given, "folder": str(tmp_path / "home")})))
    assert re.match(rf"{tmp_path / 'home'}: node .* does not have this folder", message["unfit"])


def test_node_says_whether_the_drivers_lock_reaches_it(tmp_path: Path) -> None:
    Store(tmp_path / "store").close()
    probe = tmp_path / "store" / "locks" / "probe-1"
    probe.write_text("1")
    assert not locks_reach(probe)
    with FileLock(probe):
        assert locks_reach(probe)
    assert probe.exists()
