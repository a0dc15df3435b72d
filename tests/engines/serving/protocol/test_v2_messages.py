"""Our messages against those that Triton's public client was generated with, field by field."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import descriptor_pb2

from prunedeploy_engines.serving.grpc.messages import MESSAGES, METHODS, PACKAGE, message_type

service_pb2 = pytest.importorskip("tritonclient.grpc.service_pb2", reason="the reference is tritonclient[grpc]")


def definition(message: Any) -> dict[str, Any]:
    """Everything that matters on the wire, and the names; of a message and those inside it."""
    kept = descriptor_pb2.DescriptorProto()
    message.DESCRIPTOR.CopyToProto(kept)
    return shape_of(kept)


def shape_of(kept: descriptor_pb2.DescriptorProto) -> dict[str, Any]:
    return {
        "fields": {
            field.name: (
                field.number,
                field.type,
                field.label,
                field.type_name,
                field.HasField("oneof_index"),
            )
            for field in kept.field
        },
        "choices": [choice.name for choice in kept.oneof_decl],
        "map": kept.options.map_entry,
        "inside": {inner.name: shape_of(inner) for inner in kept.nested_type},
    }


@pytest.mark.parametrize("name", [name for name in MESSAGES if "." not in name])
def test_message_is_the_clients(name: str) -> None:
    assert definition(message_type(name)) == definition(getattr(service_pb2, name))


def test_methods_are_some_of_the_clients() -> None:
    theirs = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name
    for method in METHODS:
        assert theirs[method].input_type.name == f"{method}Request"
        assert theirs[method].output_type.name == f"{method}Response"
        assert theirs[method].input_type.full_name.startswith(f"{PACKAGE}.")
