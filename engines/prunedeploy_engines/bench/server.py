"""The server scenario on real models: the highest rate of random queries that holds a bound on the 99th percentile.

Every model has a process, as in `rounds`; the models' searches take turns trial by trial.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from prunedeploy_engines.bench.latency import LatencySamples, Plan, percentile
from prunedeploy_engines.bench.rounds import OnUnusable, Opened, opened_models
from prunedeploy_engines.bench.scenarios import SERVER_PERCENTILE, Search, Trial, allowed_late, find_rate

MIN_QUERIES = 100
"""Fewest queries of a trial: fewer have no 99th percentile."""

_BOUNDS_OF_A_TRIAL = 10


@dataclass
class ServerResult:
    """One model's row, while its search goes on and when it has ended.

    Attributes:
        unloaded: Latency of single queries, one after the other.
        describe: What ran.
        images: What it was fed.
        trials: Every trial, in order; the last one confirmed, if any did.
        confirmed: The trial at the highest rate that holds; None if none does.
        reason: Why none does.
    """

    unloaded: LatencySamples
    describe: dict[str, Any]
    images: dict[str, Any] | None
    trials: tuple[Trial, ...] = ()
    confirmed: Trial | None = None
    reason: str | None = None


def bench_servers(
    models: Mapping[str, Mapping[str, Any]],
    *,
    bound_ms: float,
    seconds: float = 10.0,
    min_queries: int = 300,
    warmup_s: float = 0.5,
    warmup_calls: int = 10,
    seed: int = 0,
    lock: bool = True,
    progress: Callable[[str], None] | None = None,
    on_unusable: OnUnusable | None = None,
) -> dict[str, ServerResult]:
    """Search the highest rate of each model.

    A trial lasts at least ``seconds`` and ten times the bound, so that a queue that grows has the time to show it, and
    has at least ``min_queries`` queries; it holds if at most 1 % of them are answered later than ``bound_ms`` after
    they were due.

    Args:
        models: Specifications, see `bench.spec`; up to ``batch`` waiting queries are answered in
            one call.
        bound_ms: Bound on the 99th percentile of the latency.
        seconds: See above.
        min_queries: See above.
        warmup_s: Untimed seconds per model, at least.
        warmup_calls: Untimed calls per model, at least.
        seed: Seed of the arrivals.
        lock: Hold `locks.measuring_lock` meanwhile.
        progress: Called with the model's name after each trial.
        on_unusable: See `rounds.bench_models`.
    """
    if min_queries < MIN_QUERIES:
        raise ValueError(f"min_queries must be at least {MIN_QUERIES}, got {min_queries}")
    plan = Plan(seconds, min_queries, warmup_s, warmup_calls, rounds=1)
    results: dict[str, ServerResult] = {}
    with opened_models(models, plan, lock=lock, on_unusable=on_unusable) as opened:
        running = {name: _Run(model, bound_ms, seconds, min_queries, seed) for name, model in opened.items()}
        while running:
            for name, run in list(running.items()):
                if run.step():
                    results[name] = run.result
                    del running[name]
                if progress is not None:
                    progress(name)
    return results


class _Run:
    """One model's search, a trial per step; ``result`` is what was found so far."""

    def __init__(self, model: Opened, bound_ms: float, seconds: float, min_queries: int, seed: int) -> None:
        self._model = model
        self._bound_ms = bound_ms
        self._seconds = seconds
        self._min_queries = min_queries
        alone = self._block(1)
        unloaded = LatencySamples(tuple(alone), 1, model.spec["kind"], (len(alone),))
        self.result = ServerResult(unloaded, model.describe, model.images)
        largest = self._block(model.spec["batch"]) if model.spec["batch"] > 1 else alone
        capacity = 1000 * model.spec["batch"] * len(largest) / math.fsum(largest)
        self._search: Search = find_rate(capacity, seed)
        self._next: tuple[float, int] | None = next(self._search)
        if sum(sample > bound_ms for sample in alone) > allowed_late(len(alone)):
            self._next = None
            p99 = percentile(alone, SERVER_PERCENTILE)
            self.result.reason = f"{bound_ms:g} ms cannot be held at any rate: p99 of single queries is {p99:.3g} ms"

    def step(self) -> bool:
        """Try the next rate; True when the search has ended."""
        if self._next is None:
            return True
        rate, seed = self._next
        seconds = max(self._seconds, _BOUNDS_OF_A_TRIAL * self._bound_ms / 1000)
        queries = max(self._min_queries, math.ceil(rate * seconds))
        answer = self._model.worker.ask(
            "trial", rate=rate, queries=queries, seed=seed, bound_ms=self._bound_ms, warm_calls=3
        )
        trial = Trial(rate, tuple(answer["latencies_ms"]), queries, self._bound_ms)
        self.result.trials += (trial,)
        try:
            self._next = self._search.send(trial)
        except StopIteration as end:
            self._next, self.result.confirmed = None, end.value
            if end.value is None:
                lowest = min(self.result.trials, key=lambda one: one.rate)
                self.result.reason = (
                    f"{self._bound_ms:g} ms is not held even at the lowest rate tried, {lowest.rate:.3g} queries/s "
                    f"(p99 {lowest.summary()['p99_ms']:.3g} ms)"
                )
        return self._next is None

    def _block(self, count: int) -> list[float]:
        seconds = min(self._seconds, 2.0)
        answer = self._model.worker.ask("block", seconds=seconds, calls=MIN_QUERIES, warm_calls=3, count=count)
        samples_ms: list[float] = answer["samples_ms"]
        return samples_ms
