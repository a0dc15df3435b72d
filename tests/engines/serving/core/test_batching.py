"""The batcher against what a plain loop over the same runner gives."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arithmetic_runner import SIZE, Arithmetic, Told, inferred, opened, pictures, soon, until
from prunedeploy_engines.errors import EngineError
from prunedeploy_engines.runtimes.runner import Runner
from prunedeploy_engines.serving.core.batching import Batcher
from prunedeploy_engines.serving.core.errors import (
    DeadlineError,
    InferenceFailedError,
    InvalidRequestError,
    ModelUnavailableError,
    OverloadedError,
)


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
        "m", left.pop, workers=workers, max_batch=max_batch, max_delay_s=delay, max_queue=200, metrics=told
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
        first = asyncio.create_task(inferred(batcher, pictures(1), soon()))
        await until(runner.begun.is_set)
        rest = [asyncio.create_task(inferred(batcher, pictures(1, seed), soon())) for seed in range(1, 8)]
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
        running = asyncio.create_task(inferred(batcher, pictures(1), soon()))
        await until(runner.begun.is_set)
        waiting = asyncio.create_task(inferred(batcher, pictures(3), soon()))
        await until(lambda: batcher._waiting == 3)
        with pytest.raises(OverloadedError, match="3 images wait") as refused:
            await batcher.infer(pictures(2), soon())
        assert refused.value.retry_after_s >= 1
        fits = asyncio.create_task(inferred(batcher, pictures(1), soon()))
        await until(lambda: batcher._waiting == 4)
        runner.gate.set()
        assert [len(answer[0][0]) for answer in await asyncio.gather(running, waiting, fits)] == [1, 3, 1]
        with pytest.raises(InvalidRequestError, match="5 images, but the queue holds only 4"):
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
        running = asyncio.create_task(inferred(batcher, pictures(1), soon()))
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
        running = asyncio.create_task(inferred(batcher, pictures(1), soon()))
        await until(runner.begun.is_set)
        gone = asyncio.create_task(inferred(batcher, pictures(6), soon()))
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
        accepted = [asyncio.create_task(inferred(batcher, pictures(2), soon()))]
        await until(runner.begun.is_set)
        accepted += [asyncio.create_task(inferred(batcher, pictures(2, seed), soon())) for seed in range(1, 5)]
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
    batcher = Batcher("m", refuse, workers=2, max_batch=1, max_delay_s=0, max_queue=1, metrics=Told())
    with pytest.raises(EngineError, match="no such device"):
        batcher.open()
    assert threading.active_count() == before


def test_what_one_worker_leaves_another_takes_at_once():
    runners = [Arithmetic(), Arithmetic()]
    left = list(runners)
    batcher = Batcher("m", left.pop, workers=2, max_batch=4, max_delay_s=0, max_queue=16, metrics=Told())
    batcher.open()
    for runner in runners:
        runner.gate.clear()

    async def ask() -> Any:
        await until(lambda: len(batcher._changed._waiters) == 2)
        asked = asyncio.create_task(inferred(batcher, pictures(8), soon()))
        await until(lambda: all(runner.begun.is_set() for runner in runners))
        for runner in runners:
            runner.gate.set()
        return await asked

    (boxes, _), _ = asyncio.run(ask())
    batcher.close()
    assert len(boxes) == 8
    assert [runner.batches for runner in runners] == [[4], [4]]


def test_waiting_for_others_never_costs_a_request_its_deadline():
    runner = Arithmetic()
    batcher = opened(runner, max_delay_s=1000.0)

    async def ask() -> Any:
        await batcher.infer(pictures(4), soon())  # so that four are worth waiting for
        return await batcher.infer(pictures(1), time.monotonic() + 0.5)

    (boxes, _), _ = asyncio.run(ask())
    batcher.close()
    assert len(boxes) == 1
    assert runner.batches == [4, 1]


class Timed(Arithmetic):
    """Takes a time that its batch decides."""

    def __init__(self, seconds: Callable[[int], float]) -> None:
        super().__init__()
        self._seconds = seconds

    def _infer(self, images: Any) -> tuple[Any, Any]:
        time.sleep(self._seconds(len(images)))
        return super()._infer(images)


def test_nobody_is_waited_for_where_a_larger_batch_gains_nothing():
    runner = Timed(lambda count: 0.0 if count == 1 else 0.1 * count)  # its first and third batch are the better ones
    batcher = opened(runner, max_delay_s=1000.0)

    async def ask() -> None:
        for count in (1, 4, 1):
            await asyncio.wait_for(batcher.infer(pictures(count), time.monotonic() + 1000), 60)

    asyncio.run(ask())
    batcher.close()
    assert runner.batches == [1, 4, 1]


def test_others_are_waited_for_where_a_larger_batch_costs_no_more():
    runner = Timed(lambda count: 0.5)
    batcher = opened(runner, max_delay_s=1000.0)

    async def ask() -> None:
        for count in (1, 4):
            await batcher.infer(pictures(count), time.monotonic() + 1000)
        one = asyncio.create_task(inferred(batcher, pictures(1), time.monotonic() + 1000))
        await until(lambda: batcher._waiting == 0)  # the worker has it, and may wait for one second and a half
        await asyncio.gather(one, inferred(batcher, pictures(3), time.monotonic() + 1000))

    asyncio.run(ask())
    batcher.close()
    assert runner.batches == [1, 4, 4]


def test_what_was_given_up_or_is_late_is_not_computed_even_when_a_worker_has_it():
    runner, told = Arithmetic(), Told()
    batcher = opened(runner, told, max_delay_s=1000.0)

    async def ask() -> None:
        await batcher.infer(pictures(4), soon())  # so that the worker waits for four from now on
        gone = asyncio.create_task(inferred(batcher, pictures(1, 1), soon()))
        await until(lambda: told.depths == [4, 0, 1, 0])  # it came, and the worker has it
        gone.cancel()
        await batcher.infer(pictures(3, 2), soon())
        runner.begun.clear()
        runner.gate.clear()
        running = asyncio.create_task(inferred(batcher, pictures(4), soon()))
        await until(runner.begun.is_set)
        late = asyncio.create_task(inferred(batcher, pictures(2, 3), time.monotonic() + 0.05))
        await until(lambda: batcher._waiting == 2)
        time.sleep(0.1)  # the event loop is busy, so that nothing there can take it out of the queue
        runner.gate.set()
        while batcher._waiting:
            time.sleep(0.001)
        await running
        with pytest.raises(DeadlineError):
            await late

    asyncio.run(ask())
    batcher.close()
    assert runner.batches == [4, 3, 4]


def test_what_cannot_be_in_time_any_more_costs_the_runner_nothing():
    runner = Arithmetic()
    batcher = opened(runner)

    async def ask() -> None:
        runner.gate.clear()
        running = asyncio.create_task(inferred(batcher, pictures(1), soon()))
        await until(runner.begun.is_set)
        batcher._pace_s = 5.0  # as if images had taken so long
        hopeless = asyncio.create_task(inferred(batcher, pictures(2, 1), time.monotonic() + 12))
        patient = asyncio.create_task(inferred(batcher, pictures(1, 2), time.monotonic() + 1000))
        await until(lambda: batcher._waiting == 3)
        batcher._last_paces.extend([5.0] * 9)
        runner.gate.set()
        with pytest.raises(DeadlineError):
            await hopeless
        await asyncio.gather(running, patient)

    asyncio.run(ask())
    batcher.close()
    assert runner.batches == [1, 1]


def test_where_nothing_could_be_in_time_the_pace_is_found_out_anew():
    runner = Arithmetic()
    batcher = opened(runner)
    batcher._last_paces.extend([5.0] * 9)
    batcher._pace_s = 5.0

    async def ask() -> None:
        for _ in range(9):
            (boxes, _), _ = await batcher.infer(pictures(1), time.monotonic() + 4)
            assert len(boxes) == 1

    asyncio.run(ask())
    batcher.close()
    assert runner.batches == [1] * 9
    assert batcher.load() == (0, 0, batcher._pace_s)
    assert batcher._pace_s < 5.0


def test_the_load_is_what_waits_and_what_is_being_computed():
    runners = [Arithmetic(), Arithmetic()]
    left = list(runners)
    batcher = Batcher("m", left.pop, workers=2, max_batch=3, max_delay_s=0, max_queue=16, metrics=Told())
    batcher.open()
    for runner in runners:
        runner.gate.clear()

    async def ask() -> None:
        asked = [asyncio.create_task(inferred(batcher, pictures(3, seed), soon())) for seed in range(3)]
        await until(lambda: batcher.load()[:2] == (3, 6))
        for runner in runners:
            runner.gate.set()
        await asyncio.gather(*asked)

    asyncio.run(ask())
    batcher.close()
    assert batcher.load()[:2] == (0, 0)
