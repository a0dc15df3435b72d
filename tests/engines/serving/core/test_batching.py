"""The batcher against what a plain loop over the same runner gives."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunedeploy_engines.errors import EngineError
from prunedeploy_engines.runner import Runner
from prunedeploy_engines.serving.batching import Batcher
from prunedeploy_engines.serving.errors import (
    DeadlineError,
    InferenceFailedError,
    InvalidRequestError,
    ModelUnavailableError,
    OverloadedError,
)

SIZE = (2, 2)


class Arithmetic(Runner):
    """A network that can be worked out by hand: a box and a score per image, both functions of its pixels alone.

    Holds every batch back while ``gate`` is closed, and writes down the sizes of batches.
    """

    runtime = "arithmetic"
    input_size = SIZE

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.begun = threading.Event()
        self.batches: list[int] = []
        self.released = False

    def describe(self) -> dict[str, Any]:
        return {"runtime": self.runtime}

    def _infer(self, images: Any) -> tuple[Any, Any]:
        self.begun.set()
        self.gate.wait(20)
        self.batches.append(len(images))
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


def opened(runner: Runner, told: Told | None = None, **changed: Any) -> Batcher:
    plain: dict[str, Any] = {"workers": 1, "max_batch": 4, "max_delay_s": 0.002, "max_queue": 16}
    batcher = Batcher("m", lambda: runner, observer=told or Told(), **{**plain, **changed})
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


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=14),
    max_batch=st.integers(1, 6),
    workers=st.integers(1, 3),
    delay=st.sampled_from([0.0, 0.002]),
    seed=st.integers(0, 999),
)
def test_every_request_gets_the_rows_of_its_own_images(sizes, max_batch, workers, delay, seed):
    runners = [Arithmetic() for _ in range(workers)]
    told = Told()
    left = list(runners)
    batcher = Batcher(
        "m", left.pop, workers=workers, max_batch=max_batch, max_delay_s=delay, max_queue=200, observer=told
    )
    batcher.open()
    requests = [pictures(size, seed + number) for number, size in enumerate(sizes)]

    async def ask() -> list[Any]:
        return await asyncio.gather(*(batcher.infer(images, soon()) for images in requests))

    answers = asyncio.run(ask())
    batcher.close()
    plain = Arithmetic()
    for images, ((boxes, scores), times) in zip(requests, answers, strict=True):
        for row, image in enumerate(images):
            expected_boxes, expected_scores = plain.infer(image[None])
            assert np.array_equal(boxes[row], expected_boxes[0])
            assert np.array_equal(scores[row], expected_scores[0])
        assert len(boxes) == len(images)
        assert 1 <= times.batch_size <= max_batch
    computed = [size for runner in runners for size in runner.batches]
    assert sum(computed) == sum(sizes)
    assert sorted(computed) == sorted(told.sizes)
    assert max(computed) <= max_batch
    assert told.depths[-1] == 0
    assert all(runner.released for runner in runners)


def test_what_waits_is_computed_together():
    runner = Arithmetic()
    batcher = opened(runner)

    async def ask() -> None:
        runner.gate.clear()
        first = asyncio.create_task(batcher.infer(pictures(1), soon()))
        await until(runner.begun.is_set)
        rest = [asyncio.create_task(batcher.infer(pictures(1, seed), soon())) for seed in range(1, 8)]
        await until(lambda: batcher._waiting == 7)
        runner.gate.set()
        await asyncio.gather(first, *rest)

    asyncio.run(ask())
    batcher.close()
    assert runner.batches == [1, 4, 3]


def test_a_full_queue_refuses_at_once_and_keeps_what_it_has():
    runner, told = Arithmetic(), Told()
    batcher = opened(runner, told, max_queue=4)

    async def ask() -> None:
        runner.gate.clear()
        running = asyncio.create_task(batcher.infer(pictures(1), soon()))
        await until(runner.begun.is_set)
        waiting = asyncio.create_task(batcher.infer(pictures(3), soon()))
        await until(lambda: batcher._waiting == 3)
        with pytest.raises(OverloadedError, match="3 images wait") as refused:
            await batcher.infer(pictures(2), soon())
        assert refused.value.retry_after_s >= 1
        fits = asyncio.create_task(batcher.infer(pictures(1), soon()))
        await until(lambda: batcher._waiting == 4)
        runner.gate.set()
        assert [len(answer[0][0]) for answer in await asyncio.gather(running, waiting, fits)] == [1, 3, 1]
        with pytest.raises(InvalidRequestError, match="5 images are more than the 4"):
            await batcher.infer(pictures(5), soon())

    asyncio.run(ask())
    batcher.close()
    assert max(told.depths) == 4
    assert sum(runner.batches) == 5


def test_a_deadline_ends_the_waiting_and_what_was_not_begun_is_not_computed():
    runner = Arithmetic()
    batcher = opened(runner)

    async def ask() -> None:
        runner.gate.clear()
        running = asyncio.create_task(batcher.infer(pictures(1), soon()))
        await until(runner.begun.is_set)
        with pytest.raises(DeadlineError):
            await batcher.infer(pictures(2), time.monotonic() + 0.02)
        assert batcher._waiting == 0
        with pytest.raises(DeadlineError):
            await batcher.infer(pictures(1), time.monotonic() - 1)
        runner.gate.set()
        await running

    asyncio.run(ask())
    batcher.close()
    assert runner.batches == [1]


def test_a_client_that_goes_away_leaves_the_queue():
    runner = Arithmetic()
    batcher = opened(runner)

    async def ask() -> None:
        runner.gate.clear()
        running = asyncio.create_task(batcher.infer(pictures(1), soon()))
        await until(runner.begun.is_set)
        gone = asyncio.create_task(batcher.infer(pictures(6), soon()))
        await until(lambda: batcher._waiting == 6)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert batcher._waiting == 0
        runner.gate.set()
        await running

    asyncio.run(ask())
    batcher.close()
    assert runner.batches == [1]


def test_closing_answers_what_was_accepted_and_refuses_the_rest():
    runner = Arithmetic()
    batcher = opened(runner)

    async def ask() -> None:
        runner.gate.clear()
        accepted = [asyncio.create_task(batcher.infer(pictures(2), soon()))]
        await until(runner.begun.is_set)
        accepted += [asyncio.create_task(batcher.infer(pictures(2, seed), soon())) for seed in range(1, 5)]
        await until(lambda: batcher._waiting == 8)
        closing = asyncio.get_running_loop().run_in_executor(None, batcher.close)
        await until(lambda: not batcher._accepting)
        with pytest.raises(ModelUnavailableError):
            await batcher.infer(pictures(1), soon())
        runner.gate.set()
        assert [len(answer[0][0]) for answer in await asyncio.gather(*accepted)] == [2] * 5
        await closing

    asyncio.run(ask())
    assert runner.released


def test_a_batch_that_fails_fails_its_requests_and_no_others():
    runner = Arithmetic()
    batcher = opened(runner, max_batch=1)
    unbearable = np.full((1, 3, *SIZE), 0.75, np.float32)

    async def ask() -> list[Any]:
        return await asyncio.gather(
            *(batcher.infer(images, soon()) for images in (pictures(1), unbearable, pictures(1))),
            return_exceptions=True,
        )

    first, second, third = asyncio.run(ask())
    batcher.close()
    assert isinstance(second, InferenceFailedError)
    assert "pixel" not in str(second)
    assert len(first[0][0]) == len(third[0][0]) == 1


def test_a_runner_that_cannot_be_opened_says_so_and_leaves_no_thread():
    def refuse() -> Runner:
        raise EngineError("no such device")

    before = threading.active_count()
    batcher = Batcher("m", refuse, workers=2, max_batch=1, max_delay_s=0, max_queue=1, observer=Told())
    with pytest.raises(EngineError, match="no such device"):
        batcher.open()
    assert threading.active_count() == before
