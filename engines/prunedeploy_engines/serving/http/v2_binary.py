"""Bodies of the protocol's REST form: JSON, with tensors in it or as bytes behind it."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from prunedeploy_engines.serving.core.errors import InvalidRequestError
from prunedeploy_engines.serving.core.limits import element_count, parse_json
from prunedeploy_engines.serving.core.served_model import VERSION
from prunedeploy_engines.serving.core.shared_memory import SharedBytes, shared_bytes
from prunedeploy_engines.serving.core.tensors import (
    BYTES,
    DATATYPES,
    NUMPY_TYPES,
    Data,
    InferRequest,
    InputTensor,
    RequestedOutput,
    check_datatype,
    raw_data,
)

HEADER = "Inference-Header-Content-Length"

_ENCODER = json.JSONEncoder(separators=(",", ":"))

Kind = TypeVar("Kind")
_IS_NOT: dict[type, str] = {
    dict: "is not a JSON object",
    list: "is not a list",
    str: "is not a string",
    bool: "is neither true nor false",
}


def of_kind(kind: type[Kind], value: Any, where: str) -> Kind:
    """Refuse a value of JSON of another kind than ``dict``, ``list``, ``str`` or ``bool``.

    Raises:
        InvalidRequestError: It is.
    """
    if not isinstance(value, kind):
        raise InvalidRequestError(f"{where} {_IS_NOT[kind]}")
    return value


def json_length(header: str | None) -> int | None:
    """Length of the JSON of a request, as the header `HEADER` gives it; None: all of it is JSON.

    Raises:
        InvalidRequestError: It is not a whole number.
    """
    if header is None:
        return None
    if not header.isascii() or not header.isdecimal() or len(header) > 12:
        raise InvalidRequestError(f"{HEADER} is not a whole number")
    return int(header)


def read_document(body: bytes, length: int | None, max_depth: int) -> dict[str, Any]:
    """Read the JSON of an inference request, whose inputs' bytes may not have come yet.

    Args:
        body: As much of it as has come, the JSON at least.
        length: Of the JSON; None: all of it is.
        max_depth: Largest depth of the JSON.

    Raises:
        InvalidRequestError: It is not JSON, or its parameters are malformed.
        TooLargeError: See `parse_json`.
    """
    if length is not None and length > len(body):
        raise InvalidRequestError(f"{HEADER} is more than the {len(body)} bytes of the body")
    document = of_kind(dict, parse_json(memoryview(body)[:length], max_depth), "the body")
    of_kind(dict, document.get("parameters", {}), "parameters")
    return document


def announced_images(document: Mapping[str, Any]) -> int:
    """How many images a request says it has; 1 where that cannot be told, since what is wrong is said later."""
    try:
        count = document["inputs"][0]["shape"][0]
    except (LookupError, TypeError):
        return 1
    return count if type(count) is int and count > 0 else 1


def read_request(document: Mapping[str, Any], behind: memoryview, model: str, version: str | None) -> InferRequest:
    """Read an inference request.

    Args:
        document: Its JSON, of `read_document`.
        behind: The inputs' bytes, in the order of the inputs.
        model: Name in the address.
        version: In the address.

    Raises:
        InvalidRequestError: Anything is not as the protocol says; the line names the field.
    """
    parameters = document.get("parameters", {})
    request_id = of_kind(str, document.get("id", ""), "id")
    inputs, rest = [], behind
    for index, one in enumerate(of_kind(list, document.get("inputs"), "inputs")):
        tensor, rest = _input(one, f"inputs[{index}]", rest)
        inputs.append(tensor)
    if len(rest):
        raise InvalidRequestError(f"the body has {len(rest)} bytes more than its inputs")
    binary = of_kind(bool, parameters.get("binary_data_output", False), "parameters.binary_data_output")
    outputs = None
    if document.get("outputs"):
        listed = enumerate(of_kind(list, document["outputs"], "outputs"))
        outputs = [_output(one, f"outputs[{index}]", binary) for index, one in listed]
    return InferRequest(model, version, request_id, inputs, outputs, {**parameters, "binary_data_output": binary})


def write_answer(request: InferRequest, arrays: Mapping[str, npt.NDArray[Any]]) -> tuple[bytes, int | None]:
    """Write an answer, each output as the request asked for it.

    Returns:
        The body; and how much of it is JSON, if bytes follow.

    Raises:
        InvalidRequestError: JSON cannot write an infinity that the network gave.
    """
    everything = bool(request.parameters.get("binary_data_output"))
    asked = {output.name: output for output in request.outputs or ()}
    outputs, behind = [], []
    for name, array in arrays.items():
        entry: dict[str, Any] = {"name": name, "datatype": DATATYPES[array.dtype], "shape": list(array.shape)}
        output = asked.get(name)
        if output is not None and output.place is not None:
            entry["parameters"] = {
                "shared_memory_region": output.place.region,
                "shared_memory_byte_size": array.nbytes,
                "shared_memory_offset": output.place.offset,
            }
        elif everything if output is None else output.binary:
            entry["parameters"] = {"binary_data_size": array.nbytes}
            behind.append(_as_bytes(array))
        else:
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                # An untrained network overflows its exp().
                raise InvalidRequestError(
                    f"output {name} has infinities, which JSON cannot write", fix="set binary_data"
                )
            entry["data"] = array.ravel().tolist()
        outputs.append(entry)
    document: dict[str, Any] = {"model_name": request.model, "model_version": VERSION, "outputs": outputs}
    if request.id:
        document["id"] = request.id
    text = _ENCODER.encode(document).encode()
    if not behind:
        return text, None
    return b"".join([text, *behind]), len(text)


def _as_bytes(array: npt.NDArray[Any]) -> memoryview | bytes:
    """The array's own memory where it lies in row-major order, as it does."""
    return array.data.cast("B") if array.flags.c_contiguous and array.size else array.tobytes()


