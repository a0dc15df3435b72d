"""Requests and answers of the protocol's gRPC form, between protobuf and arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from prunedeploy_engines.serving.core.errors import InvalidRequestError
from prunedeploy_engines.serving.core.limits import element_count
from prunedeploy_engines.serving.core.served_model import VERSION
from prunedeploy_engines.serving.core.shared_memory import shared_bytes
from prunedeploy_engines.serving.core.tensors import (
    BYTES,
    DATATYPES,
    NUMPY_TYPES,
    InferRequest,
    InputTensor,
    RequestedOutput,
    check_datatype,
    raw_data,
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
    outputs = [_output(output, f"outputs[{index}]") for index, output in enumerate(message.outputs)]
    parameters = plain_parameters(message.parameters)
    return InferRequest(
        message.model_name, message.model_version or None, message.id, inputs, outputs or None, parameters
    )


def announced_images(inputs: Sequence[InputTensor]) -> int:
    """How many images a request has; 1 where that cannot be told, since what is wrong is said later."""
    return max(1, inputs[0].shape[0]) if inputs and inputs[0].shape else 1


def write_answer(request: InferRequest, outputs: Mapping[str, npt.NDArray[Any]]) -> Any:
    """Write a ``ModelInferResponse``, the tensors as raw bytes."""
    message = message_type("ModelInferResponse")(model_name=request.model, model_version=VERSION, id=request.id)
    places = {output.name: output.place for output in request.outputs or ()}
    for name, array in outputs.items():
        output = message.outputs.add(name=name, datatype=DATATYPES[array.dtype], shape=array.shape)
        place = places.get(name)
        # Clients count: there is an element for each output, empty for one that lies elsewhere.
        message.raw_output_contents.append(array.tobytes() if place is None else b"")
        if place is not None:
            output.parameters["shared_memory_region"].string_param = place.region
            output.parameters["shared_memory_byte_size"].int64_param = array.nbytes
            output.parameters["shared_memory_offset"].int64_param = place.offset
    return message


def plain_parameters(parameters: Any) -> dict[str, Any]:
    """Parameters by name; one without a value is left out."""
    chosen = {name: parameter.WhichOneof("parameter_choice") for name, parameter in parameters.items()}
    return {name: getattr(parameters[name], choice) for name, choice in chosen.items() if choice}


def _output(output: Any, where: str) -> RequestedOutput:
    if "classification" in output.parameters:
        raise InvalidRequestError(f"{where}.parameters.classification is not offered")
    return RequestedOutput(output.name, binary=True, place=shared_bytes(plain_parameters(output.parameters), where))


def _input(tensor: Any, where: str, raw: bytes | None) -> InputTensor:
    datatype = check_datatype(tensor.datatype, f"{where}.datatype")
    shape = tuple(tensor.shape)
    count = element_count(list(shape), f"{where}.shape")
    place = shared_bytes(plain_parameters(tensor.parameters), where)
    if place is not None:
        if raw is not None or tensor.HasField("contents"):
            raise InvalidRequestError(f"{where} has both shared_memory_region and contents")
        return InputTensor(tensor.name, datatype, shape, place)
    if raw is not None:
        if tensor.HasField("contents"):
            raise InvalidRequestError(f"{where} has both contents and raw_input_contents")
        return InputTensor(tensor.name, datatype, shape, raw_data(datatype, shape, count, raw, where))
    given = getattr(tensor.contents, _CONTENTS[datatype])
    if len(given) != count:
        raise InvalidRequestError(f"{where}.contents has {len(given)} elements of {datatype}, its shape makes {count}")
    if datatype == BYTES:
        return InputTensor(tensor.name, datatype, shape, list(given))
    if datatype == "UINT8" and count and max(given) > 255:
        raise InvalidRequestError(f"{where}.contents has a number that is out of the range of UINT8")
    return InputTensor(tensor.name, datatype, shape, np.array(given, NUMPY_TYPES[datatype]).reshape(shape))
