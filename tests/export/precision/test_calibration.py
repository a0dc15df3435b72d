"""Ranges of values: histograms against NumPy's, clips against percentiles and against a search over all of them."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import ModelProto, TensorProto, helper

from prunedeploy_engines.errors import DataError
from prunedeploy_export.precision.calibration import METHODS, Histogram, choose_range, collect_histograms


def negated_and_doubled(height: int = 8) -> ModelProto:
    """``images`` (N, 3, H, 8) to ``negated`` and ``doubled``; ``boxes`` is the sum."""
    shape = ["N", 3, height, 8]
    graph = helper.make_graph(
        [
            helper.make_node("Neg", ["images"], ["negated"]),
            helper.make_node("Add", ["images", "images"], ["doubled"]),
            helper.make_node("Add", ["negated", "doubled"], ["boxes"]),
        ],
        "arithmetic",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("boxes", TensorProto.FLOAT, shape)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def histogram_of(values: np.ndarray) -> Histogram:
    """The histogram of an array, by way of a network that gives it back."""
    images = np.zeros((1, 3, -(-values.size // 24), 8), np.float32)
    images.reshape(-1)[:] = np.resize(values, images.size)
    return collect_histograms(negated_and_doubled(images.shape[2]), ["images"], images, threads=1)["images"]


def images_of(seed: int, count: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 3, 8, 8)).astype(np.float32)


def test_histograms_are_numpys():
    images = images_of(0)
    found = collect_histograms(negated_and_doubled(), ["images", "negated", "doubled"], images, threads=1)
    for name, values in (("images", images), ("negated", -images), ("doubled", 2 * images)):
        histogram = found[name]
        assert (histogram.low, histogram.high) == (values.min(), values.max())
        counts, edges = np.histogram(values, bins=len(histogram.counts), range=(values.min(), values.max()))
        assert histogram.counts.sum() == values.size
        np.testing.assert_allclose(histogram.centres, (edges[:-1] + edges[1:]) / 2, atol=1e-6)
        # A value at an edge may fall to either side, as float32 and float64 round; so compare what is below each edge.
        assert np.abs(np.cumsum(histogram.counts) - np.cumsum(counts)).max() <= 1


@given(
    values=hnp.arrays(
        np.float32,
        st.integers(1, 60),
        elements=st.floats(-(2.0**60), 2.0**60, width=32),
    )
)
def test_every_value_is_counted_once_whatever_its_size(values):
    images = np.resize(values, (1, 3, 8, 8))
    histogram = collect_histograms(negated_and_doubled(), ["images"], images, threads=1)["images"]
    assert histogram.counts.sum() == images.size
    assert (histogram.low, histogram.high) == (values.min(), values.max())
    width = (histogram.high - histogram.low) / len(histogram.counts)
    largest = float(np.abs(values).max())
    # Where the counts say that values are, there are some, a bin more or less.
    for position in np.flatnonzero(histogram.counts):
        assert np.abs(values - histogram.centres[position]).min() <= 1.5 * width + 1e-6 * largest


@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1e30, 3e38])
def test_values_at_the_ends_of_float32_are_counted(scale):
    images = np.linspace(-1, 1, 192).reshape(1, 3, 8, 8) * scale
    images = images.astype(np.float32)
    histogram = collect_histograms(negated_and_doubled(), ["images"], images, threads=1)["images"]
    counts, _ = np.histogram(images.astype(np.float64), bins=len(histogram.counts))
    assert np.abs(np.cumsum(histogram.counts) - np.cumsum(counts)).max() <= 1


@pytest.mark.parametrize("value", [0.0, 2.5, -3.0])
@pytest.mark.parametrize("method", METHODS)
def test_constant_tensor_has_a_range_from_zero_to_it(value, method):
    images = np.full((2, 3, 8, 8), value, np.float32)
    histogram = collect_histograms(negated_and_doubled(), ["images"], images, threads=1)["images"]
    assert histogram.counts.sum() == images.size
    found = choose_range(histogram, method)
    assert found.low <= 0 <= found.high
    assert (found.low, found.high) == (min(value, 0), max(value, 0))


def test_no_images_are_refused():
    with pytest.raises(DataError, match="no images to calibrate with"):
        collect_histograms(negated_and_doubled(), ["images"], images_of(0)[:0])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("position", [0, 2, 4])
def test_value_that_is_not_finite_is_refused_whichever_image_has_it(value, position):
    images = images_of(0)
    images[position, 1, 2, 3] = value
    with pytest.raises(DataError, match="tensor negated has values that are not finite"):
        collect_histograms(negated_and_doubled(), ["negated"], images, threads=1)


def test_memory_does_not_grow_with_the_number_of_images():
    def peak(count: int) -> int:
        images = np.broadcast_to(images_of(0, 1), (count, 3, 8, 8))
        tracemalloc.start()
        collect_histograms(negated_and_doubled(), ["negated", "doubled"], images, threads=1)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(1)  # imports
    # 400 more images are 600 kB for each tensor.
    assert peak(401) - peak(1) < 100_000


def test_minmax_clips_nothing():
    for seed in range(5):
        values = images_of(seed) + np.float32(seed - 2)
        found = choose_range(histogram_of(values), "minmax")
        assert (found.low, found.high) == (min(values.min(), 0), max(values.max(), 0))
        both = choose_range(histogram_of(values), "minmax", symmetric=True)
        assert both.high == -both.low == np.abs(values).max()


@pytest.mark.parametrize("seed", range(4))
def test_percentile_is_numpys_within_a_bin(seed):
    rng = np.random.default_rng(seed)
    values = rng.standard_t(3, 240_000).astype(np.float32)
    histogram = histogram_of(values)
    width = (histogram.high - histogram.low) / len(histogram.counts)
    found = choose_range(histogram, "percentile")
    expected = np.percentile(values, [0.005, 99.995])
    np.testing.assert_allclose([found.low, found.high], expected, atol=1.01 * width)
    assert found.low > values.min()
    assert found.high < values.max()
    # Never less is kept than was said.
    assert ((values < found.low) | (values > found.high)).mean() <= 1e-4
    both = choose_range(histogram, "percentile", symmetric=True)
    assert both.high == -both.low == max(found.high, -found.low)


def test_zero_stays_inside_whatever_is_clipped():
    for sign in (1, -1):
        values = sign * (5 + np.random.default_rng(0).random(2400)).astype(np.float32)
        for method in METHODS:
            found = choose_range(histogram_of(values), method)
            assert found.low <= 0 <= found.high
            assert max(found.high, -found.low) > 4.9


def quantised(values: np.ndarray, low: float, high: float, symmetric: bool) -> np.ndarray:
    """What 8 bits make of the values: signed and symmetric, or unsigned with a whole zero point."""
    if symmetric:
        step = max(high, -low) / 127
        return np.clip(np.rint(values / step), -127, 127) * step
    step = (high - low) / 255
    zero = np.clip(np.rint(-low / step), 0, 255)
    return (np.clip(np.rint(values / step) + zero, 0, 255) - zero) * step


def squared_error(values: np.ndarray, low: float, high: float, symmetric: bool, slope: float = 1.0) -> float:
    weight = np.where(values < 0, slope**2, 1.0)
    return float((weight * (quantised(values, low, high, symmetric) - values) ** 2).mean())


def drawn(kind: str, rng: np.random.Generator) -> np.ndarray:
    values = {
        "normal": lambda: rng.normal(size=24_000),
        "shifted": lambda: rng.normal(size=24_000) + 2,
        "heavy tails": lambda: rng.standard_t(3, 24_000),
        "leaky": lambda: (lambda x: np.where(x > 0, x, 0.1 * x))(rng.normal(size=24_000)),
        "relu": lambda: np.maximum(rng.normal(size=24_000), 0),
        "sigmoid": lambda: 1 / (1 + np.exp(-rng.normal(size=24_000))),
        "one outlier": lambda: np.append(rng.normal(size=24_000 - 1), 60.0),
        "uniform": lambda: rng.random(24_000),
    }[kind]()
    return values.astype(np.float32)


KINDS = ("normal", "shifted", "heavy tails", "leaky", "relu", "sigmoid", "one outlier", "uniform")


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_mse_is_hardly_worse_than_the_best_clip_there_is(kind, symmetric):
    values = drawn(kind, np.random.default_rng(3))
    found = choose_range(histogram_of(values), "mse", levels=254 if symmetric else 255, symmetric=symmetric)
    error = squared_error(values, found.low, found.high, symmetric)
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    if symmetric:
        largest = max(-low, high)
        tried = [(-largest * share, largest * share) for share in np.linspace(0.02, 1, 300)]
    else:
        tried = [(low * a, high * b) for a in np.linspace(0.02, 1, 25) for b in np.linspace(0.02, 1, 40)]
    best = min(squared_error(values, *clip, symmetric) for clip in tried)
    assert error <= 1.02 * best + 1e-12
    assert error <= squared_error(values, *sorted((low, high)), symmetric) * 1.001


def test_mse_clips_what_is_rare_and_keeps_what_is_not():
    rng = np.random.default_rng(0)
    # One value of 100 among 2.4 million normal ones: keeping it makes the steps 0.41, an error of 0.41^2 / 12 = 1.4e-2;
    # clipping it at 8 costs 92^2 / 2.4e6 = 3.5e-3 once.
    with_outlier = np.append(rng.normal(size=2_400_000 - 1), 100.0).astype(np.float32)
    for symmetric in (False, True):
        found = choose_range(histogram_of(with_outlier), "mse", levels=255 - symmetric, symmetric=symmetric)
        assert 5 < found.high < 30
        assert squared_error(with_outlier, found.low, found.high, symmetric) < 4.5e-3
    assert choose_range(histogram_of(drawn("uniform", rng)), "mse").high > 0.99


@pytest.mark.parametrize("slope", [0.0, 0.1])
def test_values_that_a_rectifier_damps_weigh_little(slope):
    # What stands behind is max(x, slope * x): an error of a negative value is scaled by the slope.
    values = drawn("normal", np.random.default_rng(1))
    histogram = histogram_of(values)
    plain, damped = (choose_range(histogram, "mse", negative_slope=weight) for weight in (1.0, slope))
    assert damped.low > plain.low
    errors = [squared_error(values, found.low, found.high, False, slope) for found in (plain, damped)]
    assert errors[1] < 0.95 * errors[0]
    if slope == 0:
        assert {choose_range(histogram, method, negative_slope=0.0).low for method in METHODS} == {0}


@given(exponent=st.sampled_from([-100, -50, -7, 3, 50]), seed=st.integers(0, 5), method=st.sampled_from(METHODS))
def test_unit_of_the_values_does_not_matter(exponent, seed, method):
    values = images_of(seed).astype(np.float64)
    counts, _ = np.histogram(values, bins=2048)
    low, high = float(values.min()), float(values.max())
    unit = 2.0**exponent
    found = choose_range(Histogram(low, high, counts), method)
    scaled = choose_range(Histogram(low * unit, high * unit, counts), method)
    assert scaled.low == pytest.approx(found.low * unit, rel=1e-9)
    assert scaled.high == pytest.approx(found.high * unit, rel=1e-9)


def test_unknown_method_is_refused():
    with pytest.raises(ValueError, match=r"method must be one of .* got 'entropy'"):
        choose_range(Histogram(0.0, 1.0, np.ones(2048, np.int64)), "entropy")  # type: ignore[arg-type]
