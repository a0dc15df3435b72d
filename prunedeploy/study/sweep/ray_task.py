"""What runs on a node of a Ray cluster: a worker process as on the driver's machine, and its words passed on.

The work is not done in Ray's own process, which has threads that do not survive a fork, sets its own number of OpenMP
threads, and may be ended between two lines. A worker whose Ray process is gone sees the end of its input and ends.

Ray moves arguments and results by its own serialisation; ours are strings of JSON, and nothing of them is kept on disk.
"""

from __future__ import annotations

import json
import os
import platform
import selectors
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prunedeploy.study.sweep.worker_process import WorkerProcess, stop
from prunedeploy_engines.locks import FileLock

SECONDS_IDLE = 10.0
"""After so long without a task a worker ends, so that none keeps its memory while latency is measured."""
_SECONDS_DEAF = 0.2  # Ray's interrupt is seen between two waits only


def work(text: str) -> Iterator[str]:
    """Do a task.

    Args:
        text: JSON: ``task`` as a worker reads it; ``threads``; ``folder`` to run in; ``probe``, its path and content.

    Yields:
        JSON: what the worker says; ``log`` with lines of its standard error; ``local_locks`` with this node's name;
        ``ended`` with how the process ended, if it did before its task was done.
    """
    given = json.loads(text)
    probe = Path(given["probe"]["path"])
    if trouble := _trouble(given):
        yield json.dumps({"unfit": trouble})
        return
    if not locks_reach(probe):
        yield json.dumps({"local_locks": platform.node()})
    worker = _kept.take(given["threads"], Path(given["folder"]))
    finished = False
    try:
        worker.give(given["task"])
        for message in _words(worker):
            finished = bool(message.keys() & {"done", "failed", "stop", "unfit"})
            yield json.dumps(message)
            if finished:
                break
    finally:
        if finished:
            _kept.give_back(worker)
        else:
            stop([worker])


def _trouble(given: dict[str, Any]) -> str | None:
    """Why this node cannot do tasks, in a line."""
    node, probe, folder = platform.node(), given["probe"], Path(given["folder"])
    try:
        content = Path(probe["path"]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        content = ""
    if content != probe["content"]:
        store = Path(probe["path"]).parents[1]
        fix = "give --store a folder that all nodes share under the same path"
        return f"{store}: node {node} does not see this store; {fix}"
    if not folder.is_dir():
        return f"{folder}: node {node} does not have this folder; start the sweep in one that all nodes share"
    return None


def locks_reach(probe: Path) -> bool:
    """The driver holds a lock on the probe: whether that is noticed here."""
    lock = FileLock(probe)
    if not lock.acquire(wait=False):
        return True
    lock.release()
    return False


def _words(worker: WorkerProcess) -> Iterator[dict[str, Any]]:
    """What a worker says and logs, until it ends."""
    assert worker.process.stderr is not None
    errors = worker.process.stderr.fileno()
    log = _Lines(errors)
    with selectors.DefaultSelector() as selector:
        selector.register(worker.output, selectors.EVENT_READ)
        selector.register(errors, selectors.EVENT_READ)
        while not worker.ended:
            ready = {key.fd for key, _ in selector.select(_SECONDS_DEAF)}
            if errors in ready:
                yield from log.read()
            if worker.output in ready:
                yield from worker.messages()
    yield from log.read()
    yield {"ended": f"{worker.how_it_ended()}, on node {platform.node()}"}


class _Lines:
    """Whole lines from a descriptor that is never waited for."""

    def __init__(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self._rest = b""

    def read(self) -> Iterator[dict[str, Any]]:
        try:
            data = os.read(self._descriptor, 1 << 16)
        except BlockingIOError:
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        if lines:
            yield {"log": [f"{platform.node()}: {line.decode(errors='replace')}" for line in lines]}


class _Kept:
    """A worker that has ended its task, for the next one that Ray gives to this process: it has torch loaded."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._worker: WorkerProcess | None = None
        self._fits: Any = None
        self._timer: threading.Timer | None = None

    def take(self, threads: int, folder: Path) -> WorkerProcess:
        """The kept worker if it is one with these settings, else a new one."""
        fits = threads, folder, os.environ.get("CUDA_VISIBLE_DEVICES")
        with self._lock:
            worker, self._worker = self._worker, None
            if self._timer is not None:
                self._timer.cancel()
            matches, self._fits = self._fits == fits, fits
        if worker is not None and matches and worker.process.poll() is None:
            return worker
        if worker is not None:
            stop([worker])
        return WorkerProcess(subprocess.PIPE, threads, folder)

    def give_back(self, worker: WorkerProcess) -> None:
        """Keep a worker for a while."""
        with self._lock:
            self._worker = worker
            self._timer = threading.Timer(SECONDS_IDLE, self._end, [worker])
            self._timer.daemon = True
            self._timer.start()

    def _end(self, worker: WorkerProcess) -> None:
        with self._lock:
            if self._worker is not worker:
                return
            self._worker = None
        stop([worker])


_kept = _Kept()
