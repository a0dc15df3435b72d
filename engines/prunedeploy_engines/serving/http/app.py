"""The HTTP application: routes, and what stands around them."""

from __future__ import annotations

from fastapi import FastAPI
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute

from prunedeploy_engines.serving.core.service import Service
from prunedeploy_engines.serving.http.detect_routes import detect_routes
from prunedeploy_engines.serving.http.docs_page import CSP as DOCS_CSP
from prunedeploy_engines.serving.http.docs_page import docs_page
from prunedeploy_engines.serving.http.edge import HttpEdge
from prunedeploy_engines.serving.http.openapi import openapi_document
from prunedeploy_engines.serving.http.page import page_routes
from prunedeploy_engines.serving.http.request import NotedRoute
from prunedeploy_engines.serving.http.v2_routes import v2_routes


def create_app(service: Service) -> FastAPI:
    """Build the application around the models of a server.

    Args:
        service: Answers the requests; its models may be loaded before or after.
    """
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
        *v2_routes(service),
        NotedRoute("/metrics", metrics),
        NotedRoute("/openapi.json", openapi),
        NotedRoute("/docs", show_docs),
        *page_routes(service.settings),
    ]
    # Handlers read bytes themselves, so nothing of FastAPI's own parsing, documents or redirections takes part.
    app = FastAPI(routes=routes, openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.add_exception_handler(HTTPException, _no_route)
    app.add_middleware(HttpEdge, service=service)
    return app


async def _no_route(request: Request, error: Exception) -> Response:
    """The answer to an address or method that does not exist."""
    status = getattr(error, "status_code", 404)
    line = {404: "there is no such address", 405: "this address does not take this method"}.get(status, "not possible")
    return JSONResponse({"error": line}, status, headers=getattr(error, "headers", None))