def _input(given: Any, where: str, rest: memoryview) -> tuple[InputTensor, memoryview]:
    """One input, and the bytes that are left behind it."""
    entry = of_kind(dict, given, where)
    name = of_kind(str, entry.get("name"), f"{where}.name")
    datatype = check_datatype(entry.get("datatype"), f"{where}.datatype")
    count = element_count(entry.get("shape"), f"{where}.shape")
    shape = tuple(entry["shape"])
    parameters = of_kind(dict, entry.get("parameters", {}), f"{where}.parameters")
    size = parameters.get("binary_data_size")
    place = shared_bytes(parameters, where)
    data: Data | SharedBytes
    if place is not None:
        if "data" in entry or size is not None:
            raise InvalidRequestError(f"{where} has both shared_memory_region and data")
        data = place
    elif size is not None:
        if type(size) is not int or not 0 <= size <= len(rest):
            raise InvalidRequestError(f"{where}.parameters.binary_data_size is not a size within the body")
        if "data" in entry:
            raise InvalidRequestError(f"{where} has both data and binary_data_size")
        raw, rest = rest[:size], rest[size:]
        data = raw_data(datatype, shape, count, raw, where)
    else:
        listed = of_kind(list, entry.get("data"), f"{where}.data")
        data = (
            _texts(listed, shape, count, where)
            if datatype == BYTES
            else _numbers(listed, datatype, shape, count, where)
        )
    return InputTensor(name, datatype, shape, data), rest


def _numbers(given: list[Any], datatype: str, shape: tuple[int, ...], count: int, where: str) -> npt.NDArray[Any]:
    """Numbers of JSON, flat or nested."""
    try:
        array = np.array(given)
    except (ValueError, OverflowError):  # ragged
        raise InvalidRequestError(f"{where}.data is not flat and not nested evenly") from None
    dtype = NUMPY_TYPES[datatype]
    if array.size != count or (array.ndim != 1 and array.shape != shape):
        raise InvalidRequestError(f"{where}.data has shape {list(array.shape)}, {where}.shape is {list(shape)}")
    if not count:
        return np.empty(shape, dtype)
    if array.dtype.kind not in ("iu" if dtype.kind in "iu" else "iuf"):
        raise InvalidRequestError(f"{where}.data has something that is not {datatype}")
    limits = np.iinfo(dtype) if dtype.kind in "iu" else np.finfo(dtype)
    if not (array.min() >= limits.min and array.max() <= limits.max):
        raise InvalidRequestError(f"{where}.data has a number that is out of the range of {datatype}")
    return array.astype(dtype).reshape(shape)


def _texts(given: list[Any], shape: tuple[int, ...], count: int, where: str) -> list[bytes | memoryview]:
    """Base64 of JSON, since no image is valid text by itself; flat, or nested as the shape is."""
    if any(isinstance(one, list) for one in given):
        for side in shape[1:]:
            if not all(isinstance(one, list) and len(one) == side for one in given):
                raise InvalidRequestError(f"{where}.data is not flat and not nested as {where}.shape, {list(shape)}")
            given = [element for one in given for element in one]
    if len(given) != count:
        raise InvalidRequestError(f"{where}.data has {len(given)} elements, its shape makes {count}")
    try:
        return [base64.b64decode(one, validate=True) for one in given]
    except (binascii.Error, ValueError, TypeError):
        raise InvalidRequestError(f"{where}.data has an element that is not a string of base64") from None


def _output(given: Any, where: str, all_binary: bool) -> RequestedOutput:
    entry = of_kind(dict, given, where)
    name = of_kind(str, entry.get("name"), f"{where}.name")
    parameters = of_kind(dict, entry.get("parameters", {}), f"{where}.parameters")
    if parameters.get("classification"):
        raise InvalidRequestError(f"{where}.parameters.classification is not offered")
    binary = of_kind(bool, parameters.get("binary_data", all_binary), "parameters.binary_data")
    return RequestedOutput(name, binary, shared_bytes(parameters, where))
