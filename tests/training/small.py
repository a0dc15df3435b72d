"""A network, batches and settings small enough to train in a blink."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from prunedeploy.config import TrainingConfig
from prunedeploy.data.loader import Batch
from prunedeploy.models import Darknet
from prunedeploy.training.optimisation import ParameterSet
from pruning.darknets import conv, network, random_network

SECTIONS = (
    conv(8, size=3),
    conv(8, size=3) + " stride=2",
    conv(8, size=3),
    "shortcut from=-2 activation=linear",
    conv(14, norm=False, activation="linear"),
    "yolo mask=0,1 anchors=5,6,9,8 classes=2",
)


def small_model(seed: int = 0) -> Darknet:
    return random_network(network(*SECTIONS), seed)


def batch_of(step: int, images: int = 2) -> Batch:
    """The batch of a step, which is a function of the step alone."""
    generator = torch.Generator().manual_seed(step)
    pixels = torch.rand(images, 3, 16, 16, generator=generator)
    boxes = 0.2 + 0.5 * torch.rand(images, 4, generator=generator)
    numbers = torch.arange(images, dtype=torch.float32)[:, None]
    classes = torch.randint(2, (images, 1), generator=generator).float()
    return Batch(pixels, torch.cat([numbers, classes, boxes], dim=1), [100 * step + i for i in range(images)])


def batches(start: int) -> Iterator[Batch]:
    step = start
    while True:
        yield batch_of(step)
        step += 1


def whole(module: nn.Module) -> list[ParameterSet]:
    """All parameters in one set."""
    return [ParameterSet(tuple(module.parameters()))]


def loop_settings(steps: int, lr: float, **more: Any) -> TrainingConfig:
    """A training block whose gradient is not clipped unless that is asked for."""
    return TrainingConfig(**{"steps": steps, "lr": lr, "clip_norm": None, **more})
