"""The process that holds one model while it is measured; see `rounds`.

Commands come on stdin, answers go on stdout, both as `child` sends them. What libraries print goes to stderr.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import IO, Any

from prunedeploy_engines.bench.calls import OpenedModel, open_model, profile_spec
from prunedeploy_engines.bench.latency import timed_block, warm_up
from prunedeploy_engines.bench.scenarios import allowed_late, poisson_arrivals, serve_queries
from prunedeploy_engines.child import receive, send
from prunedeploy_engines.errors import EngineError, PrunedeployError, error_to_json
from prunedeploy_engines.machine.energy import RaplMeter, open_rapl
from prunedeploy_engines.processes import stdout_for_answers

_IDLE_SHARE = 0.1  # of one CPU; below this no thread spins
_IDLE_PAUSES = 3
_IDLE_TIMEOUT_S = 5.0
_PAUSE_S = 0.01


class Measured:
    """An open model and the commands that it takes; a command's keyword arguments are its method's."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._model: OpenedModel = open_model(spec)
        self._batch: int = spec["batch"]
        self._call = self._model.call_of(self._batch)
        self._meter: RaplMeter | None = open_rapl()[0]

    def describe(self) -> dict[str, Any]:
        """What runs, what it is fed, and what tells the energy."""
        source = None if self._meter is None else self._meter.source
        return {"describe": self._model.describe, "images": self._model.images, "energy_source": source}

    def warm_up(self, seconds: float, calls: int) -> dict[str, Any]:
        """Untimed calls."""
        warm_up(self._call, seconds=seconds, calls=calls)
        return {}

    def block(self, seconds: float, calls: int, warm_calls: int, count: int | None = None) -> dict[str, Any]:
        """One turn; ``started`` and ``ended`` are of the timed calls, on the clock that all processes share.

        ``count`` images per call, None is the specification's batch.
        """
        call = self._call if count is None else self._model.call_of(count)
        for _ in range(warm_calls):
            call()
        before = None if self._meter is None else self._meter.read()
        started = time.monotonic()
        samples_ms = timed_block(call, seconds=seconds, calls=calls)
        ended = time.monotonic()
        joules = None
        if self._meter is not None and before is not None:
            joules = self._meter.joules(before, self._meter.read())
        return {"samples_ms": samples_ms, "started": started, "ended": ended, "joules": joules}

    def trial(self, rate: float, queries: int, seed: int, bound_ms: float, warm_calls: int) -> dict[str, Any]:
        """A server at one rate, up to ``batch`` queries in one call; given up once it cannot hold the bound."""
        calls: list[Callable[[], object]] = [self._model.call_of(count + 1) for count in range(self._batch)]
        for call in calls * warm_calls:
            call()
        latencies_s = serve_queries(
            lambda count: calls[count - 1](),
            poisson_arrivals(rate, queries, seed),
            largest_batch=self._batch,
            most_late=allowed_late(queries),
            bound_s=bound_ms / 1000,
        )
        return {"latencies_ms": [latency * 1000 for latency in latencies_s]}


def serve(commands: IO[bytes], answers: IO[bytes]) -> None:
    """Answer commands until stdin ends."""
    measured: Measured | None = None
    while True:
        try:
            command, _ = receive(commands)
        except EOFError:
            return
        do = command.pop("do")
        try:
            if do == "open":
                measured = Measured(command["spec"])
                answer = measured.describe()
            elif do == "profile":
                answer = {"layers": profile_spec(command["spec"])}
            else:
                answer = getattr(measured, do)(**command)
            wait_until_idle()
        except PrunedeployError as error:
            answer = {"error": error_to_json(error)}
        except Exception as error:  # noqa: BLE001 - whatever it is, the parent must hear of it
            answer = {"error": error_to_json(EngineError(f"{type(error).__name__}: {error}"))}
        send(answers, answer)


def wait_until_idle() -> None:
    """Return when this process has stopped using the CPU.

    ONNX Runtime's threads spin for a while after a call, from milliseconds to more than a second depending
    on the CPU; the next model must not start while they do.
    """
    end = time.monotonic() + _IDLE_TIMEOUT_S
    quiet = 0
    # Several pauses in a row: on a busy machine a thread that spins may just not have had its turn.
    while quiet < _IDLE_PAUSES and time.monotonic() < end:
        used = time.process_time()
        time.sleep(_PAUSE_S)
        quiet = quiet + 1 if time.process_time() - used < _IDLE_SHARE * _PAUSE_S else 0


def main() -> None:
    """Serve on stdin and stdout; run by `worker_process`."""
    serve(sys.stdin.buffer, os.fdopen(stdout_for_answers(), "wb"))


if __name__ == "__main__":
    main()
