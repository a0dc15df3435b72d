"""Tasks on a Ray cluster; see `ray_task` for what runs on its nodes."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prunedeploy.config import BuildConfig
from prunedeploy.pipeline.context import training_device
from prunedeploy.study.rows.file import not_written
from prunedeploy.study.sweep.identity import identity
from prunedeploy.study.sweep.ray_cluster import SECONDS_BETWEEN_LOOKS, WHERE, RayCluster
from prunedeploy.study.sweep.ray_task import work
from prunedeploy.study.sweep.tasks import Event, Executor, StageDone, Task, TaskQueue
from prunedeploy.study.sweep.worker_process import SECONDS_TO_STOP
from prunedeploy_engines.errors import ConfigError
from prunedeploy_engines.locks import FileLock

_PROBE = "probe-"


@dataclass
class RayExecutor(Executor):
    """Ray tasks, each of which does one cell in a process of its own.

    It is for training. Latency is measured by a `LocalExecutor`, on the driver's machine: times of two machines are
    never mixed, and Ray runs its tasks with the lowest priority but a few, which would be measured too.

    What a task says comes back while it runs (a streaming generator), so that a stage several cells need lets them go
    on as soon as it is there. Ray tries nothing again by itself: a lost task is counted here.

    Args:
        cluster: Where the tasks go.
        log: File that standard error of all workers is appended to.
        threads: Threads of PyTorch in each task, and CPUs that Ray sets aside for it.
        gpus: That Ray sets aside for a task; a fraction shares one.
        workers: At most this many tasks at once; None: as many as the nodes have room for.
        say: Called with what a person should know.
    """

    cluster: RayCluster
    log: Path
    threads: int = 1
    gpus: float = 0.0
    workers: int | None = None
    say: Callable[[str], None] = lambda line: None
    _identity: dict[str, str] = field(default_factory=identity, init=False)
    _local_locks: set[str] = field(default_factory=set, init=False)

    def run(self, tasks: Sequence[Task]) -> Generator[Event, None, None]:
        """See `Executor.run`.

        Raises:
            ConfigError: The cluster does not answer any more, no node has the resources, or a node is not like the
                driver's or does not see its folders.
        """
        if not tasks:
            return
        import ray

        queue, running = TaskQueue(tasks), dict[Any, Task]()
        # A process that has used a GPU is ended by Ray, and with it our worker, which frees the GPU's memory.
        options = {"num_cpus": self.threads, "num_gpus": self.gpus, "max_retries": 0}
        remote = ray.remote(work).options(num_returns="streaming", **options)
        with _probe(Path(tasks[0].store)) as probe:
            try:
                while queue or running:
                    if self.cluster.look():
                        self._hand_out(queue, running, remote, probe)
                    elif not running:
                        time.sleep(SECONDS_BETWEEN_LOOKS)
                        continue
                    ready, _ = ray.wait(list(running), num_returns=1, timeout=SECONDS_BETWEEN_LOOKS)
                    for stream in ready:
                        if event := self._next(stream, queue, running):
                            yield event
            finally:
                _cancel(list(running))

    def _hand_out(self, queue: TaskQueue, running: dict[Any, Task], remote: Any, probe: dict[str, str]) -> None:
        """Give Ray as many tasks as it can do at once: the order of the others stays ours to choose."""
        if not queue:
            return
        room = self.cluster.capacity(self.threads, self.gpus)
        if room == 0 and not running:
            needed = f"{self.threads} CPUs" + (f" and {self.gpus:g} GPUs" if self.gpus else "")
            fix = "add a node, or lower the sweep's threads or --gpus-per-task"
            raise ConfigError(f"no node has {needed}", f"{WHERE} {self.cluster.address}", fix)
        limit = room if self.workers is None else self.workers
        while queue and len(running) < limit:
            task = queue.next(running.values())
            if task is None:
                return
            running[remote.remote(self._text(task, probe))] = task

    def _text(self, task: Task, probe: dict[str, str]) -> str:
        device = training_device(BuildConfig.model_validate_json(task.configuration)).type
        plain = {**task.order(), "store": os.path.abspath(task.store), "expected": {**self._identity, "device": device}}
        return json.dumps({"task": plain, "threads": self.threads, "folder": os.getcwd(), "probe": probe})

    def _next(self, stream: Any, queue: TaskQueue, running: dict[Any, Task]) -> Event | None:
        """Take one message of a task, which `running` holds until its last one."""
        task = running[stream]
        message = _message(stream)
        if "log" in message:
            self._write(message["log"])
            return None
        if "local_locks" in message:
            self._tell_of_locks(message["local_locks"])
            return None
        if "ended" in message:
            self._write([f"driver: {' '.join(map(str, task.cell))}: its process ended, {message['ended']}"])
            del running[stream]
            return queue.died(task, message["ended"])
        event = queue.event(task, message)
        if not isinstance(event, StageDone):
            del running[stream]
        return event

    def _write(self, lines: Sequence[str]) -> None:
        with self.log.open("a", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)

    def _tell_of_locks(self, node: str) -> None:
        """Within one sweep no two tasks make the same stage, so locks guard against other commands only."""
        if node not in self._local_locks:
            self._local_locks.add(node)
            self.say(
                f"locks of the store do not reach node {node}: until the end, start no other sweep or build on this "
                "store, and no `prunedeploy store gc`"
            )


def _message(stream: Any) -> dict[str, Any]:
    """The next message of a task, which is there.

    Raises:
        ConfigError: A node cannot do any task.
    """
    import ray

    try:
        return json.loads(ray.get(next(stream)))
    except StopIteration:
        return {"ended": "without a word"}
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, ImportError):
            fix = "install the driver's version of prunedeploy on every node"
            raise ConfigError(f"a node cannot load prunedeploy ({_line(error.cause)})", fix=fix) from None
        return {"failed": _line(f"{type(error.cause).__name__}: {error.cause}")}
    except ray.exceptions.RuntimeEnvSetupError as error:
        raise ConfigError(f"Ray cannot start a task ({_line(error)})") from None
    except ray.exceptions.NodeDiedError:
        return {"ended": "with its node"}
    except ray.exceptions.OutOfMemoryError:
        return {"ended": "killed by Ray, because the memory of its node was used up"}
    except ray.exceptions.RayError as error:
        return {"ended": f"lost by Ray ({_line(error)})"}


def _cancel(streams: list[Any]) -> None:
    """End tasks in order, and then those that do not listen."""
    import ray

    for stream in streams:
        ray.cancel(stream)
    deadline = time.monotonic() + SECONDS_TO_STOP
    while streams and (left := deadline - time.monotonic()) > 0:
        ready: list[Any] = ray.wait(streams, num_returns=1, timeout=left)[0]
        for stream in ready:
            try:
                ray.get(next(stream))
            except (ray.exceptions.RayError, StopIteration):
                streams.remove(stream)
    for stream in streams:
        with suppress(ray.exceptions.RayError):
            ray.cancel(stream, force=True)


@contextmanager
def _probe(store: Path) -> Iterator[dict[str, str]]:
    """A file in the store, locked, by which a node sees that it has the driver's store, and whether its locks work."""
    content, rooms = uuid.uuid4().hex, store.absolute() / "locks"
    for left in rooms.glob(f"{_PROBE}*"):  # by a driver that was killed; one whose lock is held is another sweep's
        if (lock := FileLock(left)).acquire(wait=False):
            lock.release(remove=True)
    path = rooms / f"{_PROBE}{content}"
    lock = FileLock(path)
    try:
        lock.acquire()
        try:
            path.write_text(content, encoding="utf-8")
        except OSError as error:
            raise not_written(path, error) from None
        yield {"path": str(path), "content": content}
    finally:
        lock.release(remove=True)


def _line(error: object) -> str:
    return " ".join(str(error).split())[:300]
