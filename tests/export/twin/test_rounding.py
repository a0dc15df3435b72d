"""Rounding and its straight-through gradient, against NumPy, ONNX Runtime and numbers worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from prunedeploy_export.twin.rounding import LARGEST_HALF, Scaled, half, quantised


def one(value: float) -> torch.Tensor:
    return torch.tensor(value)


def test_halves_go_to_the_even_step_and_what_is_outside_to_the_end_of_the_range() -> None:
    # In steps of 0.5 from zero point 3: -1.5 is step 0, and -2 would be step -1.
    value = torch.tensor([-2.0, -1.5, -0.25, 0.25, 0.75, 1.25, 0.3, 125.9, 126.0, 126.5])
    steps = quantised(value, one(0.5), one(3.0), 0, 255)
    # -0.5, 0.5, 1.5 and 2.5 steps go to 0, 0, 2 and 2
    assert steps.tolist() == [0, 0, 3, 3, 5, 5, 4, 255, 255, 255]


def test_gradient_is_that_of_the_value_inside_the_range_and_none_where_it_saturates() -> None:
    value = torch.tensor([-2.0, -1.7, -1.5, 0.3, 126.0, 126.2, 126.3], requires_grad=True)
    quantised(value, one(0.5), one(3.0), 0, 255).sum().backward()
    # -1.7 rounds to step -3.4 + 3, which is 0 and inside; 126.2 to 252.4 + 3, inside; 126.3 to 252.6 + 3, outside.
    assert value.grad is not None
    assert value.grad.tolist() == [0, 2, 2, 2, 2, 2, 0]


def test_gradient_through_both_nodes_is_one_inside_the_range() -> None:
    """Jacob et al. 2018, equation 12, differentiated with the rounding looked through."""
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float32).requires_grad_(True)
    scale, zero_point = one(0.011), one(100.0)
    steps = quantised(value, scale, zero_point, 0, 255)
    weight = torch.randn(2, 3, 4, 4, generator=generator)
    (Scaled(steps - zero_point, scale).real * weight).sum().backward()
    inside = np.abs(np.rint(value.detach().numpy() / np.float32(0.011)) + 100 - 127.5) <= 127.5
    assert 0.1 < inside.mean() < 0.9
    assert value.grad is not None
    np.testing.assert_allclose(value.grad.numpy(), np.where(inside, weight.numpy(), 0), rtol=1e-6)


def test_sums_of_integers_are_rounded_once() -> None:
    """What DequantizeLinear, Conv and QuantizeLinear compute together: sum * (scale of the sum / scale), rounded."""
    sums, scale = torch.arange(-1000.0, 1000.0, requires_grad=True), one(0.0037)
    steps = quantised(Scaled(sums, scale), one(0.02), one(128.0), 0, 255)
    factor = np.float32(0.0037) / np.float32(0.02)
    expected = np.clip(np.rint(np.arange(-1000, 1000).astype(np.float32) * factor) + 128, 0, 255)
    assert (steps.detach().numpy() == expected).all()
    steps.sum().backward()
    assert sums.grad is not None
    inside = np.rint(np.arange(-1000, 1000).astype(np.float32) * factor) + 128 == expected
    np.testing.assert_allclose(sums.grad.numpy(), np.where(inside, factor, 0), rtol=1e-6)


def test_half_precision_is_numpys() -> None:
    values = np.concatenate([np.linspace(-3, 3, 997), [1e-8, 65504, 65519, 65520, 1e6, -1e6, 2049, 2051]])
    rounded = half(torch.from_numpy(values.astype(np.float32)))
    with np.errstate(over="ignore"):
        assert np.array_equal(rounded.numpy(), values.astype(np.float32).astype(np.float16).astype(np.float32))


@pytest.mark.parametrize(("value", "gradient"), [(1.0001, 1.0), (-LARGEST_HALF, 1.0), (70000.0, 0.0), (-1e6, 0.0)])
def test_half_precision_has_a_gradient_within_its_range(value: float, gradient: float) -> None:
    x = torch.tensor(value, requires_grad=True)
    half(x).backward()
    assert x.grad is not None
    assert float(x.grad) == gradient
