"""The search for the pruning ratio that meets a target: bisection, what it tried, and what it says if there is none.

What a trial measures is in `trials`; here a trial is a function from a ratio to a value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from prunedeploy.config.ratio_target import RatioTarget
from prunedeploy_engines.errors import GateError, PruningError

GRID = tuple(round(step / 100, 2) for step in range(100))
"""Ratios that are searched: 0, 0.01, ..., 0.99."""

NO_GAIN = 0.95
"""A best value above this part of the unpruned network's is called no gain: the noise of a short measurement."""


@dataclass(frozen=True)
class Measured:
    """What a network has of the target's measure.

    Attributes:
        value: In the measure's unit.
        noisy: A latency whose coefficient of variation was above 0.1.
    """

    value: float
    noisy: bool = False


@dataclass(frozen=True)
class Trial:
    """One ratio that was tried.

    Attributes:
        ratio: Asked for.
        value: Value of the target's measure; None if there is no such network.
        meets: Whether the value meets the target.
        noisy: See `Measured`.
        reason: Why there is no such network.
    """

    ratio: float
    value: float | None
    meets: bool
    noisy: bool = False
    reason: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        always = ("ratio", "value", "meets")
        return {name: value for name, value in asdict(self).items() if name in always or value}


@dataclass(frozen=True)
class RatioSearch:
    """A search that found a ratio.

    Attributes:
        target: What was searched for.
        tried: In the order of the search.
        chosen: The ratio.
        rejected: Ratios whose trials met the target while their trained networks did not.
    """

    target: RatioTarget
    tried: tuple[Trial, ...]
    chosen: float
    rejected: tuple[Trial, ...] = ()

    def as_dict(self, final: Measured | None = None) -> dict[str, Any]:
        """What ``results.json`` has under ``search``.

        Args:
            final: What the finished network has, None if it was not measured.
        """
        finished = None
        if final is not None:
            finished = {"value": final.value, "meets": self.target.is_met_by(final.value)}
            finished |= {"noisy": True} if final.noisy else {}
        return {
            "target": self.target.as_dict(),
            "tried": [trial.as_dict() for trial in self.tried],
            "rejected": [trial.as_dict() for trial in self.rejected],
            "chosen": self.chosen,
            "final": finished,
        }


def bisect_ratio(ratios: Sequence[float], meets: Callable[[float], bool]) -> float | None:
    """Find the last of some ratios that meets a target, if those before it meet it too and those after it do not.

    Where that is so only in trend, the answer is one of the borders: it meets the target, and the next ratio, if there
    is one, does not.

    Args:
        ratios: From the one that meets the target most easily to the one that is wanted most; ascending or
            descending.
        meets: Tries a ratio. Called at most once for each, first for the lower end of the ratios, which is the
            network as it is, then for the other end if that is not the answer yet.

    Returns:
        None if the first ratio does not meet the target.
    """
    if not ratios:
        return None
    first, last = 0, len(ratios) - 1
    for end in sorted({first, last}, key=lambda at: ratios[at]):
        met = meets(ratios[end])
        if end == last and met:
            return ratios[last]
        if end == first and not met:
            return None
    while last - first > 1:
        middle = (first + last) // 2
        if meets(ratios[middle]):
            first = middle
        else:
            last = middle
    return ratios[first]


def search_ratio(
    target: RatioTarget,
    measure: Callable[[float], Measured],
    *,
    method: str,
    ratios: Sequence[float] = GRID,
    confirm: Callable[[float], Measured] | None = None,
    say: Callable[[str], None],
) -> RatioSearch:
    """Find the highest ratio that keeps an mAP, or the lowest that comes down to a latency or size.

    Args:
        target: What is searched for.
        measure: What the network pruned at a ratio has. A `PruningError` means that the ratio cannot be reached:
            it is left out. So is one whose file fails a gate; where a trial is a training, it counts as one that does
            not meet the target instead, since more pruning will not fix it.
        method: Pruning method, for what is said.
        ratios: Ascending, the first 0.
        confirm: For a latency or size, what the trained network has at the ratio that was found. While that is too
            much, the search goes on for trials that are smaller in the same proportion.
        say: Called with a line for every trial.

    Raises:
        PruningError: No ratio meets the target; says what the best one has.
    """
    trials = _Trials(target, measure, ratios, say)
    rejected: list[Trial] = []
    bound = target.value
    say(f"search: {target.aim}")
    while True:
        chosen = trials.last_within(bound)
        if chosen is None or (target.is_accuracy and chosen == 0):
            raise _unreachable(target, trials, rejected, method)
        if confirm is None:
            break
        trained, tried = confirm(chosen), trials.tried[chosen].value
        assert tried is not None, "a ratio without a network is not chosen"
        if target.is_met_by(trained.value):
            break
        rejected.append(Trial(chosen, trained.value, False, trained.noisy))
        say(f"search: ratio {chosen:g} once trained: {target.show(trained.value)}, does not meet the target")
        bound = min(target.value * tried / trained.value, math.nextafter(tried, 0.0))
    say(f"search: ratio {chosen:g} chosen, {len(trials.tried)} tried")
    return RatioSearch(target, tuple(trials.tried.values()), chosen, tuple(rejected))


