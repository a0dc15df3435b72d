"""Tasks on this machine: worker processes that stay for the next tasks and are started again when they die."""

from __future__ import annotations

import selectors
from collections.abc import Generator, Sequence
from pathlib import Path

from prunedeploy.study.sweep.tasks import Event, Executor, StageDone, Task, TaskQueue
from prunedeploy.study.sweep.worker_process import WorkerProcess, stop


class LocalExecutor(Executor):
    """Worker processes, each with one task at a time.

    Latency is measured by one of them, when the others have ended.

    Args:
        workers: At most this many that train at once.
        log: File that their standard error is appended to.
        threads: Threads of PyTorch in each; other libraries get as many.
    """

    def __init__(self, workers: int, log: Path, threads: int = 1) -> None:
        self.workers = workers
        self.log = log
        self.threads = threads
        self._idle: list[WorkerProcess] = []

    def prepare(self, tasks: int) -> None:
        """Start workers, which load PyTorch while whoever has the tasks still plans them."""
        while len(self._idle) < min(tasks, self.workers):
            self._idle.append(self._start())

    def close(self) -> None:
        """End the workers."""
        self._end_idle(0)

    def run(self, tasks: Sequence[Task]) -> Generator[Event, None, None]:
        """See `Executor.run`."""
        queue = TaskQueue(tasks)
        busy: dict[WorkerProcess, Task] = {}
        workers = 1 if any(task.phase == "time" for task in tasks) else self.workers
        self._end_idle(workers)
        try:
            with selectors.DefaultSelector() as selector:
                while queue or busy:
                    self._hand_out(queue, busy, workers, selector)
                    for ready, _ in selector.select():
                        worker: WorkerProcess = ready.data
                        task = busy[worker]
                        for message in worker.messages():
                            event = queue.event(task, message)
                            if not isinstance(event, StageDone):
                                del busy[worker]
                                self._idle.append(worker)
                                selector.unregister(worker.output)
                            yield event
                        if worker.ended:
                            selector.unregister(worker.output)
                            del busy[worker]
                            if given_up := queue.died(task, worker.how_it_ended()):
                                yield given_up
        finally:
            stop(list(busy))

    def _hand_out(
        self, queue: TaskQueue, busy: dict[WorkerProcess, Task], workers: int, selector: selectors.BaseSelector
    ) -> None:
        """Give tasks to idle workers, and to new ones, as long as one can be begun."""
        while queue and len(busy) < workers:
            task = queue.next(busy.values())
            if task is None:
                return
            worker = self._take()
            busy[worker] = task
            worker.give(task.order())
            selector.register(worker.output, selectors.EVENT_READ, worker)

    def _take(self) -> WorkerProcess:
        """A worker that waits for a task, or a new one: one that has died in the meantime is no fault of the task."""
        while self._idle:
            worker = self._idle.pop()
            if worker.process.poll() is None:
                return worker
            stop([worker])
        return self._start()

    def _end_idle(self, kept: int) -> None:
        surplus, self._idle = self._idle[kept:], self._idle[:kept]
        stop(surplus)

    def _start(self) -> WorkerProcess:
        with self.log.open("ab") as errors:
            return WorkerProcess(errors, self.threads)
