"""Requests and answers of the protocol's gRPC form, between protobuf and arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from prunedeploy_engines.serving.core.errors import InvalidRequestError
from prunedeploy_engines.serving.core.limits import element_count
from prunedeploy_engines.serving.core.tensors import (
    BYTES,
    DATATYPES,
    NUMPY_TYPES,
    InferAnswer,
    InferRequest,
    InputTensor,
    RequestedOutput,
    check_datatype,
    raw_array,
    raw_elements,
)
from prunedeploy_engines.serving.grpc.messages import message_type

# Which field of InferTensorContents has the elements of a type.
_CONTENTS = {
    "FP32": "fp32_contents",
    "UINT8": "uint_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    BYTES: "bytes_contents",
}

_ModelInferResponse = message_type("ModelInferResponse")


def read_request(message: Any) -> InferRequest:
    """Read a ``ModelInferRequest``.

    Raises:
        InvalidRequestError: Anything is not as the protocol says; the line names the field.
    """
    raw = list(message.raw_input_contents)
    if raw and len(raw) != len(message.inputs):
        raise InvalidRequestError(f"raw_input_contents has {len(raw)} elements for {len(message.inputs)} inputs")
    inputs = [
        _input(tensor, f"inputs[{index}]", raw[index] if raw else None) for index, tensor in enumerate(message.inputs)
    ]
    for index, output in enumerate(message.outputs):
        for refused in ("classification", "shared_memory_region"):
            if refused in output.parameters:
                raise InvalidRequestError(f"outputs[{index}].parameters.{refused} is not offered")
    outputs = [RequestedOutput(output.name, binary=True) for output in message.outputs]
    parameters = read_parameters(message.parameters)
    return InferRequest(
        message.model_name, message.model_version or None, message.id, inputs, outputs or None, parameters
    )


def read_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values of a map of ``InferParameter``; one without a value is left out."""
    read = {}
    for name, parameter in parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        if choice is not None:
            read[name] = getattr(parameter, choice)
    return read


def write_answer(answer: InferAnswer) -> Any:
    """Write a ``ModelInferResponse``, the tensors as raw bytes."""
    message = _ModelInferResponse(model_name=answer.model, model_version=answer.version, id=answer.id)
    for name, array in answer.outputs.items():
        message.outputs.add(name=name, datatype=DATATYPES[array.dtype], shape=array.shape)
        message.raw_output_contents.append(array.tobytes())
    return message


def _input(tensor: Any, where: str, raw: bytes | None) -> InputTensor:
    datatype = check_datatype(tensor.datatype, f"{where}.datatype")
    shape = tuple(tensor.shape)
    count = element_count(list(shape), f"{where}.shape")
    if "shared_memory_region" in tensor.parameters:
        raise InvalidRequestError(f"{where}.parameters.shared_memory_region: shared memory is not offered")
    data: npt.NDArray[Any] | list[bytes | memoryview]
    if raw is not None:
        if tensor.HasField("contents"):
            raise InvalidRequestError(f"{where} has both contents and raw_input_contents")
        data = raw_elements(raw, count, where) if datatype == BYTES else raw_array(datatype, shape, count, raw, where)
        return InputTensor(tensor.name, datatype, shape, data)
    given = getattr(tensor.contents, _CONTENTS[datatype])
    if len(given) != count:
        raise InvalidRequestError(f"{where}.contents has {len(given)} elements of {datatype}, its shape makes {count}")
    if datatype == BYTES:
        return InputTensor(tensor.name, datatype, shape, list(given))
    dtype = np.dtype(NUMPY_TYPES[datatype])
    if datatype == "UINT8" and count and max(given) > 255:
        raise InvalidRequestError(f"{where}.contents has a number that is out of the range of UINT8")
    return InputTensor(tensor.name, datatype, shape, np.array(given, dtype).reshape(shape))
