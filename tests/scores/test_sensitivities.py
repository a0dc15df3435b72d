"""Scores from gradients: numbers worked by hand, and finite differences."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from prunedeploy.models import Darknet
from prunedeploy.scores import Scores, choose_target, gradient_x_input_scores, snip_scores, taylor_scores
from prunedeploy_engines.errors import PruningError
from pruning.darknets import HEAD, conv, network, random_network
from scores.examples import (
    NO_TARGETS,
    Batch,
    detection_loss,
    mixed_network,
    pixels,
    random_batches,
    sum_of_heads,
    tiny_model,
)

ALL = {"snip": snip_scores, "taylor": taylor_scores, "gradient-x-input": gradient_x_input_scores}

# The tiny network at x = 2: leaky(3 * 2 - 1) = 5, heads 5 v with v = (1, -2, .5, 0, 0, 4), their sum 3.5 * 5.
#   d sum / d w = x * sum v = 7, times w = 3: 21.       d sum / d v_i = 5, times v_i: 5 v_i.
# At x = -1: leaky(-4) = -.4.
#   d sum / d w = .1 * -1 * 3.5 = -.35, times 3: -1.05.  d sum / d v_i = -.4, times v_i: -.4 v_i.
HEAD_WEIGHTS = [1.0, -2.0, 0.5, 0.0, 0.0, 4.0]


def test_snip_worked_by_hand() -> None:
    scores = snip_scores(tiny_model(), [pixels(2.0)], sum_of_heads)
    # |21| + 5 * (1 + 2 + .5 + 4) = 58.5 is what all are divided by.
    assert scores[0].flatten().tolist() == pytest.approx([21 / 58.5])
    assert scores[1].flatten().tolist() == pytest.approx([5 * abs(v) / 58.5 for v in HEAD_WEIGHTS])


def test_snip_takes_the_gradient_of_the_mean_over_all_images() -> None:
    # (21 * 2 - 1.05) / 3 = 13.65 and v_i * (5 * 2 - .4) / 3 = 3.2 v_i: 13.65 + 3.2 * 7.5 = 37.65.
    for batches in ([pixels(2.0, -1.0, 2.0)], [pixels(2.0, -1.0), pixels(2.0)]):
        scores = snip_scores(tiny_model(), batches, sum_of_heads)
        assert scores[0].flatten().tolist() == pytest.approx([13.65 / 37.65])
        assert scores[1].flatten().tolist() == pytest.approx([3.2 * abs(v) / 37.65 for v in HEAD_WEIGHTS])


def test_taylor_worked_by_hand() -> None:
    scores = taylor_scores(tiny_model(), [pixels(2.0), pixels(-1.0)], sum_of_heads)
    # The mean of two squares: (21^2 + 1.05^2) / 2, v_i^2 (5^2 + .4^2) / 2.
    assert scores[0].flatten().tolist() == pytest.approx([(441 + 1.1025) / 2])
    assert scores[1].flatten().tolist() == pytest.approx([v**2 * (25 + 0.16) / 2 for v in HEAD_WEIGHTS])


def test_taylor_squares_the_gradient_of_a_minibatch() -> None:
    scores = taylor_scores(tiny_model(), [pixels(2.0, -1.0)], sum_of_heads)
    # One minibatch: the square of the mean, ((21 - 1.05) / 2)^2, v_i^2 ((5 - .4) / 2)^2.
    assert scores[0].flatten().tolist() == pytest.approx([9.975**2])
    assert scores[1].flatten().tolist() == pytest.approx([v**2 * 2.3**2 for v in HEAD_WEIGHTS])


def test_gradient_x_input_worked_by_hand() -> None:
    scores = gradient_x_input_scores(tiny_model(), [pixels(2.0, -1.0)], predictions=1)
    # The only prediction's objectness and class are outputs 4 and 5: the target is (0 + 4) * leaky(3 x - 1).
    # d target / d w * w = 4 * 2 * 3 = 24 at x = 2 and 4 * .1 * -1 * 3 = -1.2 at -1: absolute values before the mean.
    assert scores[0].flatten().tolist() == pytest.approx([(24 + 1.2) / 2])
    # Output 5: 4 * 5 and 4 * -.4; output 4 has weight 0; the others are no part of the target.
    assert scores[1].flatten().tolist() == pytest.approx([0, 0, 0, 0, 0, (20 + 1.6) / 2])


def test_a_weight_of_zero_has_no_score_and_a_saturated_unit_passes_none() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.conv(0).weight.zero_()
    for score in (snip_scores, taylor_scores, gradient_x_input_scores):
        assert float(score(model, [pixels(2.0)], sum_of_heads)[0]) == 0.0


def finite_differences(model: Darknet, value) -> Scores:
    """``w * d value / d w`` of every weight by central differences, at the network's own forward pass."""
    step = 1e-6
    found = {}
    for layer in model.cfg.convolutions:
        weight = model.conv(layer.index).weight
        derivative = torch.zeros_like(weight).flatten()
        flat = weight.detach().view(-1)
        for position in range(len(flat)):
            before = float(flat[position])
            ends = []
            for factor in (1 + step, 1 - step):
                flat[position] = before * factor
                with torch.no_grad():
                    ends.append(value())
            flat[position] = before
            derivative[position] = (ends[0] - ends[1]) / (2 * step)
        found[layer.index] = derivative.view_as(weight).detach()
    return found


