"""The batcher under requests that come, wait, expire, go away and are cut off in every order."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import event, given, settings
from hypothesis import strategies as st

from arithmetic_runner import SIZE, Arithmetic, Told, inferred, soon
from prunedeploy_engines.serving.core.batching import Batcher
from prunedeploy_engines.serving.core.errors import (
    DeadlineError,
    InvalidRequestError,
    ModelUnavailableError,
    OverloadedError,
)


@dataclass(frozen=True)
class Request:
    """Comes ``after`` turns of the event loop, with a deadline in so many milliseconds, and may be given up."""

    images: int
    after: int
    deadline_ms: int | None
    given_up_after: int | None


REQUESTS = st.builds(
    Request,
    images=st.integers(1, 9),
    after=st.integers(0, 12),
    deadline_ms=st.none() | st.integers(-1, 6),
    given_up_after=st.none() | st.integers(0, 12),
)


class Slow(Arithmetic):
    """Takes a while, so that requests overtake each other."""

    def _infer(self, images: Any) -> tuple[Any, Any]:
        time.sleep(0.001)
        return super()._infer(images)


async def turns(count: int) -> None:
    for number in range(count):
        await asyncio.sleep(0.0005 * (number % 3 == 2))


@settings(max_examples=300, deadline=None)
@given(
    requests=st.lists(REQUESTS, min_size=1, max_size=24),
    max_batch=st.integers(1, 4),
    max_queue=st.integers(4, 20),
    workers=st.integers(1, 3),
    closed_after=st.none() | st.integers(0, 12),
    delay_ms=st.sampled_from([0.0, 0.5, 3.0]),
)
def test_every_request_ends_once_and_as_it_should(requests, max_batch, max_queue, workers, closed_after, delay_ms):
    runners = [Slow() for _ in range(workers)]
    left, told = list(runners), Told()
    batcher = Batcher(
        "m",
        left.pop,
        workers=workers,
        max_batch=max_batch,
        max_delay_s=delay_ms / 1e3,
        max_queue=max_queue,
        metrics=told,
    )
    batcher.open()
    # Every image has one value, its number in 1/1024ths: exact, and below the 0.75 that the runner refuses.
    starts = np.cumsum([0, *(request.images for request in requests)])

    def values(number: int) -> np.ndarray:
        return (np.arange(starts[number], starts[number + 1]) / 1024).astype(np.float32)

    async def ask(number: int) -> Any:
        request = requests[number]
        await turns(request.after)
        images = np.broadcast_to(values(number)[:, None, None, None], (request.images, 3, *SIZE))
        deadline = soon() if request.deadline_ms is None else time.monotonic() + request.deadline_ms / 1e3
        asked = asyncio.create_task(inferred(batcher, np.array(images), deadline))
        if request.given_up_after is not None:
            await turns(request.given_up_after)
            asked.cancel()
        try:
            return await asked
        except BaseException as error:  # noqa: BLE001 - it is what is looked at
            return error

    async def close() -> None:
        if closed_after is not None:
            await turns(closed_after)
            await asyncio.get_running_loop().run_in_executor(None, batcher.close)

    async def whole() -> list[Any]:
        closing = asyncio.create_task(close())
        ended = await asyncio.gather(*(ask(number) for number in range(len(requests))))
        await closing
        return ended

    ended = asyncio.run(whole())
    batcher.close()

    computed = [value for runner in runners for value in runner.seen]
    assert len(set(computed)) == len(computed), "an image was computed twice"
    for number, (request, outcome) in enumerate(zip(requests, ended, strict=True)):
        event(type(outcome).__name__)
        if isinstance(outcome, tuple):
            (boxes, scores), times = outcome
            assert np.array_equal(boxes, np.repeat(values(number)[:, None, None], 4, axis=2))
            assert np.array_equal(scores, values(number)[:, None, None] / 2)
            assert 1 <= times.batch_size <= max_batch
            assert set(values(number).tolist()) <= set(computed)
        elif isinstance(outcome, InvalidRequestError):
            assert request.images > max_queue
        elif isinstance(outcome, DeadlineError):
            assert request.deadline_ms is not None
        elif isinstance(outcome, asyncio.CancelledError):
            assert request.given_up_after is not None
        elif isinstance(outcome, ModelUnavailableError):
            assert closed_after is not None
        else:
            assert isinstance(outcome, OverloadedError), outcome
            assert sum(one.images for one in requests) > max_queue
        if isinstance(outcome, (OverloadedError, InvalidRequestError, ModelUnavailableError)):
            assert not set(values(number).tolist()) & set(computed), "refused, and computed all the same"
    assert batcher._waiting == 0
    assert not batcher._queue
    assert all(0 <= depth <= max_queue for depth in told.depths)
    assert all(1 <= size <= max_batch for size in told.sizes)
    assert sum(told.sizes) == len(computed)
    assert all(runner.released for runner in runners)
