"""The search for a ratio, with a function in the place of networks and brute force as the reference."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunedeploy.config.ratio_target import RatioTarget
from prunedeploy.pipeline.ratio.search import GRID, Measured, RatioSearch, bisect_ratio, search_ratio
from prunedeploy_engines.errors import GateError, PruningError

ROBUST, SIZE = RatioTarget("map_pgd", 0.3), RatioTarget("onnx_bytes", 1000.0)


class Tries:
    """Notes what was tried."""

    def __init__(self, meets: Callable[[float], bool]) -> None:
        self.meets = meets
        self.ratios: list[float] = []

    def __call__(self, ratio: float) -> bool:
        self.ratios.append(ratio)
        return self.meets(ratio)


@given(count=st.integers(1, 100), border=st.integers(0, 100), descending=st.booleans())
def test_bisection_finds_what_brute_force_finds(count: int, border: int, descending: bool) -> None:
    ratios = [step / 100 for step in range(count)][:: -1 if descending else 1]
    good = set(ratios[:border])
    tries = Tries(lambda ratio: ratio in good)
    brute_force = None
    for ratio in ratios:
        if ratio in good:
            brute_force = ratio
    assert bisect_ratio(ratios, tries) == brute_force
    assert len(tries.ratios) == len(set(tries.ratios)) <= 2 + math.ceil(math.log2(count))
    assert tries.ratios[0] == 0.0, "the network as it is comes first"


@given(met=st.lists(st.booleans(), min_size=1, max_size=100))
def test_bisection_ends_at_a_border_of_any_function(met: list[bool]) -> None:
    tries = Tries(lambda ratio: met[round(100 * ratio)])
    found = bisect_ratio([step / 100 for step in range(len(met))], tries)
    if found is None:
        assert not met[0]
        return
    at = round(100 * found)
    assert met[at]
    if at + 1 < len(met):
        assert not met[at + 1]
        assert (at + 1) / 100 in tries.ratios, "it was seen that the next one is too much"


@given(
    noise=st.lists(st.floats(-0.02, 0.02), min_size=100, max_size=100),
    wanted=st.floats(0.05, 0.9),
)
def test_bisection_of_a_noisy_trend_is_off_by_no_more_than_the_noise(noise: list[float], wanted: float) -> None:
    """MAP falls from 1 to about 0, with noise of 0.02 either way: farther than that from the target all is clear."""
    values = {step / 100: 1 - step / 100 + noise[step] for step in range(100)}
    found = bisect_ratio(list(values), lambda ratio: values[ratio] >= wanted)
    surely = [ratio for ratio in values if 1 - ratio >= wanted + 0.02]
    possibly = [ratio for ratio in values if 1 - ratio >= wanted - 0.02]
    assert found is not None
    assert surely[-1] <= found <= possibly[-1]


def test_no_ratios_have_no_answer() -> None:
    assert bisect_ratio([], lambda ratio: True) is None


# Searches


def search(target: RatioTarget, value: Callable[[float], float], said: list[str] | None = None) -> RatioSearch:
    lines = [] if said is None else said
    return search_ratio(target, lambda ratio: Measured(value(ratio)), method="unstructured", say=lines.append)


def test_highest_ratio_that_keeps_the_map() -> None:
    # 0.5 - 0.4 r >= 0.3 up to r = 0.5.
    said: list[str] = []
    found = search(ROBUST, lambda ratio: 0.5 - 0.4 * ratio, said)
    assert found.chosen == 0.5
    assert [trial.ratio for trial in found.tried[:2]] == [0.0, 0.99]
    document = found.as_dict(Measured(0.29))
    assert document["target"] == {"option": "--target-map", "measure": "map_pgd", "value": 0.3}
    assert document["tried"][0] == {"ratio": 0.0, "value": 0.5, "meets": True}
    assert {"ratio": 0.51, "value": 0.5 - 0.4 * 0.51, "meets": False} in document["tried"]
    assert document["chosen"] == 0.5
    assert document["rejected"] == []
    assert document["final"] == {"value": 0.29, "meets": False}
    assert said[0] == "search: the highest ratio with a robust mAP of at least 0.3000"
    assert said[1] == "search: trial 1, ratio 0 (not pruned): robust mAP 0.5000, meets the target"
    assert said[2].startswith("search: trial 2, ratio 0.99: robust mAP 0.1040, does not")
    assert said[-1] == f"search: ratio 0.5 chosen, {len(found.tried)} tried"
    assert len(said) == len(found.tried) + 2


def test_lowest_ratio_that_is_small_enough() -> None:
    # 4000 (1 - r) <= 1000 from r = 0.75 on.
    found = search(SIZE, lambda ratio: 4000 * (1 - ratio))
    assert found.chosen == 0.75
    assert {trial.ratio: trial.meets for trial in found.tried}[0.74] is False


def test_target_that_everything_meets_takes_one_or_two_trials() -> None:
    assert search(ROBUST, lambda ratio: 0.4).chosen == 0.99
    small = search(SIZE, lambda ratio: 900)
    assert (small.chosen, len(small.tried)) == (0.0, 1)


@given(reached=st.sets(st.sampled_from(GRID[1:])), wanted=st.floats(0, 1))
def test_ratios_that_cannot_be_reached_are_left_out(reached: set[float], wanted: float) -> None:
    def measure(ratio: float) -> Measured:
        if ratio > 0 and ratio not in reached:
            raise PruningError("cannot be reached", "cfg", "ask for another one")
        return Measured(1 - ratio)

    target = RatioTarget("onnx_bytes", wanted)
    brute_force = [ratio for ratio in (0.0, *sorted(reached)) if 1 - ratio <= wanted]
    if not brute_force:
        with pytest.raises(PruningError, match="cannot be reached"):
            search_ratio(target, measure, method="structured", say=lambda line: None)
        return
    found = search_ratio(target, measure, method="structured", say=lambda line: None)
    assert found.chosen == brute_force[0]
    assert len({trial.ratio for trial in found.tried}) == len(found.tried)
    assert {trial.ratio for trial in found.tried} <= reached | {0.0}


def test_file_that_fails_its_gate_counts_as_too_much_pruning_where_a_trial_is_a_training() -> None:
    tried = []

    def measure(ratio: float) -> Measured:
        tried.append(ratio)
        if ratio > 0.5:
            raise GateError("tensor parity: not finite", "model.onnx")
        return Measured(0.4)

    found = search_ratio(ROBUST, measure, method="structured", say=lambda line: None)
    assert found.chosen == 0.5
    assert len(tried) <= 9
    failed = next(trial for trial in found.tried if trial.ratio == 0.99)
    assert failed.as_dict() == {
        "ratio": 0.99, "value": None, "meets": False, "reason": "tensor parity: not finite",
    }  # fmt: skip


def test_what_is_wrong_without_pruning_is_wrong() -> None:
    def measure(ratio: float) -> Measured:
        raise PruningError("layer 3 has no rule for this activation", "scores", "choose another score")

    with pytest.raises(PruningError, match="no rule for this activation"):
        search_ratio(SIZE, measure, method="structured", say=lambda line: None)


@pytest.mark.parametrize(
    ("target", "value", "says"),
    [
        # Before pruning 0.2, which no pruning can raise to 0.3.
        (ROBUST, lambda ratio: 0.2 - ratio / 10, "robust mAP 0.3000 cannot be reached: before it is pruned the "
         "network has 0.2000; ask for less, or pre-train longer"),
        # At 0.01: 0.31 - 0.001 - 0.029 = 0.28, although the network as it is has 0.31.
        (ROBUST, lambda ratio: 0.31 - ratio / 10 - (0.029 if ratio else 0), "cannot be reached: the best is 0.2800 at "
         "ratio 0.01, without pruning it is 0.3100; ask for less, or fine-tune longer"),
        # 5000 - 3900 * 0.99 = 1139 bytes.
        (SIZE, lambda ratio: 5000 - 3900 * ratio, "--target-size: size 1.000 kB cannot be reached: the best is "
         "1.139 kB at ratio 0.99, without pruning it is 5.000 kB; ask for that much or more"),
        (RatioTarget("latency_ms", 5.0), lambda ratio: 8 - 0.1 * ratio, "the best is 7.901 ms at ratio 0.99, "
         "without pruning it is 8.000 ms, so unstructured pruning gains nothing here; remove filters with --method"),
    ],
)  # fmt: skip
def test_target_out_of_reach_says_what_can_be_had(
    target: RatioTarget, value: Callable[[float], float], says: str
) -> None:
    with pytest.raises(PruningError) as caught:
        search(target, value)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_method_that_reaches_no_ratio() -> None:
    def measure(ratio: float) -> Measured:
        if ratio > 0:
            raise PruningError("nothing can be removed", "net.cfg")
        return Measured(5000)

    said: list[str] = []
    with pytest.raises(PruningError, match=r"yields no usable network \(nothing can be removed\); "):
        search_ratio(SIZE, measure, method="structured", say=said.append)
    assert said[2:] == ["search: ratio 0.99 is left out, as others may be: nothing can be removed"], "said once"


def test_noise_is_said_and_recorded() -> None:
    said: list[str] = []
    target = RatioTarget("latency_ms", 5.0)
    found = search_ratio(
        target, lambda ratio: Measured(9 - 8 * ratio, ratio > 0.9), method="structured", say=said.append
    )
    assert found.chosen == 0.5  # 9 - 8 r <= 5 from r = 0.5 on
    noisy = {trial.ratio: trial.as_dict().get("noisy", False) for trial in found.tried}
    assert (noisy[0.99], noisy[0.5]) == (True, False)
    assert any("ratio 0.99: median latency 1.080 ms (noisy), meets" in line for line in said)
    assert found.as_dict(Measured(5.1, True))["final"] == {"value": 5.1, "meets": False, "noisy": True}


# Trained networks that have more than their trials


@given(factors=st.lists(st.floats(0.7, 1.6), min_size=100, max_size=100), wanted=st.floats(0.01, 1.1))
def test_what_is_chosen_is_small_enough_once_trained(factors: list[float], wanted: float) -> None:
    """Trials have 1 - r; trained networks anything from 0.7 to 1.6 times that."""
    trained = {ratio: (1 - ratio) * factor for ratio, factor in zip(GRID, factors, strict=True)}
    confirmed: list[float] = []

    def confirm(ratio: float) -> Measured:
        confirmed.append(ratio)
        return Measured(trained[ratio])

    def find() -> RatioSearch:
        return search_ratio(
            RatioTarget("onnx_bytes", wanted),
            lambda ratio: Measured(1 - ratio),
            method="structured",
            confirm=confirm,
            say=lambda line: None,
        )

    possible = [ratio for ratio in GRID if 1 - ratio <= wanted]
    if not possible:
        with pytest.raises(PruningError, match="the best is"):
            find()
        assert confirmed == []
        return
    try:
        found = find()
    except PruningError as caught:
        found = None
        line = str(caught)
    if found is None:
        best = confirmed[-1]
        assert trained[best] > wanted
        assert f"at ratio {best:g}" in line
        # In the proportion of the last one that was trained, not even the highest ratio would do.
        assert (1 - GRID[-1]) * trained[best] / (1 - best) > wanted
    else:
        assert trained[found.chosen] <= wanted
        assert found.chosen == confirmed[-1]
        assert [trial.ratio for trial in found.rejected] == confirmed[:-1]
        assert all(trial.value == trained[trial.ratio] > wanted for trial in found.rejected)
    assert confirmed[0] == possible[0]
    assert confirmed == sorted(set(confirmed)), "from one to the next the ratio rises"


def test_constant_surplus_of_training_takes_two_trainings() -> None:
    # 4000 (1 - r) * 1.25 <= 1000 from r = 0.8 on; the trials alone say 0.75, where it is 1250.
    said: list[str] = []
    found = search_ratio(
        SIZE,
        lambda ratio: Measured(4000 * (1 - ratio)),
        method="structured",
        confirm=lambda ratio: Measured(5000 * (1 - ratio)),
        say=said.append,
    )
    assert found.chosen == 0.8
    assert found.as_dict()["rejected"] == [{"ratio": 0.75, "value": 1250.0, "meets": False}]
    assert "search: ratio 0.75 once trained: size 1.250 kB, does not meet the target" in said
