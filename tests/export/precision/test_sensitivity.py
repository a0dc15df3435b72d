"""Which convolutions int8 hurts, and how few of them are left out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper

from export.precisions import every_block, one_convolution, run, true_ranges, write_network
from prunedeploy_engines.errors import GateError
from prunedeploy_export.graph.edit import convolutions
from prunedeploy_export.precision.quantisation import plan_quantisation
from prunedeploy_export.precision.sensitivity import ConvolutionCost, convolution_costs, skip_within_budget

IMAGES = np.random.default_rng(0).random((3, 3, 32, 32), dtype=np.float32)


def scale_weights(model: ModelProto, name: str, index: tuple, factor: float) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    values = numpy_helper.to_array(tensor).copy()
    values[index] *= factor
    tensor.CopyFrom(numpy_helper.from_array(values, name))


def costs_of(model: ModelProto, activations: str) -> dict[str, float]:
    ranges = true_ranges(model, plan_quantisation(model, "uint8").tensors, IMAGES)
    costs = convolution_costs(model, ranges, IMAGES, activations=activations, threads=1)
    assert [cost.name for cost in costs] == [node.name for node in convolutions(model.graph)]
    return {cost.name: cost.error for cost in costs}


def test_convolution_that_is_made_sensitive_costs_most(tmp_path):
    # One channel between layers 3 and 4 becomes 1000 times as large and is read 1000 times as weakly: in float nothing
    # changes, in 8 bits all the other channels between the two are rounded away.
    model = write_network(every_block("leaky"), tmp_path / "model.onnx")
    (before,) = run(model, IMAGES, ["layer15"])
    ordinary = costs_of(model, "int8")
    assert ordinary["layer4/conv"] < 2 * ordinary["layer2/conv"]
    scale_weights(model, "layer3/weight", np.s_[2], 1000)
    scale_weights(model, "layer3/bias", np.s_[2], 1000)
    scale_weights(model, "layer4/weight", np.s_[:, 2], 1 / 1000)
    np.testing.assert_allclose(run(model, IMAGES, ["layer15"])[0], before, rtol=1e-3, atol=1e-3)

    signed = costs_of(model, "int8")  # quantises what a convolution reads
    ranked = sorted(signed, key=signed.get, reverse=True)
    assert ranked[0] == "layer4/conv"
    assert signed[ranked[0]] > 5 * signed[ranked[1]]
    unsigned = costs_of(model, "uint8")  # and what it gives
    ranked = sorted(unsigned, key=unsigned.get, reverse=True)
    assert set(ranked[:2]) == {"layer3/conv", "layer4/conv"}
    assert unsigned[ranked[1]] > 5 * unsigned[ranked[2]]


@pytest.mark.parametrize("seed", range(3))
def test_cost_is_the_relative_squared_error_of_the_head(seed):
    rng = np.random.default_rng(seed)
    weight, bias = rng.normal(size=(4, 3, 3, 3)).astype(np.float32), rng.normal(size=4).astype(np.float32)
    images = rng.random((3, 3, 6, 6), dtype=np.float32)
    model = one_convolution(weight, bias)
    ranges = true_ranges(model, ["images", "conv"], images)
    (cost,) = convolution_costs(model, ranges, images, activations="int8", threads=1)
    steps = np.abs(weight).max(axis=(1, 2, 3), keepdims=True) / 127
    step = images.max() / 127
    coarse = one_convolution(np.rint(weight / steps) * steps, bias)
    (exact,), (found,) = run(model, images, ["conv"]), run(coarse, np.rint(images / step) * step, ["conv"])
    assert cost.error == pytest.approx(((found - exact) ** 2).sum() / (exact**2).sum(), rel=0.01)
    assert cost.sqnr_db == pytest.approx(10 * np.log10((exact**2).sum() / ((found - exact) ** 2).sum()), abs=0.05)


def test_no_error_is_infinitely_many_decibels():
    assert ConvolutionCost("a", 0.0).sqnr_db == math.inf
    assert ConvolutionCost("a", 1e-4).sqnr_db == pytest.approx(40)


class Loss:
    """Loses 0.1 for every convolution that is not left out, and remembers what it was asked."""

    def __init__(self, count: int) -> None:
        self.count, self.asked = count, []

    def __call__(self, skipped) -> float:
        self.asked.append(tuple(skipped))
        return (self.count - len(skipped)) / 10


def costs(count: int) -> list[ConvolutionCost]:
    """c0, c1... in the order of a graph; c7 costs most, then c0, then c8..."""
    return [ConvolutionCost(f"c{number}", float((number * 3 + 14) % 12)) for number in range(count)]


RANKED = [cost.name for cost in sorted(costs(12), key=lambda cost: -cost.error)]


def test_nothing_is_left_out_if_nothing_is_lost():
    loss = Loss(0)
    assert skip_within_budget(costs(12), [], loss, 0.0) == ((), ((0, 0.0),))
    assert loss.asked == [()]


def test_more_is_left_out_until_the_network_is_accepted():
    seen = []

    def accepted(skipped) -> bool:
        seen.append(len(skipped))
        return len(skipped) >= 4

    skipped, trials = skip_within_budget(costs(12), [], Loss(12), 1.1, accepted=accepted)
    assert skipped == tuple(RANKED[:4])
    assert seen == [1, 2, 4]  # with none left out the loss is above the budget, so nobody is asked
    assert [count for count, _ in trials] == [0, 1, 2, 4]


def test_of_those_within_the_budget_the_last_is_returned_if_none_is_accepted():
    skipped, trials = skip_within_budget(costs(12), [], Loss(12), 0.8, accepted=lambda skipped: False)
    assert skipped == tuple(RANKED[:6])
    assert [count for count, _ in trials] == [0, 1, 2, 4, 6]


def test_those_that_cost_most_are_left_out_by_doubling():
    loss = Loss(12)
    skipped, trials = skip_within_budget(costs(12), [], loss, 0.8)
    assert [len(names) for names in loss.asked] == [0, 1, 2, 4]
    assert loss.asked == [tuple(RANKED[:count]) for count in (0, 1, 2, 4)]
    assert skipped == tuple(RANKED[:4])
    assert trials == ((0, 1.2), (1, 1.1), (2, 1.0), (4, 0.8))


def test_loss_of_exactly_the_budget_is_within():
    assert skip_within_budget(costs(12), [], Loss(12), 1.1)[0] == tuple(RANKED[:1])
    assert skip_within_budget(costs(12), [], Loss(12), 1.0999)[0] == tuple(RANKED[:2])


def test_what_is_always_left_out_is_in_every_trial_and_never_counted():
    always = [RANKED[0], RANKED[-1]]
    loss = Loss(12)
    skipped, trials = skip_within_budget(costs(12), always, loss, 0.8)
    assert loss.asked == [(*always, *RANKED[1 : 1 + count]) for count in (0, 1, 2)]
    assert skipped == (*always, *RANKED[1:3])
    assert trials == ((0, 1.0), (1, 0.9), (2, 0.8))


def test_half_is_the_most_and_beyond_it_is_an_error_with_the_trials():
    loss = Loss(12)
    with pytest.raises(GateError, match=r"budget of 0\.05.*0: 1\.2000, 1: 1\.1000.*4: 0\.8000, 6: 0\.6000") as caught:
        skip_within_budget(costs(12), [], loss, 0.05)
    assert [len(names) for names in loss.asked] == [0, 1, 2, 4, 6]
    assert "\n" not in str(caught.value)
    assert "deploy fp16" in str(caught.value)


@pytest.mark.parametrize(("share", "sizes"), [(0.0, [0]), (0.25, [0, 1, 2, 3]), (1.0, [0, 1, 2, 4, 8, 12])])
def test_share_that_may_be_left_out_is_kept(share, sizes):
    loss = Loss(12)
    with pytest.raises(GateError):
        skip_within_budget(costs(12), [], loss, -1.0, largest_share=share)
    assert [len(names) for names in loss.asked] == sizes


def test_no_set_is_tried_twice_and_trials_say_what_was_left_out():
    loss = Loss(6)
    always = [f"c{number}" for number in range(4)]
    with pytest.raises(GateError, match=r"\(0: 0\.2000, 1: 0\.1000, 2: 0\.0000\)"):
        skip_within_budget(costs(6), always, loss, -1.0)
    assert len(set(loss.asked)) == len(loss.asked) == 3
    loss = Loss(6)
    with pytest.raises(GateError, match=r"\(0: 0\.1000, 1: 0\.0000\)"):
        skip_within_budget(costs(6), [*always, "c4"], loss, -1.0)
    assert len(loss.asked) == 2


def test_loss_that_is_no_number_is_never_within():
    with pytest.raises(GateError):
        skip_within_budget(costs(4), [], lambda skipped: math.nan, 1.0)
