"""Reading ahead and writing behind: order, limits, errors, and what a slow taker misses."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from prunedeploy_engines.video.overlap import ReadAhead, WriteBehind


def test_all_items_in_order_and_no_more_ahead_than_allowed() -> None:
    given, taken = [0], 0

    def items() -> Iterator[int]:
        for number in range(50):
            given[0] = number + 1
            yield number

    with ReadAhead(items(), 4) as ahead:
        for item in ahead:
            assert item == taken
            taken += 1
            time.sleep(0.001)
            assert given[0] <= taken + 4 + 1  # one more is in its hand
    assert (taken, ahead.skipped) == (50, 0)


def test_an_error_comes_after_the_items_before_it() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise ValueError("the third")

    with ReadAhead(items(), 4) as ahead:
        taken = iter(ahead)
        assert [next(taken), next(taken)] == [1, 2]
        with pytest.raises(ValueError, match="the third"):
            next(taken)


def test_a_live_source_is_not_kept_waiting_and_the_newest_is_taken() -> None:
    """A camera of 200 frames a second before a network of 20."""
    moments = []

    def camera() -> Iterator[int]:
        for number in range(100):
            moments.append(time.monotonic())
            time.sleep(0.005)
            yield number

    taken = []
    with ReadAhead(camera(), 1, latest=True) as ahead:
        for item in ahead:
            taken.append((item, len(moments)))
            time.sleep(0.05)
    assert taken == sorted(taken)
    assert len(taken) + ahead.skipped == 100
    assert ahead.skipped > 50
    assert all(there - item <= 3 for item, there in taken), "no frame is older than the newest by much"


def test_leaving_early_stops_the_reader() -> None:
    def endless() -> Iterator[int]:
        number = 0
        while True:
            yield number
            number += 1

    before = threading.active_count()
    with ReadAhead(endless(), 2) as ahead:
        assert next(iter(ahead)) == 0
    assert threading.active_count() == before


def test_calls_are_made_in_order_and_all_of_them() -> None:
    done: list[int] = []

    def slow(number: int) -> None:
        time.sleep(0.002)
        done.append(number)

    with WriteBehind(slow, 3) as behind:
        for number in range(20):
            behind(number)
            assert number - len(done) <= 3 + 1
    assert done == list(range(20))


def test_what_a_call_raises_is_raised_at_the_latest_in_the_end() -> None:
    def fails(number: int) -> None:
        if number == 1:
            raise OSError("full")

    def write() -> None:
        with WriteBehind(fails, 3) as behind:
            behind(0)
            behind(1)

    with pytest.raises(OSError, match="full"):
        write()
