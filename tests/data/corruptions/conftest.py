"""Small images, and the draws of a corruption."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np
import pytest

from prunedeploy.data.draws import generator_for

Draws = Callable[[str, int], np.random.Generator]


@pytest.fixture
def speckled() -> np.ndarray:
    """``(30, 26, 3)``: noise over a gradient, so that no two neighbours are alike."""
    rng = np.random.default_rng(5)
    slope = np.linspace(0, 120, 30)[:, None, None] + np.linspace(0, 80, 26)[:, None]
    return np.clip(slope + rng.integers(0, 90, (30, 26, 3)), 0, 255).astype(np.uint8)


@pytest.fixture
def draws() -> Draws:
    """``draws(name, severity)``: what a corruption of image 7 with seed 3 draws from."""
    return lambda name, severity: generator_for(3, zlib.crc32(name.encode()), severity, 7)
