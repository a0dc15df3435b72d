"""Routes of the Open Inference Protocol over REST, with Triton's extension for the model repository."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from prunedeploy_engines.errors import PrunedeployError
from prunedeploy_engines.serving.core.errors import InvalidRequestError, ModelUnavailableError, ServingError
from prunedeploy_engines.serving.core.limits import BodyBudget, parse_json
from prunedeploy_engines.serving.core.models import SERVER, ProtocolModels
from prunedeploy_engines.serving.core.tensors import header_timeout_s
from prunedeploy_engines.serving.http.request import body_of, notes_of
from prunedeploy_engines.serving.http.v2_binary import HEADER, read_request, write_answer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Handler = Callable[[Request], Awaitable[Response]]

_log = logging.getLogger(__name__)


def v2_routes(models: ProtocolModels, budget: BodyBudget) -> list[tuple[str, str, Handler]]:
    """Method, address and handler of every route.

    Args:
        models: Answer the requests.
        budget: Counts the bodies that are held.
    """
    rest = _Rest(models, budget)
    model = "/v2/models/{name}"
    # Routes are tried in this order, so the one that is in a hurry comes first.
    routes: list[tuple[str, str, Handler]] = [
        ("POST", model + "/infer", rest.infer),
        ("GET", "/v2", rest.server),
        ("GET", "/v2/health/live", rest.live),
        ("GET", "/v2/health/ready", rest.ready),
        ("POST", "/v2/repository/index", rest.index),
        ("POST", "/v2/repository/models/{name}/load", rest.load),
        ("POST", "/v2/repository/models/{name}/unload", rest.unload),
    ]
    for address in (model, model + "/versions/{version}"):
        routes += [("GET", address, rest.metadata), ("GET", address + "/ready", rest.model_ready)]
    return [*routes, ("POST", model + "/versions/{version}/infer", rest.infer)]


class _Rest:
    """The handlers."""

    def __init__(self, models: ProtocolModels, budget: BodyBudget) -> None:
        self._models = models
        self._budget = budget
        self._settings = models.settings

    async def server(self, request: Request) -> Response:
        return JSONResponse(SERVER)

    async def live(self, request: Request) -> Response:
        return JSONResponse({"live": True})

    async def ready(self, request: Request) -> Response:
        if not self._models.repository.ready():
            raise ModelUnavailableError("not every model is loaded, or the server is stopping")
        return JSONResponse({"ready": True})

    async def metadata(self, request: Request) -> Response:
        return JSONResponse(self._models.metadata(*_address(request)))

    async def model_ready(self, request: Request) -> Response:
        name, version = _address(request)
        self._models.get(name, version)
        return JSONResponse({"name": name, "ready": True})

    async def infer(self, request: Request) -> Response:
        name, version = _address(request)
        self._models.get(name, version)  # an unknown model is refused before its tensors are read
        async with body_of(request, self._settings, self._budget) as body:
            notes = notes_of(request)
            header_length = request.headers.get(HEADER)
            asked = read_request(body, header_length, self._settings.max_json_depth, name, version)
            timeout = header_timeout_s(request.headers.get("x-request-timeout"))
            answer = await self._models.infer(asked, notes, timeout)
            begun = time.monotonic()
            content, length = write_answer(answer, asked)
            if notes.times is not None:
                notes.times.encode_s = time.monotonic() - begun
        if length is None:
            return Response(content, media_type="application/json")
        return Response(content, media_type="application/octet-stream", headers={HEADER: str(length)})

    async def index(self, request: Request) -> Response:
        document = await self._document(request)
        ready = document.get("ready", False)
        if not isinstance(ready, bool):
            raise InvalidRequestError("ready is neither true nor false")
        states = [
            {"name": state.name, "version": state.version, "state": state.state, "reason": state.reason}
            for state in self._models.index()
            if state.state == "READY" or not ready
        ]
        return JSONResponse(states)

    async def load(self, request: Request) -> Response:
        await self._document(request)
        await load(self._models, request.path_params["name"])
        return JSONResponse({})

    async def unload(self, request: Request) -> Response:
        await self._document(request)
        await unload(self._models, request.path_params["name"])
        return JSONResponse({})

    async def _document(self, request: Request) -> dict[str, Any]:
        """The JSON object of a request to the repository; an empty body is an empty one."""
        async with body_of(request, self._settings, self._budget) as body:
            document = parse_json(body, self._settings.max_json_depth) if body else {}
        if not isinstance(document, dict):
            raise InvalidRequestError("the body is not a JSON object")
        parameters = document.get("parameters") or {}
        if not isinstance(parameters, dict):
            raise InvalidRequestError("parameters is not a JSON object")
        refuse_content(parameters)
        return document


def refuse_content(parameters: Any) -> None:
    """Refuse files and configurations: a client names a model, it does not bring one.

    Raises:
        InvalidRequestError: A parameter is anything but ``unload_dependents``.
    """
    for name in parameters:
        if name != "unload_dependents":
            raise InvalidRequestError(
                f"parameters.{name[:40]} is not taken: models come from the folders that the server was started with"
            )


async def load(models: ProtocolModels, name: str) -> None:
    """Load or replace the bundle behind a protocol name.

    Raises:
        UnknownModelError: There is none.
        ModelUnavailableError: It cannot be loaded; why stands in the server's log only, since that names files.
    """
    try:
        await models.repository.load(models.bundle_of(name))
    except ServingError:
        raise
    except PrunedeployError as error:
        _log.error("model %s cannot be loaded: %s", models.bundle_of(name), error)
        raise ModelUnavailableError(f"model {name} cannot be loaded", fix="see the server's log") from None


async def unload(models: ProtocolModels, name: str) -> None:
    """Unload the bundle behind a protocol name; what it has accepted is answered first.

    Raises:
        UnknownModelError: There is none.
    """
    await models.repository.unload(models.bundle_of(name))


def _address(request: Request) -> tuple[str, str | None]:
    return request.path_params["name"], request.path_params.get("version")
