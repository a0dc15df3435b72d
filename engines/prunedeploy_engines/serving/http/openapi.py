"""The OpenAPI document, written by hand since handlers read bytes; schemathesis holds the server to it."""

from __future__ import annotations

from typing import Any

from prunedeploy_engines.serving.core.settings import ServingSettings
from prunedeploy_engines.serving.http.v2_binary import HEADER
from prunedeploy_engines.version import __version__

JSON = "application/json"
BINARY = "application/octet-stream"

_FAILURES = {
    400: "Malformed; the line names the field",
    401: "The token is missing or wrong",
    404: "No such model, version or address",
    408: "The body did not arrive in time",
    413: "Over a limit",
    415: "Of a kind that is not taken",
    503: "Busy, or the model is not loaded; Retry-After says when to ask again",
    504: "The deadline passed",
}
_OF_BODIES = (400, 408, 413, 415, 503)
_LONGEST = 999_999_999_999  # digits that the server reads; the body bounds it further
_STRING = {"type": "string"}
_FRACTION = {"type": "number", "minimum": 0, "maximum": 1}
_OPEN_OBJECT = {"type": "object"}


def _parameter(name: str, where: str, schema: dict[str, Any], text: str) -> dict[str, Any]:
    return {"name": name, "in": where, "required": False, "schema": schema, "description": text}


_TIMEOUT = _parameter("X-Request-Timeout", "header", {"type": "number", "exclusiveMinimum": 0}, "Deadline in seconds")


def openapi_document(settings: ServingSettings) -> dict[str, Any]:
    """Describe every address but those of the page.

    Args:
        settings: Whether a token is asked for, and shared memory offered.
    """
    paths: dict[str, Any] = {
        "/v2": {"get": _operation("About the server", answer="ServerMetadata", open=settings.token is None)},
        "/v2/health/live": {"get": _operation("The process answers", answer="Live", open=True)},
        "/v2/health/ready": {"get": _operation("Every model answers", 503, answer="Ready", open=True)},
        "/v2/models/stats": {"get": _operation("Counts and times of all models", answer="Statistics")},
        "/v2/repository/index": {"post": _operation("States", *_OF_BODIES, answer="Index", body="IndexRequest")},
        "/v1/models": {"get": _operation("What is known of each model", answer="Models")},
        "/v1/detect": {"post": _detect()},
        "/metrics": {"get": _operation("Figures for Prometheus", kind="text/plain")},
        "/openapi.json": {"get": _operation("This document", answer="Anything", open=True)},
        "/docs": {"get": _operation("This document for people", kind="text/html", open=True)},
    }
    for verb, what in (("load", "Load a model, or replace it by what its folder holds now"), ("unload", "Unload it")):
        operation = _operation(what, *_OF_BODIES, 404, answer="Anything", body="RepositoryRequest")
        paths[f"/v2/repository/models/{{name}}/{verb}"] = {"parameters": [_path("name")], "post": operation}
    for address, parts in (("", ["name"]), ("/versions/{version}", ["name", "version"])):
        base = f"/v2/models/{{name}}{address}"
        parameters = [_path(part) for part in parts]
        paths[base] = {"parameters": parameters, "get": _operation("Its tensors", 404, 503, answer="Metadata")}
        config = _operation("Its configuration, as Triton writes it", 404, 503, answer="Config")
        paths[f"{base}/config"] = {"parameters": parameters, "get": config}
        counts = _operation("Counts and times of its requests", 404, 503, answer="Statistics")
        paths[f"{base}/stats"] = {"parameters": parameters, "get": counts}
        ready = _operation("It answers", 404, 503, answer="ModelReady")
        paths[f"{base}/ready"] = {"parameters": parameters, "get": ready}
        paths[f"{base}/infer"] = {"parameters": parameters, "post": _infer()}
    if settings.shared_memory:
        paths |= _shared_memory()
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "prunedeploy",
            "version": __version__,
            "description": "Detectors behind the Open Inference Protocol (KServe V2), and images in, detections out.",
        },
        "security": [] if settings.token is None else [{"token": []}],
        "paths": paths,
        "components": {"schemas": _schemas(), "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
    }


def _operation(
    summary: str,
    *failures: int,
    answer: str | None = None,
    kind: str = JSON,
    body: str | None = None,
    open: bool = False,
) -> dict[str, Any]:
    schema = _STRING if answer is None else _ref(answer)
    responses: dict[str, Any] = {"200": {"description": "As asked", "content": {kind: {"schema": schema}}}}
    for status in sorted({*failures, *(() if open else (401,))}):
        responses[str(status)] = {"description": _FAILURES[status], "content": {JSON: {"schema": _ref("Error")}}}
    operation: dict[str, Any] = {"summary": summary, "responses": responses}
    if open:
        operation["security"] = []
    if body is not None:
        operation["requestBody"] = {"content": {JSON: {"schema": _ref(body)}}}
    return operation


def _shared_memory() -> dict[str, Any]:
    base, region = "/v2/systemsharedmemory", "/region/{name}"
    register = _operation("Open shared memory of a client", *_OF_BODIES, 404, answer="Anything", body="RegisterRequest")
    register["requestBody"]["required"] = True
    paths: dict[str, Any] = {f"{base}{region}/register": {"parameters": [_path("name")], "post": register}}
    for address, parameters, which in (("", [], "All regions"), (region, [_path("name")], "A region")):
        status = _operation(f"{which} of shared memory", 400, 404, answer="Regions")
        paths[f"{base}{address}/status"] = {"parameters": parameters, "get": status}
        close = _operation(f"{which} of shared memory, closed", 404, answer="Anything")
        paths[f"{base}{address}/unregister"] = {"parameters": parameters, "post": close}
    return paths


