"""Schedules, decay and the average of weights against numbers worked by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from prunedeploy.training.optimisation import ParameterSet, WeightAverage, learning_rate, make_optimizer
from training.small import loop_settings


def test_cosine_worked_by_hand() -> None:
    settings = loop_settings(steps=12, lr=0.4, schedule="cosine", warmup_steps=4)
    # Warm-up: a quarter more each step. Then 8 steps of 0.2 (1 + cos(pi k / 8)).
    assert [learning_rate(settings, step) for step in range(4)] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert learning_rate(settings, 4) == pytest.approx(0.4)
    assert learning_rate(settings, 6) == pytest.approx(0.2 * (1 + math.sqrt(0.5)))
    assert learning_rate(settings, 8) == pytest.approx(0.2)
    assert learning_rate(settings, 11) == pytest.approx(0.2 * (1 - math.cos(math.pi / 8)))


def test_steps_and_constant_worked_by_hand() -> None:
    settings = loop_settings(steps=10, lr=1.0, schedule="step", milestones=(0.5, 0.8), step_factor=0.1)
    expected = [1.0] * 5 + [0.1] * 3 + [0.01] * 2
    assert [learning_rate(settings, step) for step in range(10)] == pytest.approx(expected)
    constant = settings.model_copy(update={"schedule": "constant", "warmup_steps": 2})
    assert [learning_rate(constant, step) for step in range(4)] == [0.5, 1.0, 1.0, 1.0]


def test_a_warm_up_longer_than_the_training_is_no_error() -> None:
    settings = loop_settings(steps=3, lr=1.0, warmup_steps=10)
    assert [learning_rate(settings, step) for step in range(3)] == pytest.approx([0.1, 0.2, 0.3])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_only_convolution_weights_decay(optimizer: str) -> None:
    weight, bias = nn.Parameter(torch.ones(2, 2, 1, 1)), nn.Parameter(torch.ones(2))
    settings = loop_settings(steps=1, lr=0.1, optimizer=optimizer, weight_decay=0.5)
    made = make_optimizer([ParameterSet((weight, bias))], settings)
    weight.grad, bias.grad = torch.zeros_like(weight), torch.zeros_like(bias)
    made.step()
    assert bias.tolist() == [1.0, 1.0]
    # Without a gradient both shrink the weight by lr times decay in their first step: 1 - 0.1 * 0.5.
    assert weight.flatten().tolist() == pytest.approx([0.95] * 4)


def test_settings_reach_the_optimiser() -> None:
    parameter = nn.Parameter(torch.ones(1, 1, 1, 1))
    sgd = make_optimizer([ParameterSet((parameter,))], loop_settings(steps=1, lr=0.1, momentum=0.8))
    assert isinstance(sgd, torch.optim.SGD)
    assert (sgd.param_groups[0]["momentum"], sgd.param_groups[0]["nesterov"]) == (0.8, False)
    settings = loop_settings(steps=1, lr=0.1, optimizer="adamw", momentum=0.85)
    adamw = make_optimizer([ParameterSet((parameter,))], settings)
    assert isinstance(adamw, torch.optim.AdamW)
    assert adamw.param_groups[0]["betas"] == (0.85, 0.999)


def test_the_average_takes_in_parameters_and_buffers() -> None:
    module = nn.BatchNorm2d(1).double()
    module.num_batches_tracked = None
    average = WeightAverage(module, 0.5)
    with torch.no_grad():
        module.weight.fill_(3.0)  # from 1
        module.running_mean.fill_(10.0)  # from 0
    average.update(module, 0)  # decay min(0.5, 1 / 10)
    assert float(average.values["weight"]) == pytest.approx(0.1 * 1 + 0.9 * 3)
    assert float(average.values["running_mean"]) == pytest.approx(9.0)
    average.update(module, 1000)  # decay 0.5
    assert float(average.values["weight"]) == pytest.approx(0.5 * 2.8 + 0.5 * 3)
    assert module.weight.item() == 3.0, "the module itself is left alone"
