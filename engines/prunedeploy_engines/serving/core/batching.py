"""Dynamic batching: images of several requests go through a runner together.

The event loop puts requests into a bounded queue; one thread per runner takes from it. A runner that is free takes what
waits, up to a full batch. It waits for more, up to ``max_delay``, only while it has fewer images than its last batch
had: those of that batch have just been answered, and clients that go on asking are about to ask again. So a client
alone never waits, and under load batches keep their size. Nor does it wait longer than a larger batch gains: where
that is little, as on a CPU, two groups of clients then take turns, and the runner has no pause while one is answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import statistics
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING

from prunedeploy_engines.runtimes.runner import Images, Runner
from prunedeploy_engines.serving.core.admission import Load
from prunedeploy_engines.serving.core.batch_parts import (
    Output,
    Part,
    Request,
    deliver,
    expire,
    fits,
    give_up,
    joined,
)
from prunedeploy_engines.serving.core.errors import (
    InferenceFailedError,
    InvalidRequestError,
    ModelUnavailableError,
    OverloadedError,
)
from prunedeploy_engines.serving.telemetry.request_notes import StageTimes

if TYPE_CHECKING:
    from prunedeploy_engines.serving.telemetry.metrics import Metrics

_BATCHES_REMEMBERED = 9
_log = logging.getLogger(__name__)


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
        self._queue: deque[Part] = deque()
        self._waiting = 0  # images in the queue
        self._changed = threading.Condition()
        self._computing = 0  # images that runners have begun
        self._accepting = True
        self._last_paces: deque[float] = deque(maxlen=_BATCHES_REMEMBERED)
        self._pace_s = 0.0  # seconds per image of one runner
        self._last_seconds: dict[int, deque[float]] = defaultdict(lambda: deque(maxlen=_BATCHES_REMEMBERED))
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

    def infer(self, images: Images, deadline: float) -> asyncio.Future[tuple[Output, StageTimes]]:
        """Have images computed: they wait in the queue, and whoever asked waits for the future.

        Args:
            images: ``(N, ...)``, as a runner takes them, N at least 1.
            deadline: By `time.monotonic`.

        Returns:
            What a runner gives for them, and the times ``queue_s`` and ``compute_s`` of the last of them. Cancelling it
            takes what was not begun out of the queue. It raises `DeadlineError` if time was over first, and
            `InferenceFailedError` if the runner failed.

        Raises:
            InvalidRequestError: The queue could never hold that many.
            OverloadedError: The queue has no room for them; nothing is computed.
            ModelUnavailableError: `close` was called.
        """
        loop = asyncio.get_running_loop()
        count = len(images)
        if count > self._max_queue:
            raise InvalidRequestError(f"the request has {count} images, but the queue holds only {self._max_queue}")
        starts = range(0, count, self.max_batch)
        request = Request(deadline, len(starts), loop.create_future())
        parts = [Part(request, number, images[start : start + self.max_batch]) for number, start in enumerate(starts)]
        with self._changed:
            if not self._accepting:
                raise ModelUnavailableError(f"model {self.name} is being unloaded")
            if self._waiting + count > self._max_queue:
                ahead = self._waiting * self._pace_s / len(self._threads)
                raise OverloadedError(f"{self._waiting} images wait for model {self.name}", max(1.0, ahead))
            self._queue.extend(parts)
            self._count(count)
            self._changed.notify()
        alarm = loop.call_later(max(0.0, deadline - time.monotonic()), expire, request.answer)
        request.answer.add_done_callback(lambda _: self._ended(request, alarm))
        return request.answer

    def load(self) -> Load:
        """What there is to do now."""
        return Load(self._waiting, self._computing, self._pace_s / len(self._threads))

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

    def _ended(self, request: Request, alarm: asyncio.TimerHandle) -> None:
        """Take out of the queue what nobody waits for any more: time is over, the client is gone, or a part failed."""
        alarm.cancel()
        if len(request.computed) < request.parts:
            with self._changed:
                for part in [one for one in self._queue if one.request is request]:
                    self._queue.remove(part)
                    self._count(-len(part.images))
        if not request.answer.cancelled():
            request.answer.exception()  # is seen as retrieved, though whoever asked may be cancelled before reading it

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
                begun = time.monotonic()
                timely, late = self._timely(parts, begun)
                if late:
                    # An answer that will be too late is not worth the runner's time, which others wait for.
                    self._on_the_loop_of(late[0], give_up, late)
                if not timely:
                    continue
                count = sum(len(part.images) for part in timely)
                with self._changed:
                    self._computing += count
                try:
                    outputs: Output | InferenceFailedError = runner.infer(joined([part.images for part in timely]))
                except Exception:  # noqa: BLE001 - the runner stays up for the next batch
                    _log.exception("model %s failed", self.name)
                    outputs = InferenceFailedError("the model failed; the server's log says how")
                with self._changed:
                    self._computing -= count
                    self._last_seconds[count].append(seconds := time.monotonic() - begun)
                    self._last_paces.append(seconds / count)
                    self._pace_s = statistics.median(self._last_paces)
                self._computed(timely, outputs, begun)

    def _timely(self, parts: Sequence[Part], now: float) -> tuple[list[Part], list[Part]]:
        """Those whose answer somebody waits for and can be in time, and those that are too late."""
        wanted = [one for one in parts if not one.request.answer.done()]
        end = now + self._pace_s * sum(len(one.images) for one in wanted)
        late = [one for one in wanted if one.request.deadline <= end]
        if len(late) == len(wanted):
            # The pace itself may be wrong; only the next batch can tell, so there has to be one.
            late = [one for one in late if one.request.deadline <= now]
        return [one for one in wanted if one not in late], late

    def _next_batch(self, expected: int) -> list[Part]:
        """Wait for a batch; empty when the queue is closed and empty.

        Args:
            expected: Images worth waiting for.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._queue or not self._accepting)
            taken: list[Part] = []
            room = self.max_batch
            until: float | None = None
            while True:
                while self._queue and fits(self._queue[0], taken, room):
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
                now = time.monotonic()
                gain_s = self._gain_s(self.max_batch - room, min(expected, self.max_batch))
                until = min(now + gain_s, now + self._max_delay_s if until is None else until)
                # Of the time that a request has, at most half goes into waiting for others.
                until = min([until, *((part.request.since + part.request.deadline) / 2 for part in taken)])
                rest = until - now
                if rest <= 0 or not self._accepting:
                    return taken
                self._changed.wait(rest)

    def _gain_s(self, count: int, more: int) -> float:
        """How long waiting for a batch of ``more`` images may take until one of ``count`` at once gets further.

        In the time ``t(n)`` of a batch of n: ``more / (wait + t(more)) >= count / t(count)``. Without end where a time
        is not known.
        """
        if not (self._last_seconds[count] and self._last_seconds[more]):
            return math.inf
        now, then = (statistics.median(self._last_seconds[size]) for size in (count, more))
        return max(0.0, more * now / count - then)

    def _computed(self, parts: Sequence[Part], outputs: Output | InferenceFailedError, begun: float) -> None:
        seconds = time.monotonic() - begun
        count = sum(len(part.images) for part in parts)
        for part in parts:
            part.times.queue_s, part.times.compute_s, part.times.batch_size = begun - part.request.since, seconds, count
        self._on_the_loop_of(parts[0], deliver, parts, outputs)
        self._metrics.batch(self.name, count, seconds)

    def _on_the_loop_of(self, part: Part, what: Callable[..., None], *arguments: object) -> None:
        """Answer in the event loop, in one go; where that is closed, nobody waits any more."""
        with contextlib.suppress(RuntimeError):
            part.request.answer.get_loop().call_soon_threadsafe(what, *arguments)
