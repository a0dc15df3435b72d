"""Routes of the Open Inference Protocol over REST, with Triton's extension for the model repository."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from prunedeploy_engines.serving.core.errors import InvalidRequestError, ModelUnavailableError, NotOfferedError
from prunedeploy_engines.serving.core.limits import parse_json
from prunedeploy_engines.serving.core.service import Service, refuse_content
from prunedeploy_engines.serving.core.tensors import header_timeout_s
from prunedeploy_engines.serving.http.request import NotedRoute, body_of, notes_of
from prunedeploy_engines.serving.http.v2_binary import (
    HEADER,
    announced_images,
    json_length,
    of_kind,
    read_document,
    read_request,
    write_answer,
)

_NOT_OFFERED = {
    "/v2/cudasharedmemory/{rest:path}": "CUDA shared memory",
    "/v2/trace/setting": "trace settings",
    "/v2/models/{name}/trace/setting": "trace settings",
    "/v2/logging": "log settings",
    "/v2/models/{name}/generate": "generating text",
    "/v2/models/{name}/generate_stream": "generating text",
}
"""What clients written for Triton may ask for, by its address."""

_SHARED = "/v2/systemsharedmemory"
_REGION = "/region/{name:path}"  # a name with a slash is refused in words


def v2_routes(service: Service) -> list[NotedRoute]:
    """All of them; the two for inference stand first.

    Args:
        service: Answers the requests.
    """
    rest = _Rest(service)
    model = "/v2/models/{name}"
    versioned = model + "/versions/{version}"
    everything = ["GET", "POST", "PUT", "DELETE"]
    return [
        *(NotedRoute(f"{one}/infer", rest.infer, methods=["POST"]) for one in (model, versioned)),
        NotedRoute("/v2", rest.server),
        NotedRoute("/v2/health/live", rest.live),
        NotedRoute("/v2/health/ready", rest.ready),
        NotedRoute("/v2/repository/index", rest.index, methods=["POST"]),
        NotedRoute("/v2/repository/models/{name}/load", rest.load, methods=["POST"]),
        NotedRoute("/v2/repository/models/{name}/unload", rest.unload, methods=["POST"]),
        NotedRoute("/v2/models/stats", rest.statistics),
        NotedRoute(model, rest.metadata),
        NotedRoute(model + "/ready", rest.model_ready),
        *(NotedRoute(f"{one}/config", rest.config) for one in (model, versioned)),
        *(NotedRoute(f"{one}/stats", rest.statistics) for one in (model, versioned)),
        NotedRoute(versioned, rest.metadata),
        NotedRoute(versioned + "/ready", rest.model_ready),
        *(NotedRoute(f"{_SHARED}{one}/status", rest.shared_status) for one in ("", _REGION)),
        NotedRoute(f"{_SHARED}{_REGION}/register", rest.register, methods=["POST"]),
        *(NotedRoute(f"{_SHARED}{one}/unregister", rest.unregister, methods=["POST"]) for one in ("", _REGION)),
        *(NotedRoute(address, rest.not_offered, methods=everything) for address in _NOT_OFFERED),
    ]


class _Rest:
    """The handlers."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def server(self, request: Request) -> Response:
        return JSONResponse(self._service.about())

    async def live(self, request: Request) -> Response:
        return JSONResponse({"live": True})

    async def ready(self, request: Request) -> Response:
        if not self._service.repository.ready():
            raise ModelUnavailableError("not every model is loaded, or the server is stopping")
        return JSONResponse({"ready": True})

    async def metadata(self, request: Request) -> Response:
        return JSONResponse(self._service.metadata(*_address(request)))

    async def model_ready(self, request: Request) -> Response:
        name, version = _address(request)
        self._service.get(name, version)
        return JSONResponse({"name": name, "ready": True})

    async def config(self, request: Request) -> Response:
        return JSONResponse(self._service.config(*_address(request)))

    async def statistics(self, request: Request) -> Response:
        return JSONResponse(self._service.statistics(request.path_params.get("name"), _address(request)[1]))

    async def not_offered(self, request: Request) -> Response:
        what = _NOT_OFFERED[notes_of(request).route]
        raise NotOfferedError(f"{what} is an extension of the protocol that this server does not offer")

    async def shared_status(self, request: Request) -> Response:
        return JSONResponse(self._service.regions.status(request.path_params.get("name", "")))

    async def register(self, request: Request) -> Response:
        self._service.regions.check_offered()
        document = await self._json(request)
        key = of_kind(str, document.get("key"), "key")
        numbers = {name: document.get(name, 0) for name in ("offset", "byte_size")}
        for name, value in numbers.items():
            if type(value) is not int:
                raise InvalidRequestError(f"{name} is not a whole number of bytes")
        self._service.regions.register(request.path_params["name"], key, **numbers)
        return JSONResponse({})

    async def unregister(self, request: Request) -> Response:
        self._service.regions.unregister(request.path_params.get("name", ""))
        return JSONResponse({})

    async def infer(self, request: Request) -> Response:
        name, version = _address(request)
        service, notes = self._service, notes_of(request)
        timeout = header_timeout_s(request.headers.get("x-request-timeout"))
        async with body_of(request, service) as body:
            with service.visit(name, version, notes, timeout) as visit:
                body.visit = visit
                json_bytes = json_length(request.headers.get(HEADER))
                document = read_document(await body.read(json_bytes), json_bytes, service.settings.max_json_depth)
                # The JSON stands in front, so a request can be refused by it before its tensors have come.
                service.know(visit, notes, document.get("parameters", {}), announced_images(document), timeout)
                whole = memoryview(await body.read())
                asked = read_request(document, whole[len(whole) if json_bytes is None else json_bytes :], name, version)
                outputs = await service.infer(asked, notes, visit)
                with notes.encoding():
                    content, length = write_answer(asked, outputs)
        if length is None:
            return Response(content, media_type="application/json")
        return Response(content, media_type="application/octet-stream", headers={HEADER: str(length)})

    async def index(self, request: Request) -> Response:
        document = await self._document(request)
        ready = of_kind(bool, document.get("ready", False), "ready")
        return JSONResponse([asdict(state) for state in self._service.index(ready)])

    async def load(self, request: Request) -> Response:
        await self._document(request)
        await self._service.load(request.path_params["name"])
        return JSONResponse({})

    async def unload(self, request: Request) -> Response:
        await self._document(request)
        await self._service.unload(request.path_params["name"])
        return JSONResponse({})

    async def _document(self, request: Request) -> dict[str, Any]:
        """The JSON object of a request to the repository."""
        document = await self._json(request)
        refuse_content(of_kind(dict, document.get("parameters") or {}, "parameters"))
        return document

    async def _json(self, request: Request) -> dict[str, Any]:
        """The JSON object of a small request; an empty body is an empty one."""
        async with body_of(request, self._service) as body:
            text = await body.read()
            return of_kind(dict, parse_json(text, self._service.settings.max_json_depth) if text else {}, "the body")


def _address(request: Request) -> tuple[str, str | None]:
    return request.path_params.get("name", ""), request.path_params.get("version")