@dataclass
class _Trials:
    """Trials of one search, none of them made twice.

    Attributes:
        target: See `search_ratio`, also for the others.
        measure: What a network has.
        ratios: Ascending.
        say: Called with a line for every trial.
        tried: By ratio.
        left_out: Ratios without a network, and why.
    """

    target: RatioTarget
    measure: Callable[[float], Measured]
    ratios: Sequence[float]
    say: Callable[[str], None]
    tried: dict[float, Trial] = field(default_factory=dict)
    left_out: dict[float, str] = field(default_factory=dict)

    def last_within(self, bound: float) -> float | None:
        """Bisect for a target of this value; ratios that turn out to have no network are left out on the way."""
        target = replace(self.target, value=bound)

        def meets(ratio: float) -> bool:
            value = self._trial(ratio).value
            return value is not None and target.is_met_by(value)

        easiest_first = self.ratios if target.is_accuracy else self.ratios[::-1]
        while True:
            try:
                return bisect_ratio([ratio for ratio in easiest_first if ratio not in self.left_out], meets)
            except _LeftOutError:
                continue

    def _trial(self, ratio: float) -> Trial:
        if ratio not in self.tried:
            self.tried[ratio] = self._made(ratio)
            self.say(_line(self.target, len(self.tried), self.tried[ratio]))
        return self.tried[ratio]

    def _made(self, ratio: float) -> Trial:
        try:
            found = self.measure(ratio)
        except (PruningError, GateError) as error:
            if ratio == 0:
                raise  # nothing was pruned: this is wrong with every ratio
            if self.target.is_accuracy and isinstance(error, GateError):
                return Trial(ratio, None, False, reason=error.what)
            if not self.left_out:
                self.say(f"search: ratio {ratio:g} is left out, as others may be: {error.what}")
            self.left_out[ratio] = error.what
            raise _LeftOutError from None
        return Trial(ratio, found.value, self.target.is_met_by(found.value), found.noisy)


class _LeftOutError(Exception):
    """A ratio that there is no network of: bisection starts again without it, and asks for nothing twice."""


def _line(target: RatioTarget, number: int, trial: Trial) -> str:
    unpruned = " (not pruned)" if trial.ratio == 0 else ""
    found = trial.reason if trial.value is None else target.show(trial.value)
    verdict = "" if trial.value is None else ", meets the target" if trial.meets else ", does not meet the target"
    noise = " (noisy)" if trial.noisy else ""
    return f"search: trial {number}, ratio {trial.ratio:g}{unpruned}: {found}{noise}{verdict}"


def _unreachable(target: RatioTarget, trials: _Trials, rejected: Sequence[Trial], method: str) -> PruningError:
    """The error that says what can be had instead."""
    unpruned = trials.tried[0.0].value
    assert unpruned is not None, "an error at ratio 0 is raised"
    wanted = f"{target.show(target.value)} cannot be reached"
    if target.is_accuracy and not target.is_met_by(unpruned):
        what = f"{wanted}: before it is pruned the network has {target.show_number(unpruned)}"
        return PruningError(what, target.option, "ask for less, or pre-train longer")
    pruned = {ratio: trial.value for ratio, trial in trials.tried.items() if ratio > 0 and trial.value is not None}
    if not pruned:
        reasons = [*trials.left_out.values(), *(trial.reason for trial in trials.tried.values() if trial.reason)]
        what = f"{wanted}: {method} pruning yields no usable network ({reasons[-1]})"
        return PruningError(what, target.option, "choose another --method")
    if rejected:
        best = rejected[-1]
        assert best.value is not None, "it was rejected for its value"
        what = f"{wanted}: the best trained network has {target.show_number(best.value)} at ratio {best.ratio:g}"
        return PruningError(what, target.option, "ask for that much or more")
    ratio = (max if target.is_accuracy else min)(pruned, key=lambda ratio: pruned[ratio])
    what = f"{wanted}: the best is {target.show_number(pruned[ratio])} at ratio {ratio:g}, "
    what += f"without pruning it is {target.show_number(unpruned)}"
    if target.is_accuracy:
        return PruningError(what, target.option, "ask for less, or fine-tune longer")
    if pruned[ratio] > NO_GAIN * unpruned:
        what += f", so {method} pruning gains nothing here"
        if method != "structured":
            return PruningError(what, target.option, "remove filters with --method structured, or ask for more")
    return PruningError(what, target.option, "ask for that much or more")
