"""The HTTP application: routes, and what stands around them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from prunedeploy_engines.serving.core.repository import ModelRepository
from prunedeploy_engines.serving.core.service import service_of
from prunedeploy_engines.serving.core.settings import ServingSettings
from prunedeploy_engines.serving.http.detect_routes import detect_routes
from prunedeploy_engines.serving.http.docs_page import CSP as DOCS_CSP
from prunedeploy_engines.serving.http.docs_page import docs_page
from prunedeploy_engines.serving.http.edge import HttpEdge
from prunedeploy_engines.serving.http.openapi import openapi_document
from prunedeploy_engines.serving.http.page import add_page
from prunedeploy_engines.serving.http.request import notes_of
from prunedeploy_engines.serving.http.v2_routes import v2_routes
from prunedeploy_engines.serving.telemetry.metrics import CONTENT_TYPE

if TYPE_CHECKING:
    from prunedeploy_engines.serving.http.v2_routes import Handler


def create_app(repository: ModelRepository, settings: ServingSettings) -> FastAPI:
    """Build the application around the models of a server.

    Args:
        repository: Its models may be loaded before or after.
        settings: The server's settings.

    Raises:
        ConfigError: Traces are asked for, and OpenTelemetry is not installed.
    """
    service = service_of(repository, settings)
    # Handlers read bytes themselves, so nothing of FastAPI's own parsing, documents or redirections takes part.
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.add_exception_handler(HTTPException, _no_route)
    app.add_middleware(HttpEdge, service=service)
    document = openapi_document(settings)
    docs = docs_page(document)

    async def metrics(request: Request) -> Response:
        return Response(service.telemetry.metrics.text(), headers={"content-type": CONTENT_TYPE})

    async def openapi(request: Request) -> Response:
        return JSONResponse(document)

    async def show_docs(request: Request) -> Response:
        return Response(docs, media_type="text/html", headers={"content-security-policy": DOCS_CSP})

    routes = [
        *v2_routes(service.models, service.budget),
        *detect_routes(service.models, service.budget),
        ("GET", "/metrics", metrics),
        ("GET", "/openapi.json", openapi),
        ("GET", "/docs", show_docs),
    ]
    for method, address, handler in routes:
        app.add_route(address, _noting(address, handler), methods=[method], include_in_schema=False)
    add_page(app, settings)
    return app


def _noting(address: str, handler: Handler) -> Handler:
    """Note which route it is; patterns are few, addresses are not."""

    async def noting(request: Request) -> Response:
        notes_of(request).route = address
        return await handler(request)

    return noting


async def _no_route(request: Request, error: Exception) -> Response:
    """The answer to an address or method that does not exist."""
    status = getattr(error, "status_code", 404)
    line = {404: "there is no such address", 405: "this address does not take this method"}.get(status, "not possible")
    return JSONResponse({"error": line}, status, headers=getattr(error, "headers", None))
