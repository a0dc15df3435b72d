"""What convolutions cost at any width: measured on a grid, interpolated between.

Convolutions that differ in widths alone share a grid over (filters, input channels). Times between grid points are
interpolated bilinearly, those below the smallest are the smallest. Where noise made more channels look cheaper, the
table is made monotone downwards, as what disturbs a measurement only ever makes it slower.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunedeploy.models.darknet_cfg import DarknetCfg
from prunedeploy.models.sections import Convolutional
from prunedeploy_engines.errors import ConfigError

_FRACTIONS = (0.125, 0.25, 0.5, 1.0)
_STEP = 8


@dataclass(frozen=True)
class ConvolutionShape:
    """What convolutions have in common that differ in widths alone.

    Attributes:
        size: Height and width of the kernel.
        stride: As in the cfg.
        padding: As in the cfg.
        dilation: As in the cfg.
        activation: As in the cfg.
        height: Height of the input.
        width: Width of the input.
    """

    size: int
    stride: int
    padding: int
    dilation: int
    activation: str
    height: int
    width: int


@dataclass(frozen=True)
class Grid:
    """Widths at which one shape is measured, ascending.

    Attributes:
        filters: Output channels.
        inputs: Input channels.
    """

    filters: tuple[int, ...]
    inputs: tuple[int, ...]


def shape_of(cfg: DarknetCfg, layer: Convolutional) -> ConvolutionShape:
    """The shape of a convolution at the cfg's input size."""
    source = layer.inputs[0]
    height, width = cfg.input_size if source < 0 else cfg.layers[source].out_shape[1:]
    return ConvolutionShape(layer.size, layer.stride, layer.padding, layer.dilation, layer.activation, height, width)


def measuring_grid(cfg: DarknetCfg) -> dict[ConvolutionShape, Grid]:
    """At which widths to measure which shapes, so that every narrower network is covered.

    Args:
        cfg: The unpruned network.

    Raises:
        ConfigError: A convolution has groups, so its width is not one number of filters times one of inputs, or
            different strides down and across, or weights that others share.
    """
    largest: dict[ConvolutionShape, tuple[int, int]] = {}
    for layer in cfg.convolutions:
        if (reason := _not_measured(cfg, layer)) is not None:
            raise ConfigError(
                f"the convolution of layer {layer.index} has {reason}, whose time at other widths is not measured",
                f"{cfg.where}:{layer.line}",
                "use --set allocation=uniform, global or erk",
            )
        shape = shape_of(cfg, layer)
        filters, inputs = largest.get(shape, (0, 0))
        largest[shape] = max(filters, layer.out_channels), max(inputs, layer.in_channels[0])
    return {shape: Grid(_points(filters), _points(inputs)) for shape, (filters, inputs) in largest.items()}


def _not_measured(cfg: DarknetCfg, layer: Convolutional) -> str | None:
    if layer.groups > 1:
        return "groups"
    if layer.stride_y != layer.stride:
        return "two strides"
    return "weights that others share" if layer.index in cfg.shared_weights else None


def _points(largest: int) -> tuple[int, ...]:
    rounded = {-(-int(largest * fraction) // _STEP) * _STEP for fraction in _FRACTIONS}
    return tuple(sorted({min(max(_STEP, value), largest) for value in rounded} | {largest}))


class ConvolutionTimes:
    """Milliseconds of every convolution of a network at any width; a `TimeTable`.

    Args:
        cfg: The unpruned network.
        measured: For every shape of `measuring_grid` its grid and ``(filters, inputs)`` milliseconds.
    """

    def __init__(self, cfg: DarknetCfg, measured: Mapping[ConvolutionShape, tuple[Grid, NDArray[np.float64]]]) -> None:
        self._table = {shape: (grid, monotone(times)) for shape, (grid, times) in measured.items()}
        self._shapes = {layer.index: shape_of(cfg, layer) for layer in cfg.convolutions}

    def __call__(self, layer: int, filters: float, inputs: float) -> float:
        """Milliseconds of the convolution at index ``layer`` with so many filters and input channels."""
        grid, times = self._table[self._shapes[layer]]
        row, right = _position(grid.filters, filters)
        column, below = _position(grid.inputs, inputs)
        corner = times[row : row + 2, column : column + 2]
        # (1 or 2 filters) x (1 or 2 inputs), weighted by how near the grid's lines are
        return float(_weights(right, len(corner)) @ corner @ _weights(below, corner.shape[1]))


def monotone(times: NDArray[np.float64]) -> NDArray[np.float64]:
    """Lower what is above an entry with more filters or inputs: ``(filters, inputs)`` to the same shape."""
    from_largest = times[::-1, ::-1]
    return np.minimum.accumulate(np.minimum.accumulate(from_largest, axis=0), axis=1)[::-1, ::-1]


def times_as_json(measured: Mapping[ConvolutionShape, tuple[Grid, NDArray[np.float64]]]) -> list[dict[str, Any]]:
    """One plain entry per shape."""
    return [{"shape": asdict(shape), **asdict(grid), "ms": times.tolist()} for shape, (grid, times) in measured.items()]


def times_from_json(document: list[dict[str, Any]]) -> dict[ConvolutionShape, tuple[Grid, NDArray[np.float64]]]:
    """What `times_as_json` gave."""
    return {
        ConvolutionShape(**entry["shape"]): (
            Grid(tuple(entry["filters"]), tuple(entry["inputs"])),
            np.array(entry["ms"], dtype=np.float64),
        )
        for entry in document
    }


def _position(points: tuple[int, ...], value: float) -> tuple[int, float]:
    """Index of the grid line at or below a value and how far it is to the next, in [0, 1]; clipped to the grid."""
    clipped = min(max(value, points[0]), points[-1])
    index = min(max(0, int(np.searchsorted(points, clipped, side="right")) - 1), max(0, len(points) - 2))
    if len(points) == 1:
        return 0, 0.0
    return index, (clipped - points[index]) / (points[index + 1] - points[index])


def _weights(fraction: float, count: int) -> NDArray[np.float64]:
    return np.array([1.0 - fraction, fraction])[:count]
