from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunedeploy_engines.bench.scenarios import (
    Trial,
    allowed_late,
    find_rate,
    poisson_arrivals,
    serve_queries,
)


class VirtualClock:
    """A clock that moves when somebody waits or serves; in seconds."""

    def __init__(self) -> None:
        self.time = 100.0  # serving starts whenever it does

    def now(self) -> float:
        return self.time

    def wait_until(self, moment: float) -> None:
        self.time = max(self.time, moment)

    def server(self, seconds: float, of_each_image: float = 0.0) -> object:
        def serve(count: int) -> None:
            self.time += seconds + of_each_image * count

        return serve


def latencies_of(arrivals: object, service_s: float, **options: object) -> np.ndarray:
    clock = VirtualClock()
    return np.array(serve_queries(clock.server(service_s), arrivals, clock=clock, **options))


def md1_waiting_cdf(t: float, rate: float, service: float) -> float:
    """P(waiting <= t) of a queue with Poisson arrivals and a constant service.

    Reference: Erlang 1909; Gross et al., Fundamentals of Queueing Theory, section 5.1.5 (M/D/1).
    """
    terms = (
        (rate * (k * service - t)) ** k / math.factorial(k) * math.exp(-rate * (k * service - t))
        for k in range(math.floor(t / service) + 1)
    )
    return (1 - rate * service) * math.fsum(terms)


@pytest.mark.parametrize("utilisation", [0.3, 0.6, 0.8])
def test_waiting_times_are_those_of_the_md1_queue(utilisation: float) -> None:
    service = 0.01
    rate = utilisation / service
    waiting = latencies_of(poisson_arrivals(rate, 200_000, seed=1), service) - service
    # Pollaczek and Khinchine for a constant service: rho s / (2 (1 - rho)).
    assert waiting.mean() == pytest.approx(utilisation * service / (2 * (1 - utilisation)), rel=0.05)
    for q in (0.5, 0.9, 0.99):
        if q > 1 - utilisation:  # below, nobody waits
            assert md1_waiting_cdf(np.quantile(waiting, q), rate, service) == pytest.approx(q, abs=0.01)


def test_queue_of_four_queries_by_hand() -> None:
    # Served for 2 s each, due at 1, 2, 6, 6: done at 3, 5, 8, 10.
    assert latencies_of([1.0, 2.0, 6.0, 6.0], 2.0) == pytest.approx([2.0, 3.0, 2.0, 4.0])


def test_waiting_queries_are_answered_together_up_to_the_largest_batch() -> None:
    # The first is alone (1 s of 1 + ...). At 2.0 three wait: two go together and are done at 4, the last at 6.
    clock, sizes = VirtualClock(), []

    def serve(count: int) -> None:
        sizes.append(count)
        clock.time += 2.0

    latencies = serve_queries(serve, [0.0, 0.5, 1.0, 1.5], largest_batch=2, clock=clock)
    assert sizes == [1, 2, 1]
    assert latencies == pytest.approx([2.0, 3.5, 3.0, 4.5])


def test_a_stall_is_counted_for_every_query_that_it_delays() -> None:
    """Coordinated omission: a client that waits for each answer would see one slow query in a thousand."""
    clock, services = VirtualClock(), []

    def serve(count: int) -> None:
        services.append(1.0 if len(services) == 300 else 0.001)
        clock.time += services[-1]

    arrivals = np.arange(1000) / 100  # 100 a second: a stall of 1 s delays about 100 of them
    late = sum(latency > 0.01 for latency in serve_queries(serve, arrivals, clock=clock))
    seen_by_a_client_that_waits = sum(service > 0.01 for service in services)
    assert seen_by_a_client_that_waits == 1 <= allowed_late(1000)
    assert 100 <= late <= 120
    assert late > allowed_late(1000)


def test_a_trial_is_given_up_once_it_cannot_hold() -> None:
    latencies = latencies_of(np.zeros(1000), 1.0, most_late=3, bound_s=10.0)
    # The 10 first are answered within 10 s, the next four are late: one more than may be.
    assert len(latencies) == 14


