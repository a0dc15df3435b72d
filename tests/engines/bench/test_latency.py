from __future__ import annotations

import multiprocessing
import os
import stat
from functools import partial
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunedeploy_engines.bench import latency
from prunedeploy_engines.bench.latency import (
    LatencySamples,
    Plan,
    achieved_gflops,
    percentile,
    run_rounds,
    samples_of,
    summarise,
    timed_block,
    warm_up,
)
from prunedeploy_engines.locks import measuring_lock

times = st.lists(st.floats(1e-3, 1e5), min_size=1, max_size=50)


def test_percentiles_of_five_samples_by_hand() -> None:
    # Sorted 1 2 3 4 10; position of q is 4 q / 100: p50 at 2 -> 3; p90 at 3.6 -> 4 + .6 * 6 = 7.6; p25 at 1
    # -> 2.
    samples = [4.0, 1.0, 10.0, 3.0, 2.0]
    assert percentile(samples, 50) == 3.0
    assert percentile(samples, 90) == pytest.approx(7.6)
    assert percentile(samples, 25) == 2.0
    assert (percentile(samples, 0), percentile(samples, 100)) == (1.0, 10.0)


@given(samples=times, q=st.floats(0, 100))
def test_percentile_equals_numpy(samples: list[float], q: float) -> None:
    assert percentile(samples, q) == pytest.approx(np.percentile(samples, q), rel=1e-9)


@pytest.mark.parametrize(("samples", "q"), [([], 50), ([1.0], -1), ([1.0], 101)])
def test_percentile_of_nothing_or_beyond_100_is_refused(samples: list[float], q: float) -> None:
    with pytest.raises(ValueError, match=r"samples|q must"):
        percentile(samples, q)


def test_summary_of_four_samples_by_hand() -> None:
    # Mean 5; squared deviations 9 + 1 + 1 + 9 = 20, / 3 -> std 2.582; cv .516; 8 images in 5 ms -> 1600 / s.
    row = summarise([2.0, 4.0, 6.0, 8.0], batch=8)
    assert row["mean"] == 5.0
    assert row["std"] == pytest.approx((20 / 3) ** 0.5)
    assert row["cv"] == pytest.approx((20 / 3) ** 0.5 / 5)
    assert row["images_per_s"] == pytest.approx(1600)
    assert (row["min"], row["p50"], row["max"], row["n"]) == (2.0, 5.0, 8.0, 4)
    assert row["noisy"] is True


@given(samples=times)
def test_summary_equals_numpy(samples: list[float]) -> None:
    row = summarise(samples)
    assert row["mean"] == pytest.approx(np.mean(samples))
    assert row["std"] == pytest.approx(np.std(samples, ddof=1) if len(samples) > 1 else 0.0, abs=1e-9)
    for q in (50, 90, 95, 99):
        assert row[f"p{q}"] == pytest.approx(np.percentile(samples, q))


def test_steady_row_is_not_noisy() -> None:
    assert summarise([10.0, 10.1, 9.9])["noisy"] is False
    assert summarise([10.0])["cv"] == 0.0


def test_an_outlier_is_kept() -> None:
    samples = LatencySamples((1.0,) * 99 + (1000.0,), batch=2)
    row = samples.summary()
    assert row["max"] == 1000.0
    assert row["n"] == 100
    assert row["mean"] == pytest.approx(10.99)
    assert (row["batch"], row["kind"]) == (2, "host")


def test_no_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="no samples"):
        summarise([])


