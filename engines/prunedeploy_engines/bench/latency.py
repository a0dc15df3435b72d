"""How a latency is measured: one timer for every runtime.

Three kinds of figure are kept apart: ``compute`` is the model alone, ``host`` includes checking tensors and moving
them to the device and back, ``end_to_end`` runs from an image to its detections. On a CPU there is nothing to move,
and compute and host differ by microseconds.

Models under comparison take turns in rounds, so that a clock that drops or a neighbour that wakes up hits
all of them; every sample is kept and none is clipped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

KINDS = ("compute", "host", "end_to_end")
NOISY_CV = 0.1
"""A row whose coefficient of variation is above this is flagged as noisy."""


@dataclass(frozen=True)
class Plan:
    """How long to measure each model.

    Attributes:
        seconds: At least this long in timed calls, all rounds together.
        min_calls: At least this many timed calls, all rounds together.
        warmup_s: Untimed before the first round, at least this long ...
        warmup_calls: ... and at least this many calls.
        rounds: How often the models take turns.
        round_warm_calls: Untimed calls at the start of each turn, after the caches were another's.
    """

    seconds: float = 10.0
    min_calls: int = 200
    warmup_s: float = 0.5
    warmup_calls: int = 10
    rounds: int = 10
    round_warm_calls: int = 3

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.min_calls < 1 or min(self.seconds, self.warmup_s) < 0:
            raise ValueError(f"a plan needs rounds and min_calls >= 1 and no negative time, got {self}")

    @property
    def block_s(self) -> float:
        """Seconds of one turn; the turns add up to ``seconds``."""
        return self.seconds / self.rounds

    @property
    def block_calls(self) -> int:
        """Calls of one turn; the turns add up to ``min_calls`` or more."""
        return math.ceil(self.min_calls / self.rounds)


@dataclass(frozen=True)
class LatencySamples:
    """Every sample of one model, in the order they were taken.

    Attributes:
        samples_ms: Milliseconds of each call.
        batch: Images per call.
        kind: ``"compute"``, ``"host"`` or ``"end_to_end"``.
        round_sizes: Samples of each round.
    """

    samples_ms: tuple[float, ...]
    batch: int = 1
    kind: str = "host"
    round_sizes: tuple[int, ...] = ()

    def summary(self) -> dict[str, Any]:
        """`summarise` of the samples, with ``batch`` and ``kind``."""
        return {**summarise(self.samples_ms, self.batch), "batch": self.batch, "kind": self.kind}


def percentile(samples: Sequence[float], q: float) -> float:
    """The q-th percentile of raw samples, linear between the two nearest.

    Args:
        samples: At least one.
        q: In [0, 100].

    Reference: Hyndman and Fan, Sample Quantiles in Statistical Packages, 1996, definition 7.
    """
    if not 0 <= q <= 100:
        raise ValueError(f"q must be in [0, 100], got {q}")
    if not len(samples):
        raise ValueError("no samples")
    ordered = sorted(samples)
    position = (len(ordered) - 1) * q / 100
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return float(ordered[below] + (ordered[above] - ordered[below]) * (position - below))


def summarise(samples_ms: Sequence[float], batch: int = 1) -> dict[str, Any]:
    """Describe the samples of one model.

    Args:
        samples_ms: Milliseconds of each call, at least one.
        batch: Images per call.

    Returns:
        ``mean``, ``std`` (of a sample, n - 1), ``p50``, ``p90``, ``p95``, ``p99``, ``min``, ``max`` in
        milliseconds; ``n``; ``images_per_s`` (images over the sum of the samples); ``cv`` = std / mean;
        ``noisy`` if that is above 0.1.
    """
    n = len(samples_ms)
    if not n:
        raise ValueError("no samples")
    mean = math.fsum(samples_ms) / n
    variance = math.fsum((sample - mean) ** 2 for sample in samples_ms) / max(1, n - 1)
    std = math.sqrt(variance)
    cv = std / mean if mean > 0 else 0.0
    return {
        "mean": mean,
        "std": std,
        **{f"p{q}": percentile(samples_ms, q) for q in (50, 90, 95, 99)},
        "min": float(min(samples_ms)),
        "max": float(max(samples_ms)),
        "n": n,
        "images_per_s": 1000.0 * batch / mean if mean > 0 else math.inf,
        "cv": cv,
        "noisy": cv > NOISY_CV,
    }


def warm_up(call: Callable[[], object], *, seconds: float, calls: int) -> None:
    """Call at least ``calls`` times and for at least ``seconds``, untimed."""
    end = time.perf_counter() + seconds
    done = 0
    while done < calls or time.perf_counter() < end:
        call()
        done += 1


def timed_block(call: Callable[[], object], *, seconds: float, calls: int) -> list[float]:
    """The timed calls of one turn, at least ``calls`` and for at least ``seconds``.

    Returns:
        Milliseconds of each timed call.
    """
    samples_ms: list[float] = []
    end = time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        call()
        stop = time.perf_counter()
        samples_ms.append((stop - start) * 1000.0)
        if stop >= end and len(samples_ms) >= calls:
            return samples_ms


def run_rounds(blocks: Mapping[str, Callable[[], list[float]]], rounds: int) -> dict[str, list[list[float]]]:
    """Let models take turns.

    Every other round is in reverse order, so that nobody always follows the same neighbour.

    Args:
        blocks: Per model, a function that runs one turn and returns its samples in milliseconds.
        rounds: Number of turns of each.

    Returns:
        Per model, the samples of each round.
    """
    samples: dict[str, list[list[float]]] = {name: [] for name in blocks}
    for number in range(rounds):
        for name in blocks if number % 2 == 0 else reversed(list(blocks)):
            samples[name].append(blocks[name]())
    return samples


def samples_of(rounds_ms: Sequence[Sequence[float]], batch: int, kind: str) -> LatencySamples:
    """Join the rounds of one model."""
    return LatencySamples(
        samples_ms=tuple(sample for block in rounds_ms for sample in block),
        batch=batch,
        kind=kind,
        round_sizes=tuple(len(block) for block in rounds_ms),
    )


def achieved_gflops(macs: float, latency_ms: float) -> float:
    """GFLOP/s of a call of ``macs`` multiply-accumulates (one is two FLOPs) that takes ``latency_ms``."""
    return 2.0 * macs / latency_ms / 1e6
