"""Tasks on this machine: worker processes that are started when they are needed and started again when they die."""

from __future__ import annotations

import selectors
from collections.abc import Generator, Sequence
from pathlib import Path

from prunedeploy.study.sweep.task_queue import TaskQueue, order
from prunedeploy.study.sweep.tasks import Event, StageDone, Task
from prunedeploy.study.sweep.worker_process import WorkerProcess, stop


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
        queue = TaskQueue(tasks)
        busy: dict[WorkerProcess, Task] = {}
        idle: list[WorkerProcess] = []
        try:
            with selectors.DefaultSelector() as selector:
                while queue or busy:
                    self._hand_out(queue, busy, idle, selector)
                    for ready, _ in selector.select():
                        worker: WorkerProcess = ready.data
                        task = busy[worker]
                        for message in worker.messages():
                            event = queue.event(task, message)
                            if not isinstance(event, StageDone):
                                del busy[worker]
                                idle.append(worker)
                                selector.unregister(worker.output)
                            yield event
                        if worker.ended:
                            selector.unregister(worker.output)
                            del busy[worker]
                            if given_up := queue.died(task, worker.how_it_ended()):
                                yield given_up
        finally:
            stop([*busy, *idle])

    def _hand_out(
        self,
        queue: TaskQueue,
        busy: dict[WorkerProcess, Task],
        idle: list[WorkerProcess],
        selector: selectors.BaseSelector,
    ) -> None:
        """Give tasks to idle workers, and to new ones, as long as one can be begun."""
        while queue and len(busy) < self.workers:
            task = queue.next(busy.values())
            if task is None:
                return
            worker = idle.pop() if idle else self._start()
            busy[worker] = task
            worker.give(order(task))
            selector.register(worker.output, selectors.EVENT_READ, worker)

    def _start(self) -> WorkerProcess:
        with self.log.open("ab") as errors:
            return WorkerProcess(errors, self.threads)
