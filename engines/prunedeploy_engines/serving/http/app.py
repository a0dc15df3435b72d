"""The HTTP application: routes, and what stands around them."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import FastAPI
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Receive, Scope, Send

from prunedeploy_engines.serving.core.service import Service
from prunedeploy_engines.serving.http.detect_routes import detect_routes
from prunedeploy_engines.serving.http.docs_page import CSP as DOCS_CSP
from prunedeploy_engines.serving.http.docs_page import docs_page
from prunedeploy_engines.serving.http.edge import HttpEdge, refuse
from prunedeploy_engines.serving.http.openapi import openapi_document
from prunedeploy_engines.serving.http.page import page_routes
from prunedeploy_engines.serving.http.request import NotedRoute
from prunedeploy_engines.serving.http.v2_routes import v2_routes

_NO_ADDRESS = "there is no such address"


def create_app(service: Service) -> ASGIApp:
    """Build the application around the models of a server.

    Args:
        service: Answers the requests; its models may be loaded before or after.
    """
    v2 = v2_routes(service)
    document = openapi_document(service.settings)
    docs = docs_page(document)

    async def metrics(request: Request) -> Response:
        return Response(service.telemetry.metrics.text(), headers={"content-type": CONTENT_TYPE_LATEST})

    async def openapi(request: Request) -> Response:
        return JSONResponse(document)

    async def show_docs(request: Request) -> Response:
        return Response(docs, media_type="text/html", headers={"content-security-policy": DOCS_CSP})

    routes: list[BaseRoute] = [
        *detect_routes(service),
        *v2,
        NotedRoute("/metrics", metrics),
        NotedRoute("/openapi.json", openapi),
        NotedRoute("/docs", show_docs),
        *page_routes(service.settings),
    ]
    # Handlers read bytes themselves, so nothing of FastAPI's own parsing, documents or redirections takes part.
    app = FastAPI(routes=routes, openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.add_exception_handler(HTTPException, _no_route)
    app.add_middleware(HttpEdge, service=service)
    infer = HttpEdge(_Inference([route for route in v2 if route.path.endswith("/infer")]), service)

    async def shortest(scope: Scope, receive: Receive, send: Send) -> None:
        # What comes by the thousand is spared the layers that it does not need: they cost as much as reading it.
        is_inference = scope["method"] == "POST" and scope["path"].endswith("/infer")
        await (infer if is_inference else app)(scope, receive, send)

    return shortest


class _Inference:
    """Calls the handlers of a few routes, and nothing else."""

    def __init__(self, routes: Sequence[NotedRoute]) -> None:
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        for route in self._routes:
            match, found = route.matches(scope)
            if match == Match.FULL:
                scope.update(found)
                response = await route.endpoint(Request(scope, receive))
                return await response(scope, receive, send)
        await refuse(send, 404, _NO_ADDRESS)


async def _no_route(request: Request, error: Exception) -> Response:
    """The answer to an address or method that does not exist."""
    status = getattr(error, "status_code", 404)
    line = {404: _NO_ADDRESS, 405: "this address does not take this method"}.get(status, "not possible")
    return JSONResponse({"error": line}, status, headers=getattr(error, "headers", None))