def test_arrivals_are_poisson_and_the_same_for_every_rate() -> None:
    arrivals = poisson_arrivals(50.0, 100_000, seed=3)
    gaps = np.diff(arrivals, prepend=0.0)
    assert gaps.mean() == pytest.approx(0.02, rel=0.02)
    assert gaps.std() == pytest.approx(0.02, rel=0.02)  # as exponential ones
    assert np.quantile(gaps, 0.5) == pytest.approx(0.02 * math.log(2), rel=0.02)
    assert poisson_arrivals(100.0, 100_000, seed=3) * 2 == pytest.approx(arrivals)
    assert not np.array_equal(arrivals, poisson_arrivals(50.0, 100_000, seed=4))


@pytest.mark.parametrize(("rate", "queries"), [(0.0, 10), (-1.0, 10), (1.0, 0)])
def test_no_rate_and_no_queries_are_refused(rate: float, queries: int) -> None:
    with pytest.raises(ValueError, match="rate must be positive"):
        poisson_arrivals(rate, queries, 0)


@pytest.mark.parametrize(
    ("latencies", "planned", "holds"),
    [
        ((1.0,) * 297 + (99.0,) * 3, 300, True),
        ((1.0,) * 296 + (99.0,) * 4, 300, False),
        ((1.0,) * 299, 300, False),  # given up
        ((10.0,) * 300, 300, True),  # on the bound
    ],
)
def test_a_rate_holds_with_at_most_one_late_query_in_a_hundred(
    latencies: tuple[float, ...], planned: int, holds: bool
) -> None:
    assert Trial(1.0, latencies, planned, 10.0).holds is holds


def search(capacity: float, trial_of: Callable[[float, int], Trial]) -> tuple[Trial | None, list[float]]:
    """Run a search to its end.

    Returns:
        What it found, and the rates that it tried.
    """
    steps, rates = find_rate(capacity, seed=0), []
    rate, seed = next(steps)
    while True:
        rates.append(rate)
        try:
            rate, seed = steps.send(trial_of(rate, seed))
        except StopIteration as end:
            return end.value, rates


def held_up_to(limit: float) -> Callable[[float, int], Trial]:
    """Trials of a server that holds up to a rate."""
    return lambda rate, seed: Trial(rate, (1.0 if rate <= limit else 99.0,) * 100, 100, 10.0)


@given(limit=st.floats(1.1 / 32, 3.0))
def test_search_finds_the_highest_rate_within_three_percent(limit: float) -> None:
    found, rates = search(1.0, held_up_to(limit))
    assert found is not None
    assert min(limit, 1.0) / 1.031 <= found.rate <= limit
    assert max(rates) <= 1.0, "above the capacity the queue grows without end"
    assert len(rates) < 20


def test_search_that_finds_nothing_has_gone_down_to_a_32nd() -> None:
    found, rates = search(64.0, held_up_to(0.0))
    assert found is None
    assert rates == [32.0, 16.0, 8.0, 4.0, 2.0]


def test_rate_that_does_not_hold_again_is_lowered() -> None:
    steps = find_rate(100.0, seed=7)
    rate, seed = next(steps)
    while seed == 7:
        rate, seed = steps.send(Trial(rate, (1.0 if rate < 60 else 99.0,) * 100, 100, 10.0))
    lowered, again = steps.send(Trial(rate, (99.0,) * 100, 100, 10.0))
    assert lowered == pytest.approx(rate / 1.03)
    assert (seed, again) == (8, 9)


def test_rate_found_for_an_md1_server_is_that_of_the_formula() -> None:
    service, bound = 0.01, 0.05
    # The rate at which exactly 99 % wait no longer than bound - service.
    low, high = 1.0, 99.9
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if md1_waiting_cdf(bound - service, middle, service) > 0.99 else (low, middle)

    def trial_of(rate: float, seed: int) -> Trial:
        latencies = latencies_of(poisson_arrivals(rate, 30_000, seed), service) * 1000
        return Trial(rate, tuple(latencies), 30_000, bound * 1000)

    found, _ = search(1 / service, trial_of)
    assert found is not None
    assert found.rate == pytest.approx(low, rel=0.08)
