"""A network with two heads and random weights, and four images for it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attacks.test_pgd import SECTIONS
from prunedeploy.models import Darknet
from pruning.darknets import network, random_network


@pytest.fixture(scope="module")
def model() -> Darknet:
    return random_network(network(*SECTIONS), seed=1)


@pytest.fixture(scope="module")
def images() -> Tensor:
    """``(4, 3, 16, 16)`` in [0, 1]."""
    return torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
