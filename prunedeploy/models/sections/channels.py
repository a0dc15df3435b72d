"""Where the channels of a layer's output come from: all that pruning has to know of a layer.

Coupling, masks, constants and dead channels follow channels through a network by this alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Sources:
    """Where each output channel of a layer comes from, and which channels must leave together.

    Channels are numbered: those of the first input from 0, those of the next input behind them, and behind all
    inputs those of the output, which only ``ties`` name.

    Attributes:
        terms: Each ``(out_channels,)`` int64: the input channels that an output channel is a function of, one of each
            array; -1, never in the first, where it has fewer. What one output channel is a function of leaves as one.
            Empty if the output channels are filters of the layer's own, or of ``filters_of``.
        ties: Each ``(members, n)`` int64: what stands in one column leaves together beside that, for the layer to stay
            what it is.
        alive_at_zero: Why an output channel whose inputs are zero is not zero; None if it is.
        product: Whether an output channel is zero as soon as one of its terms is.
        filters_of: Index of the layer whose filters the output channels are, where they are no filters of the layer's
            own; what the two read leaves together.
        frozen: Why no output channel may leave, whatever it reads; None if they may.
        mixed: ``(n,)``, input channels that all output channels are a function of beside their terms, without being
            zero where these are.
    """

    terms: tuple[IntArray, ...] = ()
    ties: tuple[IntArray, ...] = ()
    alive_at_zero: str | None = None
    product: bool = False
    filters_of: int | None = None
    frozen: str | None = None
    mixed: IntArray | None = None


def one_to_one(channels: int) -> tuple[IntArray, ...]:
    """The terms of a layer whose every output channel is a function of the same one of its only input."""
    return (np.arange(channels),)
