"""Messages of the protocol's gRPC form, made from its field numbers: no generated code, no compiler.

Wire types and numbers are those of the Open Inference Protocol and of Triton's extensions that are offered. The
fields of a message are numbered from 1 in their order here; ``*`` is repeated, a message stands by its name.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"

_PARAMETERS = "*map<InferParameter>"
_NAMED = {"name": "string", "version": "string"}
_DESCRIBED = {"name": "string", "datatype": "string", "shape": "*int64"}
_TENSOR = {**_DESCRIBED, "parameters": _PARAMETERS, "contents": "InferTensorContents"}
_OF_A_MODEL = {"model_name": "string", "model_version": "string", "id": "string", "parameters": _PARAMETERS}
_CHANGE = {"repository_name": "string", "model_name": "string", "parameters": "*map<ModelRepositoryParameter>"}
_REGION = {"name": "string", "key": "string", "offset": "uint64", "byte_size": "uint64"}
_CHOICES = {"bool_param": "bool", "int64_param": "int64", "string_param": "string"}

MESSAGES: dict[str, dict[str, str]] = {
    "ServerLiveRequest": {},
    "ServerLiveResponse": {"live": "bool"},
    "ServerReadyRequest": {},
    "ServerReadyResponse": {"ready": "bool"},
    "ModelReadyRequest": _NAMED,
    "ModelReadyResponse": {"ready": "bool"},
    "ServerMetadataRequest": {},
    "ServerMetadataResponse": {**_NAMED, "extensions": "*string"},
    "ModelMetadataRequest": _NAMED,
    "ModelMetadataResponse": {
        "name": "string",
        "versions": "*string",
        "platform": "string",
        "inputs": "*ModelMetadataResponse.TensorMetadata",
        "outputs": "*ModelMetadataResponse.TensorMetadata",
    },
    "ModelMetadataResponse.TensorMetadata": _DESCRIBED,
    "InferParameter": {**_CHOICES, "double_param": "double", "uint64_param": "uint64"},
    "InferTensorContents": {
        "bool_contents": "*bool",
        "int_contents": "*int32",
        "int64_contents": "*int64",
        "uint_contents": "*uint32",
        "uint64_contents": "*uint64",
        "fp32_contents": "*float",
        "fp64_contents": "*double",
        "bytes_contents": "*bytes",
    },
    "ModelInferRequest": {
        **_OF_A_MODEL,
        "inputs": "*ModelInferRequest.InferInputTensor",
        "outputs": "*ModelInferRequest.InferRequestedOutputTensor",
        "raw_input_contents": "*bytes",
    },
    "ModelInferRequest.InferInputTensor": _TENSOR,
    "ModelInferRequest.InferRequestedOutputTensor": {"name": "string", "parameters": _PARAMETERS},
    "ModelInferResponse": {
        **_OF_A_MODEL,
        "outputs": "*ModelInferResponse.InferOutputTensor",
        "raw_output_contents": "*bytes",
    },
    "ModelInferResponse.InferOutputTensor": _TENSOR,
    "ModelRepositoryParameter": {**_CHOICES, "bytes_param": "bytes"},
    "RepositoryIndexRequest": {"repository_name": "string", "ready": "bool"},
    "RepositoryIndexResponse": {"models": "*RepositoryIndexResponse.ModelIndex"},
    "RepositoryIndexResponse.ModelIndex": {**_NAMED, "state": "string", "reason": "string"},
    "RepositoryModelLoadRequest": _CHANGE,
    "RepositoryModelLoadResponse": {},
    "RepositoryModelUnloadRequest": _CHANGE,
    "RepositoryModelUnloadResponse": {},
    "SystemSharedMemoryStatusRequest": {"name": "string"},
    "SystemSharedMemoryStatusResponse": {"regions": "*map<SystemSharedMemoryStatusResponse.RegionStatus>"},
    "SystemSharedMemoryStatusResponse.RegionStatus": _REGION,
    "SystemSharedMemoryRegisterRequest": _REGION,
    "SystemSharedMemoryRegisterResponse": {},
    "SystemSharedMemoryUnregisterRequest": {"name": "string"},
    "SystemSharedMemoryUnregisterResponse": {},
}

METHODS = [name.removesuffix("Request") for name in MESSAGES if name.endswith("Request")]
"""Each takes ``<method>Request`` and gives ``<method>Response``."""

ONE_OF = {"InferParameter": "parameter_choice", "ModelRepositoryParameter": "parameter_choice"}
"""Messages all of whose fields exclude each other, and what that choice is called."""

_Field = descriptor_pb2.FieldDescriptorProto


def _file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(name="open_inference.proto", package=PACKAGE, syntax="proto3")
    made: dict[str, descriptor_pb2.DescriptorProto] = {}
    for name, fields in MESSAGES.items():
        outer, _, inner = name.rpartition(".")
        message = made[outer].nested_type.add(name=inner) if outer else file.message_type.add(name=name)
        made[name] = message
        if name in ONE_OF:
            message.oneof_decl.add(name=ONE_OF[name])
        for field, kind in fields.items():
            _add_field(message, name, field, kind)
    return file


def _add_field(message: descriptor_pb2.DescriptorProto, owner: str, name: str, kind: str) -> None:
    field = message.field.add(name=name, number=len(message.field) + 1, label=_Field.LABEL_OPTIONAL)
    if kind.startswith("*"):
        field.label, kind = _Field.LABEL_REPEATED, kind[1:]
    if kind.startswith("map<"):
        # A map is a repeated message of a key and a value, by this very name.
        entry = message.nested_type.add(name=f"{name.capitalize()}Entry")
        entry.options.map_entry = True
        _add_field(entry, "", "key", "string")
        _add_field(entry, "", "value", kind[4:-1])
        kind = f"{owner}.{entry.name}"
    if kind[0].isupper():
        field.type, field.type_name = _Field.TYPE_MESSAGE, f".{PACKAGE}.{kind}"
    else:
        field.type = _Field.Type.Value(f"TYPE_{kind.upper()}")
    if owner in ONE_OF:
        field.oneof_index = 0


# In a pool of its own: a client library in the same process may bring its own definition of the same messages.
_pool = descriptor_pool.DescriptorPool()
_pool.Add(_file())


def message_type(name: str) -> Any:
    """The class of a message, e.g. ``ModelInferRequest``."""
    return message_factory.GetMessageClass(_pool.FindMessageTypeByName(f"{PACKAGE}.{name}"))
