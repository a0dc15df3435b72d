"""Learning-rate schedules, optimisers and the exponential average of weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunedeploy.config import TrainingConfig


def learning_rate(settings: TrainingConfig, step: int) -> float:
    """Learning rate of step ``step``, counted from 0.

    The cosine is that of Loshchilov and Hutter, SGDR, 2017, equation 5, without restarts.
    """
    if step < settings.warmup_steps:
        return settings.lr * (step + 1) / settings.warmup_steps
    span = max(1, settings.steps - settings.warmup_steps)
    done = (step - settings.warmup_steps) / span
    if settings.schedule == "cosine":
        return settings.lr * 0.5 * (1 + math.cos(math.pi * done))
    if settings.schedule == "step":
        return settings.lr * settings.step_factor ** sum(done >= milestone for milestone in settings.milestones)
    return settings.lr


@dataclass(frozen=True, eq=False)
class ParameterSet:
    """Parameters that are trained alike; the norm of their gradient is limited on its own.

    Attributes:
        tensors: The parameters.
        lr: Their peak learning rate; None: that of the settings. The schedule is the same.
    """

    tensors: tuple[Tensor, ...]
    lr: float | None = None


def make_optimizer(sets: Sequence[ParameterSet], settings: TrainingConfig) -> torch.optim.Optimizer:
    """Optimiser over ``sets``; only parameters of rank 4 (convolution weights, scores) decay."""
    groups = []
    for part in sets:
        shared = {"lr_factor": 1.0 if part.lr is None else part.lr / settings.lr}
        weights, others = [p for p in part.tensors if p.ndim == 4], [p for p in part.tensors if p.ndim != 4]
        groups += [{"params": weights, "weight_decay": settings.weight_decay, **shared}] if weights else []
        groups += [{"params": others, "weight_decay": 0.0, **shared}] if others else []
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.lr, betas=(settings.momentum, 0.999), fused=True)
    return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum)


class WeightAverage:
    """Exponential average of a module's parameters and floating-point buffers; of others the last value.

    The decay grows from 0.1 to its value over the first steps (as in TensorFlow's
    ``ExponentialMovingAverage(num_updates)``), so that the start is forgotten.

    Args:
        module: Whose state is averaged.
        decay: Weight of the old average, in [0, 1).
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Take in the state after step ``step``, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                self.values[name].lerp_(value, 1 - decay)
            else:
                self.values[name].copy_(value)
