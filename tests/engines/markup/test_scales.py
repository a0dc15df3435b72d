from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunedeploy_engines.markup.scales import Axis, linear_ticks, log_ticks, number_text, scale_end


@given(first=st.floats(-1e3, 1e3), span=st.floats(1e-3, 1e4))
def test_linear_ticks_are_even_and_inside(first: float, span: float) -> None:
    ticks = linear_ticks(first, first + span)
    assert 2 <= len(ticks) <= 13
    assert all(first - 1e-6 * span <= tick <= first + span * (1 + 1e-6) for tick in ticks)
    assert np.ptp(np.diff(ticks)) < 1e-6 * span + 1e-9


@given(first=st.floats(1e-3, 1e3), ratio=st.floats(6, 1e4))
def test_log_ticks_are_inside_and_enough(first: float, ratio: float) -> None:
    ticks = log_ticks(first, first * ratio)
    assert len(ticks) >= 2
    assert ticks == sorted(ticks)
    assert all(first * (1 - 1e-6) <= tick <= first * ratio * (1 + 1e-6) for tick in ticks)


def test_axis_puts_values_on_pixels() -> None:
    assert Axis(0, 10, 100, 200).at(2.5) == 125
    assert Axis(0, 10, 100, 200).at(99) == 200
    assert Axis(1, 100, 0, 200, log=True).at(10) == pytest.approx(100)
    assert Axis(0, 1, 300, 100).at(0.25) == 250  # upwards


def test_scales_from_zero_end_with_a_tick_and_reach_the_top() -> None:
    assert Axis(0, scale_end(0.45, 5), 0, 100).ticks(5) == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])
    assert scale_end(0) == scale_end(-1.0) == scale_end(float("nan")) == 1
    for wanted in (4, 5):
        for top in (1e-7, 0.3, 0.41, 0.55, 1.0, 1.1, 7.7, 1e6):
            end = scale_end(top, wanted)
            ticks = linear_ticks(0.0, end, wanted)
            assert end >= top * (1 - 1e-9)
            assert ticks[-1] == pytest.approx(end)
            assert 2 <= len(ticks) <= 7


@pytest.mark.parametrize(
    ("value", "text"),
    [(148.23, "148"), (15.44, "15.4"), (1.239, "1.24"), (0.01234, "0.0123"), (1092.3, "1092"), (0, "0")],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert number_text(value) == text
