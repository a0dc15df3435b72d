"""Random draws that depend on a key of numbers and on nothing else."""

from __future__ import annotations

import numpy as np


def generator_for(*key: int) -> np.random.Generator:
    """Return the generator of a key of any integers, e.g. seed, epoch and image id."""
    # SeedSequence takes non-negative integers and cuts large ones into 32-bit words; two words for each,
    # in two's complement, keep every key apart from every other of its length.
    words = [value & 0xFFFFFFFFFFFFFFFF for value in key]
    halves = [half for word in words for half in (word & 0xFFFFFFFF, word >> 32)]
    # PCG64 is named because NumPy may change its default.
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(halves)))
