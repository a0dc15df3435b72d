"""Measuring models against each other, each in a process of its own.

Several ONNX Runtime sessions in one process slow each other down two to three times: the threads of each keep
spinning while another runs. Here every model has a process; the parent lets one of them at a time run a
block, round by round, and waits until its threads have stopped spinning before it is the next one's turn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from prunedeploy_engines.bench.latency import LatencySamples, Plan, run_rounds, samples_of
from prunedeploy_engines.bench.spec import complete_spec
from prunedeploy_engines.bench.worker_process import Worker
from prunedeploy_engines.errors import EngineError
from prunedeploy_engines.locks import measuring_lock
from prunedeploy_engines.machine.energy import PowerSampler

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["BenchResult", "Opened", "Worker", "bench_models", "opened_models"]

OnUnusable = Callable[[str, EngineError], None]


@dataclass(frozen=True)
class BenchResult:
    """One model's row.

    Attributes:
        latency: Every sample.
        describe: What ran: the runner's own description.
        images: What it was fed; None for the MatMul.
        energy_j_per_image: Joules; None where the machine cannot tell.
        energy_source: What told them.
    """

    latency: LatencySamples
    describe: dict[str, Any]
    images: dict[str, Any] | None = None
    energy_j_per_image: float | None = None
    energy_source: str | None = None

    def summary(self) -> dict[str, Any]:
        """The latency's summary with the description under ``engine``; JSON values."""
        return {**self.latency.summary(), "engine": self.describe}


@dataclass(frozen=True)
class Opened:
    """A model that is open and warm in its process.

    Attributes:
        spec: Its complete specification.
        worker: The process.
        describe: What runs.
        images: What it is fed.
        energy_source: What tells its energy, if the process can.
    """

    spec: dict[str, Any]
    worker: Worker
    describe: dict[str, Any]
    images: dict[str, Any] | None
    energy_source: str | None


def bench_models(
    models: Mapping[str, Mapping[str, Any]],
    *,
    seconds: float = 10.0,
    min_calls: int = 200,
    warmup_s: float = 0.5,
    warmup_calls: int = 10,
    rounds: int = 10,
    round_warm_calls: int = 3,
    lock: bool = True,
    progress: Callable[[str], None] | None = None,
    on_unusable: OnUnusable | None = None,
) -> dict[str, BenchResult]:
    """Measure models, a process each, interleaved in rounds.

    Args:
        models: Per name a specification, see `bench.spec`.
        seconds: See `latency.Plan`; so are the next five.
        min_calls: Timed calls per model, at least.
        warmup_s: Untimed seconds per model before the first round, at least.
        warmup_calls: Untimed calls per model before the first round, at least.
        rounds: Turns per model.
        round_warm_calls: Untimed calls at the start of each turn.
        lock: Hold `measuring_lock` meanwhile.
        progress: Called with the model's name after each of its turns.
        on_unusable: Called with the name and the error of a model that does not open or warm up; the others are
            measured. None raises the error.

    Returns:
        Per name, its samples and what ran.

    Raises:
        ConfigError: A specification has an unknown key or kind.
        EngineError: A model does not open or run; the message names it.
    """
    plan = Plan(seconds, min_calls, warmup_s, warmup_calls, rounds, round_warm_calls)
    with opened_models(models, plan, lock=lock, on_unusable=on_unusable) as opened, PowerSampler() as power:
        joules: dict[str, list[float | None]] = {name: [] for name in opened}

        def block(name: str) -> list[float]:
            answer = opened[name].worker.ask(
                "block", seconds=plan.block_s, calls=plan.block_calls, warm_calls=plan.round_warm_calls
            )
            sampled = _uses_sampled_power(opened[name], power)
            joules[name].append(power.joules(answer["started"], answer["ended"]) if sampled else answer["joules"])
            if progress is not None:
                progress(name)
            samples_ms: list[float] = answer["samples_ms"]
            return samples_ms

        measured = run_rounds({name: partial(block, name) for name in opened}, plan.rounds)
    results = {}
    for name, blocks in measured.items():
        model = opened[name]
        latency = samples_of(blocks, model.spec["batch"], model.spec["kind"])
        source = _energy_source(model, power)
        energy = None if source is None else _energy_per_image(joules[name], len(latency.samples_ms) * latency.batch)
        results[name] = BenchResult(
            latency, model.describe, model.images, energy, source if energy is not None else None
        )
    return results


@contextmanager
def opened_models(
    models: Mapping[str, Mapping[str, Any]],
    plan: Plan,
    *,
    lock: bool = True,
    on_unusable: OnUnusable | None = None,
) -> Iterator[dict[str, Opened]]:
    """Open models, a process each, and warm them up; see `bench_models`."""
    specs = {name: complete_spec(name, spec) for name, spec in models.items()}
    with ExitStack() as stack:
        stack.enter_context(measuring_lock() if lock else nullcontext())
        opened: dict[str, Opened] = {}
        # One after the other: a model that loads must not disturb one that warms up.
        for name, spec in specs.items():
            worker = stack.enter_context(Worker(name))
            try:
                answer = worker.ask("open", spec=spec)
                opened[name] = Opened(spec, worker, **answer)
                worker.ask("warm_up", seconds=plan.warmup_s, calls=plan.warmup_calls)
            except EngineError as error:
                if on_unusable is None:
                    raise
                opened.pop(name, None)
                worker.close()
                on_unusable(name, error)
        yield opened


def _uses_sampled_power(model: Opened, power: PowerSampler) -> bool:
    """A GPU's energy is the sampled one; so is a CPU's that has no counter on a board that measures itself."""
    if model.describe.get("device") == "gpu":
        return power.source is not None
    return power.whole_board and model.energy_source is None


def _energy_source(model: Opened, power: PowerSampler) -> str | None:
    """What tells a model's energy; a GPU's is never the CPU's counter."""
    if _uses_sampled_power(model, power):
        return power.source
    return None if model.describe.get("device") == "gpu" else model.energy_source


def _energy_per_image(joules: list[float | None], images: int) -> float | None:
    known = [energy for energy in joules if energy is not None]
    return math.fsum(known) / images if len(known) == len(joules) and images else None
