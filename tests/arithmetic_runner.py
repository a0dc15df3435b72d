"""A runner whose answers can be worked out by hand, and batchers around it."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import numpy as np

from prunedeploy_engines.errors import EngineError
from prunedeploy_engines.runtimes.runner import Runner
from prunedeploy_engines.serving.core.batching import Batcher

SIZE = (2, 2)


class Arithmetic(Runner):
    """A network that can be worked out by hand: a box and a score per image, both functions of its pixels alone.

    Holds every batch back while ``gate`` is closed, and writes down the sizes of batches and the first pixel of
    every image.
    """

    runtime = "arithmetic"
    input_size = SIZE

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.begun = threading.Event()
        self.batches: list[int] = []
        self.seen: list[float] = []
        self.released = False

    def describe(self) -> dict[str, Any]:
        return {"runtime": self.runtime}

    def _infer(self, images: Any) -> tuple[Any, Any]:
        self.begun.set()
        self.gate.wait(20)
        self.batches.append(len(images))
        self.seen.extend(images[:, 0, 0, 0].tolist())
        if np.any(images == 0.75):
            raise EngineError("the network met a pixel that it cannot bear")
        mean = images.mean(axis=(1, 2, 3), dtype=np.float64).astype(np.float32)
        return np.repeat(mean[:, None, None], 4, axis=2), mean[:, None, None] / 2

    def _release(self) -> None:
        self.released = True


class Told:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.depths: list[int] = []
        self.sizes: list[int] = []

    def queue_depth(self, model: str, images: int) -> None:
        self.depths.append(images)

    def batch(self, model: str, images: int, seconds: float) -> None:
        self.sizes.append(images)

    def model_state(self, model: str, ready: bool) -> None:
        raise AssertionError("a batcher knows nothing of states")


async def inferred(model: Any, images: np.ndarray, deadline: float) -> Any:
    """What a batcher or a served model gives, as a coroutine for `asyncio.create_task`."""
    return await model.infer(images, deadline)


def opened(runner: Runner, told: Told | None = None, **changed: Any) -> Batcher:
    plain: dict[str, Any] = {"workers": 1, "max_batch": 4, "max_delay_s": 0.002, "max_queue": 16}
    batcher = Batcher("m", lambda: runner, metrics=told or Told(), **{**plain, **changed})
    batcher.open()
    return batcher


def pictures(count: int, seed: int = 0) -> np.ndarray:
    """Sixteenths below 0.75: their sums are exact, so results are equal to the last bit however they are batched."""
    return (np.random.default_rng(seed).integers(0, 12, (count, 3, *SIZE)) / 16).astype(np.float32)


def soon() -> float:
    return time.monotonic() + 30


async def until(condition: Any) -> None:
    for _ in range(4000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("never came true")
