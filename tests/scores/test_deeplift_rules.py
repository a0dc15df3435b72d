"""DeepLIFT's rules for activations: the formulas of the paper, and its worked examples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from prunedeploy.models import Darknet, load_darknet
from prunedeploy.models.sections.activations import activate
from prunedeploy.scores import choose_target, gradient_x_input_scores
from prunedeploy.scores.activation_slopes import secant
from prunedeploy.scores.deeplift_rules.slopes import reveal_cancel_slopes
from prunedeploy_engines.errors import PruningError
from pruning.darknets import ACTIVATIONS, network
from scores.dense_deeplift import DERIVATIVES, FUNCTIONS, reveal_cancel
from scores.examples import NO_TARGETS, Batch, contributions, sum_of_heads

NUMBER = st.floats(-30, 30)


def f64(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


ACTIVATIONS = (*ACTIVATIONS, "leaky:0.25")


@pytest.mark.parametrize("activation", ACTIVATIONS)
@given(a=NUMBER, b=NUMBER)
def test_secant_is_the_quotient_of_differences(activation: str, a: float, b: float) -> None:
    slope = float(secant(f64(a), f64(b), activation))
    f, df = FUNCTIONS[activation], DERIVATIVES[activation]
    if abs(a - b) > 1e-3:
        # The literal quotient is good to 1e-16 * |f| / |a - b|.
        assert slope == pytest.approx((f(a) - f(b)) / (a - b), rel=1e-9, abs=1e-11)
    elif a * b > 0:
        # Mean-value theorem: between two close points it is some slope between, and all of them are alike.
        assert slope == pytest.approx(df((a + b) / 2), rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@given(a=NUMBER)
def test_secant_of_one_point_is_the_derivative(activation: str, a: float) -> None:
    x = f64(a).requires_grad_()
    (slope,) = torch.autograd.grad(activate(x, activation).sum(), x)
    assert float(secant(x.detach(), x.detach(), activation)) == pytest.approx(float(slope), rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_float32_secants_of_close_points_keep_their_digits(activation: str) -> None:
    generator = torch.Generator().manual_seed(0)
    a = 8 * torch.rand(20000, generator=generator) - 4
    distance = a.abs() * 10 ** (-7 * torch.rand(20000, generator=generator))
    b = a + distance * torch.randn(20000, generator=generator).sign()
    exact = secant(a.double(), b.double(), activation)
    error = ((secant(a, b, activation).double() - exact).abs() / exact.abs().clamp(min=1e-2)).max()
    assert float(error) < 1e-5
    if activation not in ("linear", "relu", "leaky", "leaky:0.25", "relu6"):
        # What it is for: the literal quotient in float32 is off by a hundredth and more.
        different = a != b
        literal = ((activate(a, activation) - activate(b, activation)) / (a - b))[different].double()
        assert float((literal - exact[different]).abs().max()) > 1e-2


def test_secants_far_out_are_finite_and_right() -> None:
    x = torch.tensor([-1e4, -200.0, -90.0, 90.0, 200.0, 1e4])
    for activation in ACTIVATIONS:
        slopes = secant(x[:, None], x[None, :], activation)
        assert bool(torch.isfinite(slopes).all())
    # From -1e4 to 1e4 mish, swish and relu rise by 1e4 in 2e4; logistic by 1.
    assert [float(secant(x[5], x[0], name)) for name in ("relu", "mish", "swish")] == pytest.approx([0.5] * 3)
    assert float(secant(x[5], x[0], "logistic")) == pytest.approx(1 / 2e4)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@given(z0=NUMBER, positive=st.floats(0, 30), negative=st.floats(-30, 0))
def test_reveal_cancel_is_the_formula_of_the_paper(
    activation: str, z0: float, positive: float, negative: float
) -> None:
    slopes = reveal_cancel_slopes(f64(z0), f64(positive), f64(negative), activation)
    f, df = FUNCTIONS[activation], DERIVATIVES[activation]
    # Both parts together are the whole difference, whatever the order.
    total = float(slopes.positive) * positive + float(slopes.negative) * negative
    assert total == pytest.approx(f(z0 + positive + negative) - f(z0), rel=1e-9, abs=1e-9)
    if positive > 1e-3 and negative < -1e-3:
        up, down = reveal_cancel(z0 + positive + negative, z0, positive, negative, f, df)
        assert float(slopes.positive) == pytest.approx(up, rel=1e-9, abs=1e-10)
        assert float(slopes.negative) == pytest.approx(down, rel=1e-9, abs=1e-10)


def test_reveal_cancel_of_relu_worked_by_hand() -> None:
    # From 1 with parts +2 and -4 to -1. The positive one: 3 - 1 alone, 0 - 0 after the other, in the mean 1;
    # the negative one: 0 - 1 alone, 0 - 3 after the other, in the mean -2.
    slopes = reveal_cancel_slopes(f64(1.0), f64(2.0), f64(-4.0), "relu")
    assert float(slopes.positive) == pytest.approx(1 / 2)
    assert float(slopes.negative) == pytest.approx(-2 / -4)


def test_an_activation_without_a_rule_is_named() -> None:
    with pytest.raises(PruningError, match="no rule for the activation gelu; use another score"):
        secant(f64(1.0), f64(0.0), "gelu")


def two_inputs(weights: list[list[float]], biases: list[float], output: list[float]) -> Darknet:
    """``objectness = output . relu(weights (i1, i2) + biases)`` of an image of one pixel; the class logit is 0."""
    cfg = network(
        f"convolutional filters={len(weights)} size=1 activation=relu",
        "convolutional filters=6 size=1 activation=linear",
        "yolo mask=0 anchors=4,5 classes=1",
        size=1,
        channels=len(weights[0]),
    )
    model = load_darknet(cfg)
    with torch.no_grad():
        model.conv(0).weight.copy_(torch.tensor(weights)[:, :, None, None])
        model.conv(0).bias.copy_(torch.tensor(biases))
        model.conv(1).weight.zero_()
        model.conv(1).weight[4] = torch.tensor(output)[:, None, None]
        model.conv(1).bias.zero_()
    return model.double()


def explained(model: Darknet, inputs: list[float], rule: str) -> dict[int, np.ndarray]:
    """Contributions of all weights against a reference of zeros."""
    images = torch.tensor(inputs, dtype=torch.float64).view(1, -1, 1, 1)
    with torch.no_grad():
        target = choose_target(model, model(images), 1)
    found = contributions(model, images, torch.zeros_like(images), target, rule)
    return {index: value[0].squeeze((2, 3)).numpy() for index, value in found.items()}


MINIMUM = ([[1.0, 0.0], [1.0, -1.0]], [0.0, 0.0], [1.0, -1.0])  # min(i1, i2) = i1 - relu(i1 - i2)


def test_minimum_rescale_gives_all_to_the_smaller_input() -> None:
    # i1 = 3, i2 = 2: relu passes, slope 1. i1: 3 by h1 and -3 by h2, in all 0; i2: -1 * -1 * 2 = 2.
    found = explained(two_inputs(*MINIMUM), [3.0, 2.0], "rescale")
    assert found[0].tolist() == [[3.0, 0.0], [-3.0, 2.0]]
    assert found[0].sum(0).tolist() == [0.0, 2.0]
    # i1 = 2, i2 = 3: relu is off on both, slope 0, so only h1 counts.
    found = explained(two_inputs(*MINIMUM), [2.0, 3.0], "rescale")
    assert found[0].tolist() == [[2.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize(("i1", "i2"), [(3.0, 2.0), (2.0, 3.0), (5.0, 0.5)])
def test_minimum_reveal_cancel_gives_each_input_half(i1: float, i2: float) -> None:
    # h2 = relu(i1 - i2), parts +i1 and -i2 from 0. Its positive part gets (i1 + max(0, i1 - i2)) / 2,
    # its negative one (0 + max(0, i1 - i2) - i1) / 2 = -min / 2. So i1: i1 - (2 i1 - min) / 2 = min / 2, i2: min / 2.
    half = min(i1, i2) / 2
    found = explained(two_inputs(*MINIMUM), [i1, i2], "reveal-cancel")
    assert found[0].sum(0) == pytest.approx([half, half])
    assert found[0].ravel() == pytest.approx([i1, 0.0, half - i1, half])


SATURATING = ([[-1.0, -1.0]], [1.0], [-1.0])  # i1 + i2 up to 1, then 1: 1 - relu(1 - i1 - i2)


@pytest.mark.parametrize("rule", ["rescale", "reveal-cancel"])
def test_saturated_sum_is_shared_where_the_gradient_sees_nothing(rule: str) -> None:
    model = two_inputs(*SATURATING)
    # relu goes from 1 to 0 while its input goes from 1 to -1: slope 1 / 2; each input brings -1, times -1 behind it.
    assert explained(model, [1.0, 1.0], rule)[0].tolist() == [[0.5, 0.5]]
    # The output's own weight carries all of it: -1 * (0 - 1) = 1.
    assert explained(model, [1.0, 1.0], rule)[1][4].tolist() == [1.0]
    # Below saturation both rules are the gradient.
    assert explained(model, [0.5, 0.25], rule)[0].tolist() == [[0.5, 0.25]]
    batch = Batch(torch.ones(1, 2, 1, 1), NO_TARGETS, [0])
    assert gradient_x_input_scores(model, [batch], sum_of_heads, predictions=1)[0].abs().sum() == 0


THRESHOLD = ([[1.0]], [-10.0], [1.0])  # relu(x - 10)


@pytest.mark.parametrize("rule", ["rescale", "reveal-cancel"])
def test_threshold_contributes_what_is_above_it_without_a_jump(rule: str) -> None:
    model = two_inputs(*THRESHOLD)
    # relu(x - 10) - relu(-10) over x: at 10.5 a slope of .5 / 10.5, a contribution of .5.
    for x, above in ((9.0, 0.0), (10.0, 0.0), (10.5, 0.5), (12.0, 2.0)):
        assert explained(model, [x], rule)[0].tolist() == [[pytest.approx(above, abs=1e-12)]]
    # Gradient x input jumps there from 0 to 10.5.
    batch = Batch(torch.full((1, 1, 1, 1), 10.5), NO_TARGETS, [0])
    assert float(gradient_x_input_scores(model, [batch], sum_of_heads, predictions=1)[0]) == pytest.approx(10.5)
