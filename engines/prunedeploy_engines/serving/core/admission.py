"""Who is let in: by its head, a request is refused that the queue has no room for or whose deadline cannot be kept.

What a request will take is expected from the work in front of it, and corrected by how wrong that was for the last
ones: decoding, event loop and answer all show in that error, so nothing has to be known of them.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from prunedeploy_engines.serving.core.errors import DeadlineError, OverloadedError

SEAT_S = 0.25
"""How long a place in the queue is kept for a request whose body is on its way, or slow clients would fill it."""

QUANTILE = 0.99
"""Of the errors of the last estimates, what is added to the next one."""

_ERRORS_KEPT = 256
_ERROR_LASTS_S = 10.0
_STALE_S = 0.1
_TICK_S = 0.02

Kind = Literal["tensors", "files"]


class Load(NamedTuple):
    """What a model has to do.

    Attributes:
        waiting: Images in its queue.
        computing: Images that its runners have begun.
        pace_s: Seconds per image, all runners together.
    """

    waiting: int
    computing: int
    pace_s: float


class Queue(Protocol):
    """What is asked for its load."""

    def load(self) -> Load:
        """Now."""


class Delays:
    """The latest of a kind of delay, and the quantile that an estimate has to reckon with."""

    def __init__(self) -> None:
        self._last: deque[tuple[float, float]] = deque(maxlen=_ERRORS_KEPT)
        self._quantile = 0.0
        self._until = 0.0

    def add(self, seconds: float) -> None:
        """One was so long."""
        self._last.append((time.monotonic(), seconds))

    def quantile(self) -> float:
        """At least 0; of those of the last seconds, since what was slow once is no reason to refuse for ever."""
        now = time.monotonic()
        if now >= self._until:
            self._until = now + _STALE_S
            while self._last and self._last[0][0] < now - _ERROR_LASTS_S:
                self._last.popleft()
            ordered = sorted(seconds for _, seconds in self._last)
            self._quantile = max(0.0, ordered[int(QUANTILE * (len(ordered) - 1) + 0.5)]) if ordered else 0.0
        return self._quantile


class LoopLag:
    """How late the event loop is, while there are requests: a head waits for it to be read, an answer to be sent.

    That is the part of a client's waiting that no clock of the server sees.
    """

    def __init__(self) -> None:
        self._delays = Delays()
        self._ticking = False

    def allowance_s(self) -> float:
        """What is taken off a deadline: being late twice, on the way in and on the way out."""
        if not self._ticking:
            self._ticking = True
            asyncio.get_running_loop().call_later(_TICK_S, self._tick, time.monotonic() + _TICK_S)
        return 2 * self._delays.quantile()

    def _tick(self, due: float) -> None:
        self._ticking = False
        self._delays.add(time.monotonic() - due)


@dataclass(eq=False)
class Visit:
    """A request that was let in, from its head until its answer.

    Attributes:
        kind: What it brings.
        deadline: When the answer must be there, by `time.monotonic`; None while only the body can tell.
        images: So many, as far as is known.
        expected_s: Seconds until its answer, as far as the model makes them.
        seats: Places that are kept for it.
        whole_since: When its last byte was there; None before.
    """

    admission: Admission
    kind: Kind
    deadline: float | None
    images: int = 1
    expected_s: float = 0.0
    seats: int = 0
    whole_since: float | None = None

    def know(self, deadline: float, images: int) -> None:
        """Hold it to its deadline and number of images, which are known now.

        Raises:
            ServingError: See `Admission.visit`.
        """
        self.deadline, self.images = deadline, images
        self.admission.check(self)

    def whole(self) -> None:
        """All of it is there; one that took too long, or has several images, has to find places now.

        Raises:
            ServingError: See `Admission.visit`.
        """
        self.whole_since = time.monotonic()
        if self.seats != self.images:
            self.admission.check(self)

    def queued(self) -> None:
        """It is in the model's own queue from now on, and counted there."""
        self.admission.leave_seats(self)


class Admission:
    """The door of one model.

    Args:
        name: Of the model, for messages.
        queue: Tells its load.
        max_queue: Images that may wait.
    """

    def __init__(self, name: str, queue: Queue, max_queue: int) -> None:
        self._name = name
        self._queue = queue
        self._max_queue = max_queue
        self._seats = 0  # images of requests that are let in, and not in the queue yet
        self._errors: dict[Kind, Delays] = {"tensors": Delays(), "files": Delays()}

    @contextmanager
    def visit(self, kind: Kind, deadline: float | None) -> Iterator[Visit]:
        """Let a request in, or not; it is inside until the ``with`` ends.

        Args:
            kind: What it brings.
            deadline: By `time.monotonic`; None if only the body can tell.

        Raises:
            OverloadedError: The queue has no room, or too much is in front of it for its deadline. Where nothing is
                in front of a request it is let in, or one slow answer could close the door for good.
            DeadlineError: It has passed.
        """
        visit = Visit(self, kind, deadline)
        self.check(visit)
        alarm = asyncio.get_running_loop().call_later(SEAT_S, self._too_slow, visit)
        try:
            yield visit
        except DeadlineError:
            self._learn(visit)
            raise
        else:
            self._learn(visit)
        finally:
            alarm.cancel()
            self.leave_seats(visit)

    def check(self, visit: Visit) -> None:
        """Take seats for a request, or refuse it; see `visit`."""
        self.leave_seats(visit)
        visit.expected_s = self._expected_s(visit.images, visit.deadline, self._errors[visit.kind])
        # Heads are cheap: before its images have come, a request holds one place, whatever it says.
        visit.seats = 1 if visit.whole_since is None else min(visit.images, self._max_queue)
        self._seats += visit.seats

    def look(self, deadline: float | None) -> None:
        """Refuse a request of which only the deadline is known; it takes no place. See `visit`."""
        self._expected_s(1, deadline, min(self._errors.values(), key=Delays.quantile))

    def _expected_s(self, images: int, deadline: float | None, errors: Delays) -> float:
        now = time.monotonic()
        if deadline is not None and deadline <= now:
            raise DeadlineError("the deadline passed before the request was there")
        load = self._queue.load()
        waiting = self._seats + load.waiting
        # One that no queue could hold is told so there.
        if waiting + images > self._max_queue >= images:
            raise OverloadedError(f"{waiting} images wait for model {self._name}", max(1.0, waiting * load.pace_s))
        ahead = waiting + load.computing
        expected_s = (ahead + images) * load.pace_s
        if ahead and deadline is not None:
            late_s = now + expected_s + errors.quantile() - deadline
            if late_s > 0:
                line = f"{ahead} images are in front of it at model {self._name}, too many for its deadline"
                raise OverloadedError(line, max(1.0, late_s))
        return expected_s

    def leave_seats(self, visit: Visit) -> None:
        """It holds no place any more: it is in the queue, or gone."""
        self._seats -= visit.seats
        visit.seats = 0

    def _too_slow(self, visit: Visit) -> None:
        if visit.whole_since is None:
            self.leave_seats(visit)

    def _learn(self, visit: Visit) -> None:
        # Without the time that its bytes took: how slowly a client sends says nothing about the next one.
        if visit.whole_since is not None:
            self._errors[visit.kind].add(time.monotonic() - visit.whole_since - visit.expected_s)
