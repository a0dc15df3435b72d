"""The page at ``/``: drop an image or use the camera, and see what the served models find in it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from prunedeploy_engines.serving.core.settings import ServingSettings
from prunedeploy_engines.serving.http.request import NotedRoute

FOLDER = Path(__file__).with_name("page")

_SCRIPTS = "agreement boxes camera comparison engines images models page pane requests text times".split()

# Every address there is and the file behind it. A request chooses a row; nothing of it ever becomes a path.
FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/static/icon.svg": ("icon.svg", "image/svg+xml"),
    "/static/page.css": ("page.css", "text/css; charset=utf-8"),
    **{f"/static/{name}.js": (f"{name}.js", "text/javascript; charset=utf-8") for name in _SCRIPTS},
}
LIMITS = "/static/limits.json"

# The page talks to this server only, runs and styles itself with these files only, and stands in nobody's frame.
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    # A new version of the server must not run with the old one's script, so a browser asks every time.
    "Cache-Control": "no-cache",
}


def page_routes(settings: ServingSettings) -> list[NotedRoute]:
    """The page and its files: ``/`` and ``/static/...``, none of them in the OpenAPI document.

    They are read here, once; serving them opens no file. They hold nothing of the models, so they are meant to be
    answered without a token: a browser cannot send one for the page itself. What the page asks for carries it.

    Args:
        settings: Its limits are told to the page, which then refuses what is too large before sending it: a
            browser that is still sending seldom gets to read the server's refusal.
    """
    limits = {"max_body_bytes": settings.max_body_bytes, "max_pixels": settings.max_pixels}
    files = [(address, (FOLDER / name).read_bytes(), media_type) for address, (name, media_type) in FILES.items()]
    return [_route(*one) for one in (*files, (LIMITS, json.dumps(limits).encode(), "application/json"))]


def _route(address: str, content: bytes, media_type: str) -> NotedRoute:
    """One address; a browser that has the same content already gets 304."""
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {**_HEADERS, "ETag": tag}

    async def answer(request: Request) -> Response:
        known = {one.strip().removeprefix("W/") for one in request.headers.get("if-none-match", "").split(",")}
        if tag in known:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=media_type, headers=headers)

    return NotedRoute(address, answer)
