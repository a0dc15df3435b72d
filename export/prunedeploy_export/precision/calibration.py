"""Which range of values each tensor of a network takes, measured on images: what int8 quantisation needs.

Two passes over the images, one image at a time: the first finds the smallest and largest value of every
tensor, the second fills a histogram between them. So the memory is that of one image, whatever their number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from onnx import ModelProto

from prunedeploy_engines.errors import DataError
from prunedeploy_engines.runtimes.onnxruntime.runner import open_session
from prunedeploy_engines.runtimes.runner import Float32Array
from prunedeploy_export.graph.edit import expose

Method = Literal["minmax", "percentile", "mse"]
METHODS: tuple[Method, ...] = ("minmax", "percentile", "mse")
PERCENTILE = 99.99
_BINS = 4096
# Of the largest value, tried as the clip by ``mse``. Small ones are for tensors with a few enormous values.
_SHARES = np.concatenate([np.geomspace(0.02, 0.19, 16), np.linspace(0.2, 1.0, 65)])


@dataclass(frozen=True)
class Histogram:
    """How often a tensor's values fall into each bin.

    Attributes:
        low: Lower edge of the first bin: the smallest value.
        high: Upper edge of the last bin: the largest value.
        counts: ``(bins,)`` int64.
    """

    low: float
    high: float
    counts: npt.NDArray[np.int64]

    @property
    def centres(self) -> npt.NDArray[np.float64]:
        """Middle of each bin, ``(bins,)``."""
        width = (self.high - self.low) / len(self.counts)
        return self.low + (np.arange(len(self.counts), dtype=np.float64) + 0.5) * width


@dataclass(frozen=True)
class Range:
    """The values of a tensor that quantisation keeps apart; what is outside is clipped."""

    low: float
    high: float


def collect_histograms(
    model: ModelProto,
    tensors: Sequence[str],
    images: npt.NDArray[Any],
    *,
    threads: int | None = None,
) -> dict[str, Histogram]:
    """Run a network on images and count the values of its tensors.

    Args:
        model: The fp32 network.
        tensors: Names of float32 tensors in it.
        images: ``(K, 3, H, W)`` float32 in [0, 1], or whatever kind the model takes; K >= 1.
        threads: Threads of ONNX Runtime.

    Raises:
        DataError: There are no images, or a tensor takes a value that is not finite.
    """
    if not len(images):
        raise DataError("there are no images to calibrate with", fix="give at least one training image")
    wanted = list(dict.fromkeys(tensors))
    run = outputs_of(expose(model, wanted), wanted, threads)

    low = dict.fromkeys(wanted, np.inf)
    high = dict.fromkeys(wanted, -np.inf)
    for image in images:
        for name, array in zip(wanted, run(image), strict=True):
            # NumPy's, since Python's min and max lose a NaN.
            low[name] = float(np.minimum(low[name], array.min()))
            high[name] = float(np.maximum(high[name], array.max()))
    for name in wanted:
        if not np.isfinite([low[name], high[name]]).all():
            raise DataError(f"tensor {name} has values that are not finite", fix="train the network again")
    counts = {name: np.zeros(_BINS, np.int64) for name in wanted}
    for image in images:
        for name, array in zip(wanted, run(image), strict=True):
            counts[name] += _bin_counts(array, low[name], high[name])
    return {name: Histogram(low[name], high[name], counts[name]) for name in wanted}


def outputs_of(
    model: ModelProto, outputs: Sequence[str], threads: int | None
) -> Callable[[npt.NDArray[Any]], list[Float32Array]]:
    """A function from one image ``(3, H, W)`` to these outputs of a network, by ONNX Runtime on the CPU."""
    content = model.SerializeToString()
    session = open_session(content, threads=threads, providers=("CPUExecutionProvider",), allow_spinning=True)
    source = session.get_inputs()[0].name
    return lambda image: session.run(list(outputs), {source: image[None]})


def choose_range(
    histogram: Histogram, method: Method, *, levels: int = 255, symmetric: bool = False, negative_slope: float = 1.0
) -> Range:
    """What to keep of a tensor's values; 0 is always inside, so that padding is exact.

    Args:
        histogram: Histogram of the tensor.
        method: ``minmax`` clips nothing; ``percentile`` clips 0.01 % of the values in all, from either end by
            half; ``mse`` takes the clip with the smallest mean squared error of the quantised values.
        levels: Steps between the ends.
        symmetric: The range is the same on both sides of 0.
        negative_slope: Slope of the activation behind the tensor, if that is a rectifier: errors of negative
            values count by its square, and where it is 0 they are not kept at all. 1 if there is none.

    Raises:
        ValueError: No such method.
    """
    low, high = min(histogram.low, 0.0) if negative_slope else 0.0, max(histogram.high, 0.0)
    if method == "percentile":
        low, high = _percentile_range(histogram, low, high)
    if symmetric:
        low, high = -max(-low, high), max(-low, high)
    if method == "mse":
        low, high = _mse_range(histogram, low, high, levels, symmetric, negative_slope)
    elif method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, got {method!r}")
    return Range(low, high)


def _bin_counts(array: Float32Array, low: float, high: float) -> npt.NDArray[np.int64]:
    """Like ``numpy.histogram`` on ``[low, high]``, several times faster."""
    if high <= low:
        return np.bincount([0], weights=[array.size], minlength=_BINS).astype(np.int64)
    kind = np.float32 if 1e-30 < high - low < 1e30 else np.float64  # beyond, a difference or factor overflows
    index = ((array.ravel() - kind(low)) * kind(_BINS / (high - low))).astype(np.int32)
    return np.bincount(np.minimum(np.maximum(index, 0), _BINS - 1), minlength=_BINS)


def _percentile_range(histogram: Histogram, low: float, high: float) -> tuple[float, float]:
    tail = (1 - PERCENTILE / 100) / 2 * histogram.counts.sum()
    cumulative = np.cumsum(histogram.counts)
    edges = np.linspace(histogram.low, histogram.high, len(histogram.counts) + 1)
    first = int(np.searchsorted(cumulative, tail, side="right"))
    last = int(np.searchsorted(cumulative, cumulative[-1] - tail, side="left"))
    return min(max(low, edges[first]), 0.0), max(min(high, edges[min(last, len(edges) - 2) + 1]), 0.0)


def _mse_range(
    histogram: Histogram, low: float, high: float, levels: int, symmetric: bool, negative_slope: float
) -> tuple[float, float]:
    """Smallest expected squared error over clips of both ends, by turns."""
    x = histogram.centres
    weights = histogram.counts * np.where(x < 0, negative_slope**2, 1.0)

    def error(clip_low: float, clip_high: float) -> float:
        if clip_high <= clip_low:  # both 0, and so is all that is left
            return float(weights @ x**2)
        step = (clip_high - clip_low) / levels
        quantised = np.clip(np.rint((x - clip_low) / step), 0, levels) * step + clip_low
        return float(weights @ (x - quantised) ** 2)

    if symmetric:
        best = min(_SHARES, key=lambda share: error(low * share, high * share))
        return low * float(best), high * float(best)
    share_low = share_high = 1.0
    for _ in range(3):
        share_high = min(_SHARES, key=lambda share: error(low * share_low, high * share))
        share_low = min((0.0, *_SHARES), key=lambda share: error(low * share, high * share_high))
    return low * float(share_low), high * float(share_high)
