"""Activations against their formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.arithmetic import FORMULAS
from prunedeploy.models.sections.activations import activate


@pytest.mark.parametrize("activation", FORMULAS)
def test_activations_equal_their_formulas(activation: str) -> None:
    x = np.linspace(-6, 6, 121)
    ours = activate(torch.from_numpy(x.copy()), activation).numpy()
    np.testing.assert_allclose(ours, FORMULAS[activation](x), rtol=1e-6, atol=1e-9)


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(ValueError, match="gelu"):
        activate(torch.zeros(1), "gelu")