class Clock:
    """A clock that moves only when a call lasts; in seconds."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def call_of(self, milliseconds: float) -> object:
        def call() -> None:
            self.now += milliseconds / 1000

        return call


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(latency, "time", clock)
    return clock


def test_block_keeps_every_sample_in_milliseconds(clock: Clock) -> None:
    durations = iter([1.0, 2.0, 3.0])

    def call() -> None:
        clock.now += next(durations) / 1000

    assert timed_block(call, seconds=0.0, calls=3) == pytest.approx([1.0, 2.0, 3.0])


def test_block_lasts_for_calls_and_for_seconds(clock: Clock) -> None:
    assert len(timed_block(clock.call_of(250), seconds=1.0, calls=2)) == 4
    assert len(timed_block(clock.call_of(250), seconds=1.0, calls=9)) == 9


def test_warm_up_lasts_for_calls_and_for_seconds(clock: Clock) -> None:
    warm_up(clock.call_of(250), seconds=1.0, calls=2)
    assert clock.now == pytest.approx(1.0)
    warm_up(clock.call_of(250), seconds=1.0, calls=8)
    assert clock.now == pytest.approx(3.0)


def test_rounds_take_what_the_plan_asks(clock: Clock) -> None:
    plan = Plan(seconds=2.0, min_calls=50, rounds=5)
    calls = {"fast": clock.call_of(1.0), "slow": clock.call_of(100.0)}
    blocks = {
        name: partial(timed_block, call, seconds=plan.block_s, calls=plan.block_calls) for name, call in calls.items()
    }
    measured = run_rounds(blocks, plan.rounds)
    result = {name: samples_of(measured[name], batch, "host") for name, batch in (("fast", 1), ("slow", 4))}
    # fast: 5 rounds of .4 s are 400 calls of 1 ms each; slow: 5 rounds of 10 calls, since 4 would fill .4 s.
    assert result["fast"].round_sizes == pytest.approx((400,) * 5, abs=1)
    assert result["slow"].round_sizes == (10,) * 5
    assert result["slow"].summary()["mean"] == pytest.approx(100.0)
    assert result["slow"].summary()["images_per_s"] == pytest.approx(40.0)
    assert result["fast"].summary()["images_per_s"] == pytest.approx(1000.0)


def test_models_take_turns_in_alternating_order() -> None:
    turns: list[str] = []

    def block_of(name: str) -> object:
        return lambda: turns.append(name) or [1.0]

    samples = run_rounds({name: block_of(name) for name in "abc"}, 3)
    assert "".join(turns) == "abccbaabc"
    assert samples["b"] == [[1.0]] * 3


def test_defaults_are_those_of_the_method() -> None:
    plan = Plan()
    assert (plan.seconds, plan.min_calls, plan.warmup_s, plan.warmup_calls) == (10.0, 200, 0.5, 10)
    assert plan.block_s * plan.rounds >= 10.0
    assert Plan(min_calls=201).block_calls * plan.rounds >= 201
    with pytest.raises(ValueError, match="rounds"):
        Plan(rounds=0)


def test_a_mac_is_two_flops() -> None:
    # 1e9 MACs in 10 ms: 2e9 / .01 = 2e11 FLOP/s = 200 GFLOP/s.
    assert achieved_gflops(1e9, 10.0) == pytest.approx(200.0)


def _hold(path: Path, held: Event, release: Event) -> None:
    with measuring_lock(path):
        held.set()
        release.wait(60)


def _take(path: Path, taken: Event) -> None:
    with measuring_lock(path):
        taken.set()


def test_one_process_measures_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    context = multiprocessing.get_context("spawn")
    held, release, taken = context.Event(), context.Event(), context.Event()
    first = context.Process(target=_hold, args=(path, held, release))
    first.start()
    assert held.wait(60)
    second = context.Process(target=_take, args=(path, taken))
    second.start()
    assert not taken.wait(1.5), "the second must wait for the first"
    release.set()
    assert taken.wait(60)
    for process in (first, second):
        process.join(60)
        assert process.exitcode == 0


def test_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(path, held, release))
    process.start()
    assert held.wait(60)
    process.kill()
    process.join(60)
    with measuring_lock(path):
        pass


def test_lock_may_be_taken_again_inside(tmp_path: Path) -> None:
    with measuring_lock(tmp_path / "lock"), measuring_lock(tmp_path / "lock"):
        pass


def test_lock_file_is_open_to_every_user(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        with measuring_lock(tmp_path / "lock"):
            assert stat.S_IMODE((tmp_path / "lock").stat().st_mode) == 0o666
    finally:
        os.umask(before)
