"""Measuring models against each other, each in a process of its own.

Several ONNX Runtime sessions in one process slow each other down two to three times: the threads of each keep
spinning while another runs. Here every model has a process; the parent lets one of them at a time run a
block, round by round, and waits until its threads have stopped spinning before it is the next one's turn.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from prunedeploy_engines.errors import ConfigError, EngineError
from prunedeploy_engines.latency import LatencySamples, Plan, run_rounds, samples_of
from prunedeploy_engines.locks import measuring_lock

if TYPE_CHECKING:
    from typing_extensions import Self

_DEFAULTS: dict[str, Any] = {
    "path": None,
    "runtime": "onnxruntime",
    "precision": "fp32",
    "threads": None,
    "providers": ["CPUExecutionProvider"],
    "batch": 1,
    "images": None,
    "kind": "host",
    "seed": 0,
    "size": 1024,
    "factory": None,
    "arguments": {},
}


@dataclass(frozen=True)
class BenchResult:
    """One model's row.

    Attributes:
        latency: Every sample.
        describe: What ran: the runner's own description.
    """

    latency: LatencySamples
    describe: dict[str, Any]

    def summary(self) -> dict[str, Any]:
        """The latency's summary with the description under ``engine``; JSON values."""
        return {**self.latency.summary(), "engine": self.describe}


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
) -> dict[str, BenchResult]:
    """Measure models, a process each, interleaved in rounds.

    Args:
        models: Per name a specification, with the keys

            - ``path``: ONNX file, TensorRT plan, or a bundle for ``kind`` end_to_end
            - ``runtime``: ``"onnxruntime"`` (default), ``"tensorrt"``, or ``"matmul"``: the peak of ONNX
            Runtime on
              a ``size`` x ``size`` MatMul (1024), its ``describe`` has the ``macs`` of a call
            - ``threads``: of one operator, None is one per physical core; ``providers``: of ONNX Runtime
            - ``batch``: images per call (1)
            - ``images``: .npy file with ``(K, H, W, 3)`` uint8 RGB images, used in turn; without it random
            pixels from
              ``seed``
            - ``kind``: ``"host"`` (default; tensors in, tensors out) or ``"end_to_end"`` (uint8 image in
            memory to
              detections, of a bundle, with its ``precision``)
            - ``factory`` and ``arguments``: ``"module:function"`` and JSON keyword arguments that give a
            `Runner`,
              for runtimes this package does not know, such as torch

        seconds: See `latency.Plan`; so are the next five.
        min_calls: Timed calls per model, at least.
        warmup_s: Untimed seconds per model before the first round, at least.
        warmup_calls: Untimed calls per model before the first round, at least.
        rounds: Turns per model.
        round_warm_calls: Untimed calls at the start of each turn.
        lock: Hold `measuring_lock` meanwhile.
        progress: Called with the model's name after each of its turns.

    Returns:
        Per name, its samples and what ran.

    Raises:
        ConfigError: A specification has an unknown key or kind.
        EngineError: A model does not open or run; the message names it.
    """
    plan = Plan(seconds, min_calls, warmup_s, warmup_calls, rounds, round_warm_calls)
    specs = {name: _complete(name, spec) for name, spec in models.items()}
    with ExitStack() as stack:
        stack.enter_context(measuring_lock() if lock else nullcontext())
        workers = {name: stack.enter_context(Worker(name)) for name in specs}
        # One after the other: a model that loads must not disturb one that warms up.
        describes = {
            name: worker.ask("open", spec=specs[name])["describe"] for name, worker in workers.items()
        }
        for worker in workers.values():
            worker.ask("warm_up", seconds=plan.warmup_s, calls=plan.warmup_calls)

        def block_of(worker: Worker) -> Callable[[], list[float]]:
            def block() -> list[float]:
                answer = worker.ask(
                    "block", seconds=plan.block_s, calls=plan.block_calls, warm_calls=plan.round_warm_calls
                )
                if progress is not None:
                    progress(worker.name)
                samples_ms: list[float] = answer["samples_ms"]
                return samples_ms

            return block

        measured = run_rounds({name: block_of(worker) for name, worker in workers.items()}, plan.rounds)
    return {
        name: BenchResult(samples_of(blocks, specs[name]["batch"], specs[name]["kind"]), describes[name])
        for name, blocks in measured.items()
    }


class Worker:
    """A process that holds one model; a context manager that ends it."""

    def __init__(self, name: str) -> None:
        self.name = name
        # A file, not a pipe: a worker that prints a lot must not block.
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "prunedeploy_engines.process_bench", "worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=environment,
            text=True,
        )

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Send a command and wait for its answer.

        Raises:
            EngineError: The worker answers with an error, or ends; the message names the model.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise EngineError(f"{self.name}: the measuring process ended ({self._last_words()})")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            error = answer["error"]
            raise EngineError(f"{self.name}: {error['what']}", where=error["where"], fix=error["fix"])
        return answer

    def _last_words(self) -> str:
        code = self._process.wait()
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        return f"exit code {code}" + (f", {lines[-1]}" if lines else "")

    def close(self) -> None:
        """End the process: politely, then not."""
        try:
            # communicate() closes stdin, which ends a worker that waits for a command.
            self._process.communicate(timeout=2)
        except (subprocess.TimeoutExpired, BrokenPipeError, ValueError):
            self._process.kill()
            self._process.wait()
        self._stderr.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._process.kill()
        self.close()


def _complete(name: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    unknown = sorted(set(spec) - set(_DEFAULTS))
    if unknown:
        raise ConfigError(f"model {name!r} has unknown keys {unknown}", fix=f"known are {sorted(_DEFAULTS)}")
    complete = {**_DEFAULTS, **spec}
    if complete["kind"] not in ("host", "end_to_end"):
        raise ConfigError(f"model {name!r} has kind {complete['kind']!r}", fix="use host or end_to_end")
    if complete["path"] is None and complete["factory"] is None and complete["runtime"] != "matmul":
        raise ConfigError(f"model {name!r} has no path")
    for key in ("path", "images"):
        if complete[key] is not None:
            complete[key] = str(Path(complete[key]).absolute())
    return complete


if __name__ == "__main__":
    from prunedeploy_engines.bench_worker import main

    if sys.argv[1:] != ["worker"]:
        sys.exit("usage: python -m prunedeploy_engines.process_bench worker")
    main()
