"""Medians of distortions against SciPy's bootstrap, and with failures among them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import bootstrap

from prunedeploy.attacks.carlini_wagner import Lost
from prunedeploy.evaluation.distortions import Distortions


def test_medians_interval_is_scipys():
    values = np.random.default_rng(0).gamma(2.0, size=41)
    batches = [values[:30], values[30:], np.full(3, np.nan)]
    found = Distortions.of(
        Lost(torch.zeros(len(one), 3, 1, 1), torch.from_numpy(one), torch.from_numpy(one), torch.from_numpy(one > 0))
        for one in batches
    )
    assert (len(found.l2), found.succeeded, int(found.attackable.sum())) == (44, 41, 41)
    interval = found.median(resamples=9999)
    expected = bootstrap(
        (values,), np.median, n_resamples=9999, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert interval.value == np.median(values)
    assert (interval.low, interval.high) == pytest.approx(tuple(expected), abs=0.06)


def test_a_failure_counts_as_farther_than_any_success():
    failed = np.array([np.nan] * 4 + [0.5, 0.7, 0.9, 1.1, 1.3])
    interval = Distortions(failed, failed, np.ones(9, bool)).median()
    assert interval.value == 1.3
    assert interval.low < 1.3
    assert interval.high == math.inf
    assert Distortions(failed, failed, np.zeros(9, bool)).median() is None
    assert Distortions.of([]).median() is None
