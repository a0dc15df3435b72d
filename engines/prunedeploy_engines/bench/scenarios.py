"""Scenarios after MLPerf Inference: what the figure of a measurement is, and the queue of a server.

- ``single-stream``: one query after the other; the figure is the 90th percentile of the latency.
- ``offline``: all queries are there at once; the figure is the throughput of the best batch.
- ``server``: queries arrive at random (a Poisson process); the figure is the highest rate at which the 99th
  percentile of the latency stays within a bound.

A server's latency counts from the moment a query was *due*, not from the start of its service: a client that
waits for the last answer before it asks again ("coordinated omission") never sees the queue that it causes.

Reference: Reddi et al., MLPerf Inference Benchmark, 2020, section 3.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from prunedeploy_engines.bench.latency import percentile

SCENARIOS = ("single-stream", "offline", "server")
SERVER_PERCENTILE = 99.0

_SPIN_S = 5e-4  # the system wakes a sleeper up to this late
_FIRST_UTILISATION = 0.5
_LOWEST_UTILISATION = 1 / 32
_RATE_TOLERANCE = 1.03


class Clock:
    """The machine's; tells the time and waits, in seconds."""

    def now(self) -> float:
        """Seconds since some moment."""
        return time.perf_counter()

    def wait_until(self, moment: float) -> None:
        """Return at that moment, or at once if it is over.

        Sleeps, then spins for the last half millisecond: nothing else of this process runs meanwhile.
        """
        pause = moment - time.perf_counter() - _SPIN_S
        if pause > 0:
            time.sleep(pause)
        while time.perf_counter() < moment:
            pass


@dataclass(frozen=True)
class Trial:
    """A server at one rate.

    Attributes:
        rate: Queries per second that were due.
        latencies_ms: Latency in milliseconds of every query that was answered, from when it was due until its answer.
        planned: Queries of a whole trial; fewer were answered if it was given up.
        bound_ms: The bound on the latency.
    """

    rate: float
    latencies_ms: tuple[float, ...]
    planned: int
    bound_ms: float

    @property
    def late(self) -> int:
        """Queries above the bound."""
        return sum(latency > self.bound_ms for latency in self.latencies_ms)

    @property
    def holds(self) -> bool:
        """At most 1 % of the planned queries came late, and all of them were answered."""
        return len(self.latencies_ms) == self.planned and self.late <= allowed_late(self.planned)

    def summary(self) -> dict[str, Any]:
        """JSON values."""
        p50, p99 = (percentile(self.latencies_ms, q) for q in (50, SERVER_PERCENTILE))
        return {
            "rate": self.rate,
            "holds": self.holds,
            "queries": len(self.latencies_ms),
            "planned": self.planned,
            "late": self.late,
            "p50_ms": p50,
            "p99_ms": p99,
        }


def allowed_late(queries: int) -> int:
    """How many of ``queries`` queries may be above the bound."""
    return math.floor(queries * (100 - SERVER_PERCENTILE) / 100)


def poisson_arrivals(rate: float, queries: int, seed: int) -> npt.NDArray[np.float64]:
    """Moments at which queries are due, in seconds: exponential gaps with mean ``1 / rate``.

    Every rate uses the same gaps, stretched: two rates then differ by their rate and not by their luck.
    """
    if rate <= 0 or queries < 1:
        raise ValueError(f"rate must be positive and queries at least 1, got {rate} and {queries}")
    return np.cumsum(np.random.default_rng(seed).exponential(1.0, queries)) / rate


def serve_queries(
    serve: Callable[[int], object],
    arrivals: Sequence[float] | npt.NDArray[np.float64],
    *,
    largest_batch: int = 1,
    most_late: int | None = None,
    bound_s: float = math.inf,
    clock: Clock | None = None,
) -> list[float]:
    """Answer queries that become due at given moments, first come first served.

    Args:
        serve: Answers this many queries in one call.
        arrivals: Seconds from the start at which each query is due, rising.
        largest_batch: Up to this many waiting queries are answered in one call.
        most_late: Give up as soon as more queries than this are above ``bound_s``; None never.
        bound_s: Seconds.
        clock: None is the system's.

    Returns:
        Seconds from when each query was due until its answer, in order.
    """
    clock = Clock() if clock is None else clock
    latencies: list[float] = []
    late = 0
    start = clock.now()
    while len(latencies) < len(arrivals):
        first = len(latencies)
        clock.wait_until(start + arrivals[first])
        elapsed = clock.now() - start
        count = 1
        while count < largest_batch and first + count < len(arrivals) and arrivals[first + count] <= elapsed:
            count += 1
        serve(count)
        end = clock.now() - start
        for due in arrivals[first : first + count]:
            latencies.append(float(end - due))
            late += latencies[-1] > bound_s
        if most_late is not None and late > most_late:
            break
    return latencies


Search = Generator[tuple[float, int], Trial, "Trial | None"]
"""Yields the rate to try next and the seed of its arrivals, and is sent the trial."""


def find_rate(capacity: float, seed: int) -> Search:
    """Search for the highest rate that holds.

    From half the capacity outwards until one rate holds and one does not, then at their geometric mean until they
    are within 3 %. The rate found must hold once more with other arrivals; while it does not, it is lowered by 3 %.

    Args:
        capacity: Queries per second that are answered without a pause. No higher rate is tried: above it the queue
            grows without end, and a trial that holds is only too short to show it.
        seed: Seed of the arrivals; ``seed + 1`` and so on confirm.

    Returns:
        The trial that confirmed, or None if none held down to 1/32 of the capacity.
    """
    lowest = capacity * _LOWEST_UTILISATION * (1 - 1e-9)
    held, failed = 0.0, math.inf
    rate = capacity * _FIRST_UTILISATION
    while failed > held * _RATE_TOLERANCE and rate >= lowest and held < capacity:
        if (yield rate, seed).holds:
            held = rate
        else:
            failed = rate
        between = min(held * 1.5, capacity) if failed == math.inf else math.sqrt(held * failed)
        rate = between if held else failed / 2
    rate = held
    while rate >= lowest:
        seed += 1
        trial = yield rate, seed
        if trial.holds:
            return trial
        rate /= _RATE_TOLERANCE
    return None
