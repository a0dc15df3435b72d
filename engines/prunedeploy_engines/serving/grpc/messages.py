"""Messages of the protocol's gRPC form, made from its field numbers: no generated code, no compiler.

Wire types and numbers are those of the Open Inference Protocol and of Triton's model repository extension. A field is
written as ``number:type``, ``*`` for repeated, a message by its name.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"

_PARAMETERS = "*map<InferParameter>"
_REPOSITORY_PARAMETERS = "*map<ModelRepositoryParameter>"

MESSAGES: dict[str, dict[str, str]] = {
    "ServerLiveRequest": {},
    "ServerLiveResponse": {"live": "1:bool"},
    "ServerReadyRequest": {},
    "ServerReadyResponse": {"ready": "1:bool"},
    "ModelReadyRequest": {"name": "1:string", "version": "2:string"},
    "ModelReadyResponse": {"ready": "1:bool"},
    "ServerMetadataRequest": {},
    "ServerMetadataResponse": {"name": "1:string", "version": "2:string", "extensions": "3:*string"},
    "ModelMetadataRequest": {"name": "1:string", "version": "2:string"},
    "ModelMetadataResponse": {
        "name": "1:string",
        "versions": "2:*string",
        "platform": "3:string",
        "inputs": "4:*ModelMetadataResponse.TensorMetadata",
        "outputs": "5:*ModelMetadataResponse.TensorMetadata",
    },
    "ModelMetadataResponse.TensorMetadata": {"name": "1:string", "datatype": "2:string", "shape": "3:*int64"},
    "InferParameter": {
        "bool_param": "1:bool",
        "int64_param": "2:int64",
        "string_param": "3:string",
        "double_param": "4:double",
        "uint64_param": "5:uint64",
    },
    "InferTensorContents": {
        "bool_contents": "1:*bool",
        "int_contents": "2:*int32",
        "int64_contents": "3:*int64",
        "uint_contents": "4:*uint32",
        "uint64_contents": "5:*uint64",
        "fp32_contents": "6:*float",
        "fp64_contents": "7:*double",
        "bytes_contents": "8:*bytes",
    },
    "ModelInferRequest": {
        "model_name": "1:string",
        "model_version": "2:string",
        "id": "3:string",
        "parameters": f"4:{_PARAMETERS}",
        "inputs": "5:*ModelInferRequest.InferInputTensor",
        "outputs": "6:*ModelInferRequest.InferRequestedOutputTensor",
        "raw_input_contents": "7:*bytes",
    },
    "ModelInferRequest.InferInputTensor": {
        "name": "1:string",
        "datatype": "2:string",
        "shape": "3:*int64",
        "parameters": f"4:{_PARAMETERS}",
        "contents": "5:InferTensorContents",
    },
    "ModelInferRequest.InferRequestedOutputTensor": {"name": "1:string", "parameters": f"2:{_PARAMETERS}"},
    "ModelInferResponse": {
        "model_name": "1:string",
        "model_version": "2:string",
        "id": "3:string",
        "parameters": f"4:{_PARAMETERS}",
        "outputs": "5:*ModelInferResponse.InferOutputTensor",
        "raw_output_contents": "6:*bytes",
    },
    "ModelInferResponse.InferOutputTensor": {
        "name": "1:string",
        "datatype": "2:string",
        "shape": "3:*int64",
        "parameters": f"4:{_PARAMETERS}",
        "contents": "5:InferTensorContents",
    },
    "ModelRepositoryParameter": {
        "bool_param": "1:bool",
        "int64_param": "2:int64",
        "string_param": "3:string",
        "bytes_param": "4:bytes",
    },
    "RepositoryIndexRequest": {"repository_name": "1:string", "ready": "2:bool"},
    "RepositoryIndexResponse": {"models": "1:*RepositoryIndexResponse.ModelIndex"},
    "RepositoryIndexResponse.ModelIndex": {
        "name": "1:string",
        "version": "2:string",
        "state": "3:string",
        "reason": "4:string",
    },
    "RepositoryModelLoadRequest": {
        "repository_name": "1:string",
        "model_name": "2:string",
        "parameters": f"3:{_REPOSITORY_PARAMETERS}",
    },
    "RepositoryModelLoadResponse": {},
    "RepositoryModelUnloadRequest": {
        "repository_name": "1:string",
        "model_name": "2:string",
        "parameters": f"3:{_REPOSITORY_PARAMETERS}",
    },
    "RepositoryModelUnloadResponse": {},
}

METHODS = (
    "ServerLive",
    "ServerReady",
    "ModelReady",
    "ServerMetadata",
    "ModelMetadata",
    "ModelInfer",
    "RepositoryIndex",
    "RepositoryModelLoad",
    "RepositoryModelUnload",
)
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
        for field, text in fields.items():
            _add_field(message, name, field, text)
    return file


def _add_field(message: descriptor_pb2.DescriptorProto, owner: str, name: str, text: str) -> None:
    number, kind = text.split(":")
    field = message.field.add(name=name, number=int(number), label=_Field.LABEL_OPTIONAL)
    if kind.startswith("*"):
        field.label, kind = _Field.LABEL_REPEATED, kind[1:]
    if kind.startswith("map<"):
        # A map is a repeated message of a key and a value, by this very name.
        entry = message.nested_type.add(name="ParametersEntry")
        entry.options.map_entry = True
        _add_field(entry, "", "key", "1:string")
        _add_field(entry, "", "value", f"2:{kind[4:-1]}")
        kind = f"{owner}.ParametersEntry"
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
