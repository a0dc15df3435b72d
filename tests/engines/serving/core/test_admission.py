"""Who is let in, by hand-worked loads of a model that computes nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace

import numpy as np
import pytest

from prunedeploy_engines.serving.core import admission as admission_module
from prunedeploy_engines.serving.core.admission import Admission, Delays, Load, LoopLag, Visit
from prunedeploy_engines.serving.core.errors import DeadlineError, OverloadedError


class Model:
    """Says what a test makes it say."""

    def __init__(self, waiting: int = 0, computing: int = 0, pace_s: float = 0.0) -> None:
        self.now = Load(waiting, computing, pace_s)

    def load(self) -> Load:
        return self.now


def run(what: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(what())  # type: ignore[arg-type]  # a coroutine


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the admission takes for the time; moved on by hand."""
    now = [100.0]
    monkeypatch.setattr(admission_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


@contextmanager
def visited(door: Admission, seconds: float | None = 100.0) -> Iterator[Visit]:
    deadline = None if seconds is None else admission_module.time.monotonic() + seconds
    with door.visit("tensors", deadline) as visit:
        yield visit


@pytest.mark.parametrize(
    ("load", "seconds", "let_in"),
    [
        # 6 waiting, 2 begun and itself, at 10 s each: 90 s.
        ((6, 2, 10.0), 91.0, True),
        ((6, 2, 10.0), 89.0, False),
        ((6, 2, 10.0), None, True),
        # Nothing is in front of it.
        ((0, 0, 10.0), 5.0, True),
        ((0, 1, 10.0), 5.0, False),
        # The queue holds 8.
        ((7, 4, 0.0), 5.0, True),
        ((8, 0, 0.0), 5.0, False),
        ((8, 0, 0.0), None, False),
    ],
)
def test_what_is_in_front_of_a_request_decides(load: tuple[int, int, float], seconds: float | None, let_in: bool):
    async def ask() -> None:
        door = Admission("m", Model(*load), 8)
        if let_in:
            with visited(door, seconds):
                return
        with pytest.raises(OverloadedError, match=f"{load[0]} images wait|in front of it"), visited(door, seconds):
            pass

    run(ask)


def test_a_deadline_that_has_passed_is_no_reason_to_come_again():
    async def ask() -> None:
        with pytest.raises(DeadlineError), visited(Admission("m", Model(), 8), -0.001):
            pass

    run(ask)


def test_places_are_kept_for_those_on_their_way_and_given_back():
    async def ask() -> None:
        door = Admission("m", Model(), 2)
        for end in ("answered", "queued", "refused"):
            with ExitStack() as inside:
                first = inside.enter_context(visited(door))
                inside.enter_context(visited(door))
                with pytest.raises(OverloadedError, match="2 images wait"), visited(door):
                    pass
                if end == "queued":  # the model's own queue counts it from then on
                    first.queued()
                    inside.enter_context(visited(door))
                if end == "refused":
                    with pytest.raises(OverloadedError):
                        first.know(time.monotonic() + 100, 2)
            assert door._seats == 0

    run(ask)


def test_who_only_says_that_images_will_come_holds_one_place():
    async def ask() -> None:
        door = Admission("m", Model(), 8)
        with visited(door) as visit:
            visit.know(time.monotonic() + 100, 8)
            assert door._seats == 1
            with visited(door), pytest.raises(OverloadedError):
                visit.whole()  # eight have come, and there are places for seven
        with visited(door) as visit:
            visit.know(time.monotonic() + 100, 8)
            visit.whole()
            assert door._seats == 8

    run(ask)


def test_slow_clients_lose_their_places_but_not_while_the_server_is_at_work(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(admission_module, "SEAT_S", 0.01)

    async def ask() -> None:
        model = Model()
        door = Admission("m", model, 2)
        with visited(door) as slow, visited(door) as whole:
            whole.whole()
            while slow.seats:
                await asyncio.sleep(0.002)
            await asyncio.sleep(0.02)
            assert whole.seats == 1
            with visited(door) as third:
                with pytest.raises(OverloadedError):
                    slow.whole()
                third.queued()
                slow.whole()
                assert slow.seats == 1
        assert door._seats == 0

    run(ask)


def test_how_wrong_the_last_estimates_were_is_reckoned_with(clock: list[float]):
    async def ask() -> None:
        model = Model()
        door = Admission("m", model, 8)
        with visited(door) as visit:
            visit.whole()
            clock[0] += 2.0  # decoding, say, of which the model knows nothing
        model.now = Load(0, 1, 0.5)  # one is being computed: with itself, one second
        with pytest.raises(OverloadedError), visited(door, 2.9):
            pass
        with visited(door, 3.1), door.visit("files", clock[0] + 2.9):  # which have errors of their own
            pass
        model.now = Load(0, 0, 0.5)
        with visited(door, 0.1):  # nothing in front of it: let in, whatever was once slow
            pass

    run(ask)


def test_how_slowly_a_client_sends_is_not_held_against_the_next_one(clock: list[float]):
    async def ask() -> None:
        model = Model()
        door = Admission("m", model, 8)
        with visited(door) as visit:
            clock[0] += 2.0
            visit.whole()
        model.now = Load(0, 1, 0.5)
        with visited(door, 1.1):
            pass

    run(ask)


def test_the_quantile_of_delays_is_numpys_nearest_and_forgets(clock: list[float]):
    delays = Delays()
    assert delays.quantile() == 0.0
    given = np.random.default_rng(0).random(200)
    for one in given:
        delays.add(float(one))
    clock[0] += 1.0
    assert delays.quantile() == np.quantile(given, 0.99, method="nearest")
    delays.add(-5.0)
    clock[0] += 9.5  # the first 200 are older than ten seconds
    assert delays.quantile() == 0.0, "and not below"


def test_a_loop_that_is_busy_is_seen_as_late():
    async def ask() -> None:
        lag = LoopLag()
        assert lag.allowance_s() == 0.0
        time.sleep(0.3)
        await asyncio.sleep(0.05)
        allowed = lag.allowance_s()
        while not allowed:
            await asyncio.sleep(0.05)
            allowed = lag.allowance_s()
        assert allowed >= 2 * (0.3 - 0.02), "twice as late as the tick was"

    run(ask)