def _infer() -> dict[str, Any]:
    operation = _operation("Run a model", *_OF_BODIES, 404, 504, answer="InferResponse", body="InferRequest")
    operation["requestBody"]["required"] = True
    # With the header, JSON stands first and the tensors' bytes follow; no schema has words for that.
    operation["requestBody"]["content"][BINARY] = {}
    operation["responses"]["200"]["content"][BINARY] = {}
    length = {"type": "integer", "minimum": 0, "maximum": _LONGEST}
    text = "Length of the JSON in front of tensors' bytes"
    operation["parameters"] = [_parameter(HEADER, "header", length, text), _TIMEOUT]
    return operation


def _detect() -> dict[str, Any]:
    operation = _operation("Find objects in images", *_OF_BODIES, 404, 504, answer="DetectResponse")
    picture = {"schema": {"type": "string", "format": "binary"}}
    form = {
        "type": "object",
        "required": ["image"],
        "additionalProperties": False,
        "properties": {"image": {"type": "array", "minItems": 1, "items": {"type": "string", "format": "binary"}}},
    }
    kinds = ("image/jpeg", "image/png", "image/webp", BINARY)
    operation["requestBody"] = {
        "required": True,
        "content": {**dict.fromkeys(kinds, picture), "multipart/form-data": {"schema": form}},
    }
    for kind in ("image/png", "image/jpeg"):
        operation["responses"]["200"]["content"][kind] = picture
    operation["parameters"] = [
        _parameter("model", "query", _STRING, "Name of the model; the first one if it is not given"),
        _parameter(
            "score_threshold", "query", _FRACTION, "Detections have a higher score; the bundle's if it is not given"
        ),
        _parameter("iou_threshold", "query", _FRACTION, "For suppression; the bundle's if it is not given"),
        _TIMEOUT,
    ]
    return operation


def _path(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {**_STRING, "minLength": 1}}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(required: str = "", **properties: Any) -> dict[str, Any]:
    """An object; a property that is required, and of which nothing else is said, is a string."""
    names = required.split()
    strings = {name: _STRING for name in names if name not in properties}
    return {"type": "object", "required": names, "properties": {**strings, **properties}}


def _list_of(items: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "array", "items": items, **more}


def _schemas() -> dict[str, Any]:
    side = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
    number = {"type": "number"}
    size = {"type": "integer", "minimum": 1}
    datatype = {"enum": ["FP32", "UINT8", "INT32", "INT64", "BYTES"]}
    described = _object("name datatype shape", datatype=datatype, shape=_list_of({"type": "integer"}))
    configured = _object("name data_type dims", dims=_list_of({"type": "integer"}))
    counted = {"inference_stats": _OPEN_OBJECT, "inference_count": side, "execution_count": side}
    shape = _list_of(side, maxItems=8)
    tensor = _object("name datatype shape", datatype=datatype, shape=shape, parameters=_OPEN_OBJECT, data=_list_of({}))
    box = _list_of(number, minItems=4, maxItems=4)
    detection = _object("box score class_id class", box=box, score=_FRACTION, class_id=side, **{"class": _STRING})
    image = _object("width height detections", width=side, height=side, detections=_list_of(detection))
    parameters = _object(timeout={"type": "integer", "minimum": 0}, binary_data_output={"type": "boolean"})
    unload = {
        "type": "object",
        "properties": {"unload_dependents": {"type": "boolean"}},
        "additionalProperties": False,
    }
    any_model = {"type": "object", "required": ["name", "version", "state", "reason"], "properties": {}}
    always = {"const": True}
    return {
        "Error": _object("error"),
        "Anything": _OPEN_OBJECT,
        "Live": _object("live", live=always),
        "Ready": _object("ready", ready=always),
        "ModelReady": _object("name ready", ready=always),
        "ServerMetadata": _object("name version extensions", extensions=_list_of(_STRING)),
        "Metadata": _object(
            "name versions platform inputs outputs",
            versions=_list_of(_STRING),
            platform=_STRING,
            inputs=_list_of(described),
            outputs=_list_of(described),
        ),
        "Config": _object(
            "name platform backend max_batch_size input output",
            max_batch_size=side,
            input=_list_of(configured),
            output=_list_of(configured),
        ),
        "Statistics": _object("model_stats", model_stats=_list_of(_object("name version inference_stats", **counted))),
        "IndexRequest": _object(ready={"type": "boolean"}, parameters={"type": "object", "maxProperties": 0}),
        "Index": _list_of(_object("name version state reason")),
        "RepositoryRequest": _object(parameters=unload),
        "InferRequest": _object(
            "inputs",
            id=_STRING,
            parameters=parameters,
            inputs=_list_of(tensor, minItems=1, maxItems=1),
            outputs=_list_of(_object("name", parameters=_OPEN_OBJECT)),
        ),
        "InferResponse": _object("model_name model_version outputs", id=_STRING, outputs=_list_of(tensor)),
        "DetectResponse": _object(
            "model version images times_ms",
            images=_list_of(image, minItems=1),
            times_ms={"type": "object", "additionalProperties": number},
            remarks=_list_of(_STRING),
        ),
        "RegisterRequest": _object("key byte_size", byte_size=size, offset={**size, "minimum": 0}),
        "Regions": _list_of(_object("name key offset byte_size", offset={**size, "minimum": 0}, byte_size=size)),
        "Models": _object("models", models=_list_of(any_model)),
    }