def assert_close(scores: Scores, expected: Scores) -> None:
    largest = max(float(value.abs().max()) for value in expected.values())
    assert largest > 0
    for index, value in expected.items():
        assert scores[index].dtype == torch.float64
        assert float((scores[index] - value).abs().max()) < 1e-6 * largest


@pytest.fixture(scope="module")
def model() -> Darknet:
    return mixed_network("swish")


@pytest.fixture(scope="module")
def batches() -> list[Batch]:
    return random_batches([2, 1])


@pytest.fixture(scope="module")
def differences(model: Darknet, batches: list[Batch]) -> list[Scores]:
    """Finite differences of the detection loss of each minibatch."""
    loss = detection_loss(model)
    return [
        finite_differences(model, lambda batch=batch: float(loss(model(batch.images), batch.targets)))
        for batch in batches
    ]


def test_snip_equals_finite_differences_of_the_detection_loss(
    model: Darknet, batches: list[Batch], differences: list[Scores]
) -> None:
    two, one = differences  # of so many images; those of the mean over all three are their mean
    expected = {index: ((2 * two[index] + one[index]) / 3).abs() for index in two}
    total = sum(float(value.sum()) for value in expected.values())
    scores = snip_scores(model, batches, detection_loss(model))
    assert_close(scores, {index: value / total for index, value in expected.items()})
    assert sum(float(value.sum()) for value in scores.values()) == pytest.approx(1.0)


def test_taylor_equals_finite_differences_of_each_minibatch(
    model: Darknet, batches: list[Batch], differences: list[Scores]
) -> None:
    scores = taylor_scores(model, batches, detection_loss(model))
    assert_close(scores, {index: sum(part[index] ** 2 for part in differences) / 2 for index in scores})


def test_gradient_x_input_equals_finite_differences_of_each_image(model: Darknet) -> None:
    (batch,) = random_batches([2])
    with torch.no_grad():
        targets = [choose_target(model, model(image[None]), 3) for image in batch.images]
    parts = [
        finite_differences(model, lambda image=image, target=target: float(target(model(image[None]))))
        for image, target in zip(batch.images, targets, strict=True)
    ]
    scores = gradient_x_input_scores(model, [batch], predictions=3)
    assert_close(scores, {index: (parts[0][index].abs() + parts[1][index].abs()) / 2 for index in parts[0]})


def test_gradient_x_input_does_not_depend_on_how_images_are_grouped(model: Darknet) -> None:
    together, alone = random_batches([3]), random_batches([1, 2])
    for first, second in zip(together[0].images, [*alone[0].images, *alone[1].images], strict=True):
        assert torch.equal(first, second)
    assert_close(gradient_x_input_scores(model, together), gradient_x_input_scores(model, alone))


@pytest.mark.parametrize("name", ALL)
def test_the_model_is_left_as_it_was(name: str) -> None:
    model = mixed_network()
    model.conv(1).weight.requires_grad_(False)
    kept = model.conv(4).weight.grad = torch.ones_like(model.conv(4).weight)
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    flags = [parameter.requires_grad for parameter in model.parameters()]
    ALL[name](model, random_batches([2]), detection_loss(model))
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert model.training
    assert model.conv(4).weight.grad is kept
    assert torch.equal(kept, torch.ones_like(kept))
    assert [name for name, parameter in model.named_parameters() if parameter.grad is not None] == ["convs.4.weight"]


@pytest.mark.parametrize("name", ALL)
def test_normalisation_is_that_of_evaluation_in_any_mode(name: str) -> None:
    model = mixed_network()
    evaluated = ALL[name](model, random_batches([2]), detection_loss(model))
    trained = ALL[name](model.train(), random_batches([2]), detection_loss(model))
    for index, value in evaluated.items():
        assert torch.equal(value, trained[index])


@pytest.mark.parametrize("name", ALL)
def test_float32_scores_of_every_convolution_without_gradient(name: str) -> None:
    model = mixed_network().float()
    scores = ALL[name](model, random_batches([2]), detection_loss(model))
    assert list(scores) == [layer.index for layer in model.cfg.convolutions]
    for index, value in scores.items():
        assert value.shape == model.conv(index).weight.shape
        assert value.dtype == torch.float32
        assert not value.requires_grad
        assert float(value.min()) >= 0


@pytest.mark.parametrize("name", ALL)
def test_no_images_is_one_clear_line(name: str) -> None:
    with pytest.raises(PruningError, match=r"^scores: there are no images to take .* on; give at least one image$"):
        ALL[name](tiny_model(), [], sum_of_heads)


@pytest.mark.parametrize("name", ALL)
def test_a_convolution_that_no_head_reads_has_scores_of_zero(name: str) -> None:
    model = random_network(network(conv(4), conv(4), "route layers=0", *HEAD))
    batches = [Batch(torch.rand(2, 3, 16, 16), NO_TARGETS, [0, 1])]
    scores = ALL[name](model, batches, sum_of_heads)
    assert float(scores[1].abs().max()) == 0
    assert all(float(scores[index].max()) > 0 for index in (0, 3))


def test_snip_refuses_a_loss_that_depends_on_no_weight() -> None:
    with pytest.raises(PruningError, match="the loss does not depend on any weight"):
        snip_scores(tiny_model(), [pixels(2.0)], lambda heads, targets: heads[0].sum() * 0)


def test_settings_are_bound_before() -> None:
    score = partial(gradient_x_input_scores, predictions=1)
    assert float(score(tiny_model(), [pixels(2.0)], sum_of_heads)[0]) == pytest.approx(24)
