"""``python -m prunedeploy.study.sweep.worker``: works off tasks until its standard input ends.

A task is a line of JSON on standard input, every event of it a line on standard output. Whatever else prints goes to
standard error. If standard input ends in the middle of a task, whoever gave it is dead: then the worker ends too.
"""

from __future__ import annotations

import json
import os
import platform
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from prunedeploy.process_setup import keep_freed_memory
from prunedeploy_engines.processes import stdout_for_answers

SECONDS_TO_STOP = 10.0
Answer = Callable[[dict[str, Any]], None]


def main() -> None:
    """Run the worker."""
    signal.signal(signal.SIGINT, _interrupt)  # a shell in the background lets it be ignored
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])  # a process of Ray leaves it blocked
    keep_freed_memory()
    channel = os.fdopen(stdout_for_answers(), "w", encoding="utf-8")
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    busy = threading.Event()
    threading.Thread(target=_read, args=(lines, busy), daemon=True).start()

    def answer(message: dict[str, Any]) -> None:
        channel.write(json.dumps(message) + "\n")
        channel.flush()

    try:
        worker = _Worker(answer)
        while (line := lines.get()) is not None:
            busy.set()
            worker.do(json.loads(line))
            busy.clear()
    except (KeyboardInterrupt, BrokenPipeError):
        sys.exit(130)
    os._exit(0)  # nothing is open any more, and Python takes half a second to tidy up after PyTorch


def _interrupt(*_: object) -> None:
    """Interrupt the task once: a second signal must not cut short the tidying up after the first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def _read(lines: queue.SimpleQueue[str | None], busy: threading.Event) -> None:
    for line in sys.stdin:
        lines.put(line)
    lines.put(None)
    while not busy.wait(0.1):
        pass
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(SECONDS_TO_STOP)
    os._exit(1)


def _unlike(task: Mapping[str, Any]) -> str | None:
    """What of this process is not as in the driver's, in a line; None if nothing is, or if the driver does not say.

    On another machine this code, torch or the device may be others: the keys of stages would be others too, and what
    the driver has planned would never come about.
    """
    if "expected" not in task:
        return None
    from prunedeploy.config import BuildConfig
    from prunedeploy.pipeline.context import training_device
    from prunedeploy.study.sweep.identity import difference, identity
    from prunedeploy_engines.errors import ConfigError

    try:
        device = training_device(BuildConfig.model_validate_json(task["configuration"])).type
    except ConfigError:
        device = "without CUDA"
    differs = difference(task["expected"], {**identity(), "device": device})
    if differs is None:
        return None
    fix = "install the same versions everywhere, and start the sweep on a node with the same kind of device"
    return f"node {platform.node()}: is not like the driver: {differs}; {fix}"


class _Worker:
    """Loads PyTorch once, before the first task, and the data of tasks that follow each other on the same data once."""

    def __init__(self, answer: Answer) -> None:
        from prunedeploy.pipeline.progress import Progress

        with suppress(ImportError):  # which the first task will tell
            import prunedeploy.study.sweep.cell
            import prunedeploy.study.sweep.contexts  # noqa: F401

        self._answer = answer
        self._progress = Progress(sys.stderr, seconds_between_lines=60.0)
        self._contexts: Any = None

    def do(self, task: dict[str, Any]) -> None:
        """Do a task and answer with ``done`` or ``failed``; where no task can go on, with ``stop`` or ``unfit``."""
        from prunedeploy.pipeline.store.store import Store, is_disk_full
        from prunedeploy_engines.errors import PrunedeployError, StoreError

        if unlike := _unlike(task):
            self._answer({"unfit": unlike})
            return

        print(f"{task['phase']}: {' '.join(map(str, task['cell']))}", file=sys.stderr, flush=True)
        try:
            with Store(task["store"], self._progress.message) as store:
                values = self._values(task, store)
        except Exception as error:  # noqa: BLE001 - a failed cell is recorded, the rest goes on
            line = str(error)
            if not isinstance(error, PrunedeployError):
                traceback.print_exc()
                line = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            stops = isinstance(error, StoreError) or is_disk_full(error)
            self._answer({"stop": str(error)} if stops else {"failed": line})
        else:
            self._answer({"done": values})

    def _values(self, task: dict[str, Any], store: Any) -> dict[str, Any]:
        from prunedeploy.config import BuildConfig
        from prunedeploy.study.sweep.cell import row_values
        from prunedeploy.study.sweep.contexts import Contexts, ObservedContext

        config = BuildConfig.model_validate_json(task["configuration"])
        self._contexts = self._contexts or Contexts(self._progress)
        context = ObservedContext(**self._contexts.fields(config, store), observe=self._say)
        return row_values(context, task["phase"], task["is_reference"])

    def _say(self, result: Any) -> None:
        stage = {"name": result.name, "digest": result.digest, "computed": result.computed, "seconds": result.seconds}
        self._answer({"stage": stage})


if __name__ == "__main__":
    main()
