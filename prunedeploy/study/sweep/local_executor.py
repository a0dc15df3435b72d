"""Tasks on this machine: worker processes that are started when they are needed and started again when they die."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prunedeploy.study.rows import CellKey
from prunedeploy.study.sweep.tasks import CellDone, CellFailed, Event, StageDone, Task
from prunedeploy_engines.errors import StoreError

DEATHS_ALLOWED = 3
SECONDS_TO_STOP = 20.0


class LocalExecutor:
    """Worker processes, each with one task at a time.

    Args:
        workers: At most so many at once.
        log: File that their standard error is appended to.
        threads: Of PyTorch in each; other libraries get as many.
    """

    def __init__(self, workers: int, log: Path, threads: int = 1) -> None:
        self.workers = workers
        self.log = log
        self.threads = threads

    def run(self, tasks: Sequence[Task]) -> Generator[Event, None, None]:
        """See `Executor.run`."""
        queue, deaths = list(tasks), Counter[CellKey]()
        done: set[str] = set()
        pool: list[_Process] = []
        idle: list[_Process] = []
        try:
            with selectors.DefaultSelector() as selector:
                while queue or len(idle) < len(pool):
                    self._hand_out(queue, pool, idle, done, selector)
                    for ready, _ in selector.select():
                        process: _Process = ready.data
                        task = process.task
                        assert task is not None, "an idle worker says nothing"
                        for message in process.messages():
                            if "stage" in message:
                                done.add(message["stage"]["digest"])
                                yield StageDone(cell=task.cell, **message["stage"])
                                continue
                            process.task = None
                            idle.append(process)
                            selector.unregister(process.output)
                            yield _last_event(task, message)
                        if process.ended:
                            selector.unregister(process.output)
                            pool.remove(process)
                            deaths[task.cell] += 1
                            if deaths[task.cell] < DEATHS_ALLOWED:
                                queue.insert(0, task)
                            else:
                                how = process.how_it_ended()
                                yield CellFailed(task.cell, f"its process ended {DEATHS_ALLOWED} times, {how}")
        finally:
            _stop(pool)

    def _hand_out(
        self,
        queue: list[Task],
        pool: list[_Process],
        idle: list[_Process],
        done: set[str],
        selector: selectors.BaseSelector,
    ) -> None:
        """Give tasks to idle processes, and to new ones, as long as one can be begun."""
        while queue and (idle or len(pool) < self.workers):
            running = [process.task.missing for process in pool if process.task is not None]
            task = _next(queue, frozenset().union(*running) - done)
            if task is None:
                return
            if idle:
                process = idle.pop()
            else:
                process = _Process(self.log, self.threads)
                pool.append(process)
            process.give(task)
            selector.register(process.output, selectors.EVENT_READ, process)


def _next(queue: list[Task], being_made: frozenset[str]) -> Task | None:
    """Take the first task that needs nothing which is being made: another one would only wait for it."""
    for number, task in enumerate(queue):
        if not task.missing & being_made:
            return queue.pop(number)
    return None


def _last_event(task: Task, message: dict[str, Any]) -> Event:
    if "stop" in message:
        raise StoreError(message["stop"])
    if "failed" in message:
        return CellFailed(task.cell, message["failed"])
    return CellDone(task.cell, message["done"])


class _Process:
    """A worker process; see `prunedeploy.study.sweep.worker` for what it says."""

    def __init__(self, log: Path, threads: int) -> None:
        self.task: Task | None = None
        self.ended = False
        self._rest = b""
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": str(threads)}
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "prunedeploy.study.sweep.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                start_new_session=True,  # Ctrl-C in the terminal is for the driver, which stops its workers in order
            )

    @property
    def output(self) -> int:
        """Descriptor to select on."""
        assert self.process.stdout is not None
        return self.process.stdout.fileno()

    def give(self, task: Task) -> None:
        """Hand it a task; if it is dead, that is seen when its output is read."""
        self.task = task
        plain = {key: value for key, value in asdict(task).items() if key != "missing"}
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(plain).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return

    def messages(self) -> list[dict[str, Any]]:
        """What it has said, without waiting; sets `ended` at the end of its output."""
        data = os.read(self.output, 1 << 16)
        self.ended = not data
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def how_it_ended(self) -> str:
        """For people."""
        code = self.process.wait()
        if code == -signal.SIGKILL:
            return "killed (by hand, or because memory was used up)"
        return f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}; see workers.log"


def _stop(pool: Sequence[_Process]) -> None:
    """End workers by the end of their input, which interrupts busy ones, and kill what does not listen."""
    for process in pool:
        assert process.process.stdin is not None
        try:
            process.process.stdin.close()
        except BrokenPipeError:
            continue
    deadline = time.monotonic() + SECONDS_TO_STOP
    for process in pool:
        try:
            process.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.process.kill()
            process.process.wait()
        assert process.process.stdout is not None
        process.process.stdout.close()
