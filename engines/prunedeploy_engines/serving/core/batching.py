"""Dynamic batching: images of several requests go through a runner together.

The event loop puts requests into a bounded queue; one thread per runner takes from it. A runner that is free takes what
waits, up to a full batch. It waits for more, up to ``max_delay``, only while it has fewer images than its last batch
had: those of that batch have just been answered, and clients that go on asking are about to ask again. So a client
alone never waits, and under load batches keep their size.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from prunedeploy_engines.runtimes.runner import Float32Array, Images, Runner
from prunedeploy_engines.serving.core.errors import (
    DeadlineError,
    InferenceFailedError,
    InvalidRequestError,
    ModelUnavailableError,
    OverloadedError,
)
from prunedeploy_engines.serving.telemetry.request_notes import StageTimes

if TYPE_CHECKING:
    from prunedeploy_engines.serving.telemetry.metrics import Metrics

Output = tuple[Float32Array, Float32Array]
_log = logging.getLogger(__name__)


@dataclass(eq=False)  # each is itself: arrays have no one truth value
class _Part:
    """Images of one request that are computed together."""

    images: Images
    deadline: float
    answer: asyncio.Future[Output]
    times: StageTimes = field(default_factory=StageTimes)
    since: float = field(default_factory=time.monotonic)


class Batcher:
    """The queue of one model, and its runners.

    Args:
        name: Name of the model, for messages and metrics.
        open_runner: Opens a runner; called once per worker, in its thread.
        workers: Runners.
        max_batch: Images of a batch at most.
        max_delay_s: See above, in seconds.
        max_queue: Images that may wait.
        metrics: Are told of queue and batches.
    """

    def __init__(
        self,
        name: str,
        open_runner: Callable[[], Runner],
        *,
        workers: int,
        max_batch: int,
        max_delay_s: float,
        max_queue: int,
        metrics: Metrics,
    ) -> None:
        self.name = name
        self.max_batch = max_batch
        self._max_delay_s = max_delay_s
        self._max_queue = max_queue
        self._metrics = metrics
        self._queue: deque[_Part] = deque()
        self._waiting = 0  # images in the queue
        self._changed = threading.Condition()
        self._accepting = True
        self._seconds_per_image = 0.0
        self._opened: list[Future[Runner]] = [Future() for _ in range(workers)]
        self._threads = [
            threading.Thread(target=self._work, args=(open_runner, opened), name=f"runner of {name}", daemon=True)
            for opened in self._opened
        ]

    def open(self) -> Runner:
        """Open the runners; returns one of them, to ask what it is, once all are ready.

        Raises:
            PrunedeployError: As opening a runner does.
        """
        for thread in self._threads:
            thread.start()
        try:
            runners = [opened.result() for opened in self._opened]
        except BaseException:
            self.close()
            raise
        self._opened.clear()  # each belongs to its thread, which releases it
        return runners[0]

    async def infer(self, images: Images, deadline: float) -> tuple[Output, StageTimes]:
        """Have images computed.

        Args:
            images: ``(N, ...)``, as a runner takes them, N at least 1.
            deadline: By `time.monotonic`.

        Returns:
            What a runner gives for them, and the times ``queue_s`` and ``compute_s`` of the last of them.

        Raises:
            OverloadedError: The queue has no room for them; nothing is computed.
            DeadlineError: Time was over first; what was not begun is not computed.
            ModelUnavailableError: `close` was called.
            InferenceFailedError: The runner failed.
        """
        parts = self._submit(images, deadline)
        loop = asyncio.get_running_loop()
        alarm = loop.call_later(max(0.0, deadline - time.monotonic()), _expire, parts)
        try:
            for part in parts:
                await part.answer
        finally:
            alarm.cancel()
            self._withdraw(parts)
        times = parts[-1].times
        if len(parts) == 1:
            return parts[0].answer.result(), times
        boxes, scores = zip(*(part.answer.result() for part in parts), strict=True)
        return (np.concatenate(boxes), np.concatenate(scores)), times

    def close(self) -> None:
        """Accept nothing more, answer what was accepted, release the runners; returns when that is done."""
        self.refuse()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    def refuse(self) -> None:
        """Accept nothing more."""
        with self._changed:
            self._accepting = False
            self._changed.notify_all()

    def _submit(self, images: Images, deadline: float) -> list[_Part]:
        loop = asyncio.get_running_loop()
        count = len(images)
        if count > self._max_queue:
            raise InvalidRequestError(f"the request has {count} images, but the queue holds only {self._max_queue}")
        parts = [
            _Part(images[start : start + self.max_batch], deadline, loop.create_future())
            for start in range(0, count, self.max_batch)
        ]
        with self._changed:
            if not self._accepting:
                raise ModelUnavailableError(f"model {self.name} is being unloaded")
            if self._waiting + count > self._max_queue:
                ahead = self._waiting * self._seconds_per_image / len(self._threads)
                raise OverloadedError(f"{self._waiting} images wait for model {self.name}", max(1.0, ahead))
            self._queue.extend(parts)
            self._count(count)
            self._changed.notify()
        return parts

    def _withdraw(self, parts: Sequence[_Part]) -> None:
        """Take parts that nobody waits for any more out of the queue: time is over, or the client is gone."""
        if all(part.answer.done() and not part.answer.cancelled() and not part.answer.exception() for part in parts):
            return
        with self._changed:
            for part in parts:
                if part in self._queue:
                    self._queue.remove(part)
                    self._count(-len(part.images))
                if part.answer.done() and not part.answer.cancelled():
                    part.answer.exception()  # is seen as retrieved, whichever of the parts was awaited first
                part.answer.cancel()

    def _count(self, change: int) -> None:
        self._waiting += change
        self._metrics.queue_depth(self.name, self._waiting)

    def _work(self, open_runner: Callable[[], Runner], opened: Future[Runner]) -> None:
        """Run one runner until the queue is closed and empty."""
        try:
            runner = open_runner()
        except BaseException as error:  # noqa: BLE001 - it is raised where the runner was asked for
            opened.set_exception(error)
            return
        opened.set_result(runner)
        with runner:
            expected = 1
            while parts := self._next_batch(expected):
                expected = sum(len(part.images) for part in parts)
                self._compute(runner, parts)

    def _next_batch(self, expected: int) -> list[_Part]:
        """Wait for a batch; empty when the queue is closed and empty.

        Args:
            expected: Images worth waiting for.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._queue or not self._accepting)
            taken: list[_Part] = []
            room = self.max_batch
            until: float | None = None
            while True:
                while self._queue and _fits(self._queue[0], taken, room):
                    part = self._queue.popleft()
                    taken.append(part)
                    room -= len(part.images)
                    self._count(-len(part.images))
                if self._queue:
                    # What does not fit starts the next batch, perhaps in another thread, which has to know of it.
                    self._changed.notify()
                    return taken
                if not taken or self.max_batch - room >= min(expected, self.max_batch):
                    return taken
                until = until or time.monotonic() + self._max_delay_s
                # Of the time that a request has, at most half goes into waiting for others.
                until = min([until, *((part.since + part.deadline) / 2 for part in taken)])
                rest = until - time.monotonic()
                if rest <= 0 or not self._accepting:
                    return taken
                self._changed.wait(rest)

    def _compute(self, runner: Runner, parts: list[_Part]) -> None:
        begun = time.monotonic()
        # Those that are late get their answer from the alarm in `infer`.
        timely = [part for part in parts if part.deadline > begun and not part.answer.done()]
        if not timely:
            return
        try:
            batch = timely[0].images if len(timely) == 1 else np.concatenate([part.images for part in timely])
            outputs: Output | InferenceFailedError = runner.infer(batch)
        except Exception:  # noqa: BLE001 - the runner stays up for the next batch
            _log.exception("model %s failed", self.name)
            outputs = InferenceFailedError("the model failed; the server's log says how")
        seconds = time.monotonic() - begun
        count = sum(len(part.images) for part in timely)
        self._seconds_per_image = seconds / count
        for part in timely:
            part.times.queue_s, part.times.compute_s, part.times.batch_size = begun - part.since, seconds, count
        # Answered in the event loop, in one go; where that is closed, nobody waits any more.
        with contextlib.suppress(RuntimeError):
            timely[0].answer.get_loop().call_soon_threadsafe(_deliver, timely, outputs)
        self._metrics.batch(self.name, count, seconds)


def _fits(part: _Part, taken: Sequence[_Part], room: int) -> bool:
    """A batch has room for it, and its images are of the batch's kind."""
    return len(part.images) <= room and (not taken or part.images.dtype == taken[0].images.dtype)


def _expire(parts: Sequence[_Part]) -> None:
    for part in parts:
        if not part.answer.done():
            part.answer.set_exception(DeadlineError("the deadline passed before the answer was there"))


def _deliver(parts: Sequence[_Part], outputs: Output | Exception) -> None:
    start = 0
    for part in parts:
        end = start + len(part.images)
        if not part.answer.done():
            if isinstance(outputs, Exception):
                part.answer.set_exception(outputs)
            else:
                boxes, scores = outputs
                part.answer.set_result((boxes[start:end], scores[start:end]))
        start = end
