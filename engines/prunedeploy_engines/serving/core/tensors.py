"""Tensors of the Open Inference Protocol, whatever they came in: JSON, bytes behind JSON, or protobuf."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from prunedeploy_engines.serving.core.errors import InvalidRequestError
from prunedeploy_engines.serving.core.shared_memory import SharedBytes

_CODES = {"FP32": "<f4", "UINT8": "u1", "INT32": "<i4", "INT64": "<i8"}
NUMPY_TYPES: dict[str, np.dtype[Any]] = {name: np.dtype(code) for name, code in _CODES.items()}
DATATYPES = {dtype: name for name, dtype in NUMPY_TYPES.items()}
BYTES = "BYTES"

LONGEST_TIMEOUT_S = 3600.0

Data = npt.NDArray[Any] | list[bytes | memoryview]
"""An array of a tensor's shape, perhaps read-only; of ``BYTES`` its elements in row-major order."""


@dataclass(frozen=True)
class InputTensor:
    """One input.

    Attributes:
        name: As the client calls it.
        datatype: Data type of the protocol.
        shape: As the client gives it.
        data: As many elements, or where they lie.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Data | SharedBytes


@dataclass(frozen=True)
class RequestedOutput:
    """One output that is asked for.

    Attributes:
        name: Of the model's.
        binary: Behind the JSON of a REST answer.
        place: In shared memory, and not in the answer.
    """

    name: str
    binary: bool = False
    place: SharedBytes | None = None


@dataclass(frozen=True)
class InferRequest:
    """A request of either protocol.

    Attributes:
        model: Name in the address.
        version: In the address; None or empty takes the one there is.
        id: Comes back with the answer.
        inputs: At least one.
        outputs: None asks for all.
        parameters: Parameters of the whole request.
    """

    model: str
    version: str | None
    id: str
    inputs: Sequence[InputTensor]
    outputs: Sequence[RequestedOutput] | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)


def raw_data(
    datatype: str, shape: tuple[int, ...], count: int, raw: bytes | bytearray | memoryview, where: str
) -> Data:
    """Take a tensor's bytes as they are, without copying: little-endian numbers, or ``BYTES`` split into elements.

    Args:
        datatype: Data type of the protocol.
        shape: Shape of the tensor.
        count: Product of the shape.
        raw: As many elements; each of ``BYTES`` behind its length, 4 bytes little-endian.
        where: Field, for the message.

    Raises:
        InvalidRequestError: More or fewer bytes than the shape says, or lengths that do not fit what there is.
    """
    if datatype != BYTES:
        size = count * NUMPY_TYPES[datatype].itemsize
        if len(raw) != size:
            raise InvalidRequestError(f"{where} has {len(raw)} bytes, its shape and type make {size}")
        return np.frombuffer(raw, NUMPY_TYPES[datatype]).reshape(shape)
    view = memoryview(raw)
    elements: list[bytes | memoryview] = []
    position = 0
    while position < len(view) and len(elements) <= count:
        start = position + 4
        position = start + int.from_bytes(view[position:start], "little")
        if position > len(view):
            raise InvalidRequestError(f"{where} has an element that is longer than the data")
        elements.append(view[start:position])
    if len(elements) != count:
        raise InvalidRequestError(f"{where} does not have the {count} elements of its shape")
    return elements


def check_datatype(datatype: object, where: str) -> str:
    """Refuse types that no model here takes.

    Raises:
        InvalidRequestError: It is not one of ``FP32``, ``UINT8``, ``BYTES`` and the like.
    """
    if not isinstance(datatype, str) or (datatype != BYTES and datatype not in NUMPY_TYPES):
        raise InvalidRequestError(f"{where} is none of {', '.join((*NUMPY_TYPES, BYTES))}")
    return datatype


def fraction(parameters: Mapping[str, Any], name: str) -> float | None:
    """A parameter in [0, 1], or None where it is not given.

    Raises:
        InvalidRequestError: It is something else.
    """
    value = parameters.get(name)
    if value is None:
        return None
    if type(value) not in (int, float) or not 0 <= value <= 1:
        raise InvalidRequestError(f"parameters.{name} is not a number from 0 to 1")
    return float(value)


def timeout_s(parameters: Mapping[str, Any]) -> float | None:
    """The parameter ``timeout``, which Triton's clients give in microseconds; None where it is not given, or 0.

    Raises:
        InvalidRequestError: It is not a whole number, or is negative.
    """
    value = parameters.get("timeout", 0)
    if type(value) is not int or value < 0:
        raise InvalidRequestError("parameters.timeout is not a whole number of microseconds")
    return min(value / 1e6, LONGEST_TIMEOUT_S) if value else None


def header_timeout_s(text: str | None) -> float | None:
    """The header ``X-Request-Timeout``, in seconds; None where it is not there.

    Raises:
        InvalidRequestError: It is not a positive number.
    """
    if text is None:
        return None
    seconds = number(text) if len(text) < 32 else math.nan
    if not seconds > 0:
        raise InvalidRequestError("X-Request-Timeout is not a positive number of seconds")
    return min(seconds, LONGEST_TIMEOUT_S)


def number(text: str) -> float:
    """A number of a query or header; NaN where it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan
