"""What `process` and `worker` send each other: a line of JSON, then the bytes of the arrays that it announces."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import IO, Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def send(stream: IO[bytes], message: dict[str, Any], arrays: Sequence[Array] = ()) -> None:
    """Write a message and what comes with it.

    Args:
        stream: Buffered.
        message: JSON values; ``arrays`` is not among its keys.
        arrays: Numbers, of any shape and layout.
    """
    contiguous = [np.ascontiguousarray(array) for array in arrays]
    told = [{"dtype": array.dtype.str, "shape": array.shape} for array in contiguous]
    stream.write(json.dumps({**message, "arrays": told}).encode() + b"\n")
    for array in contiguous:
        stream.write(_bytes_of(array))
    stream.flush()


def receive(stream: IO[bytes]) -> tuple[dict[str, Any], list[Array]]:
    """Read a message; the arrays are new ones.

    Raises:
        EOFError: The stream ended before it or within it.
    """
    line = stream.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    message = json.loads(line)
    return message, [_read_array(stream, **told) for told in message.pop("arrays")]


def _read_array(stream: Any, dtype: str, shape: Sequence[int]) -> Array:
    array: Array = np.empty(shape, dtype)
    missing = _bytes_of(array)
    while len(missing):
        count = stream.readinto(missing)
        if not count:
            raise EOFError
        missing = missing[count:]
    return array


def _bytes_of(array: Array) -> memoryview:
    """The memory of a contiguous array."""
    return array.reshape(-1).view(np.uint8).data
