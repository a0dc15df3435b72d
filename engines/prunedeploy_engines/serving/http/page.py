"""The page at ``/``: drop an image or use the camera, and see what the served models find in it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from fastapi import FastAPI
    from starlette.requests import Request
    from starlette.responses import Response

    from prunedeploy_engines.serving.core.settings import ServingSettings

FOLDER = Path(__file__).with_name("page")

_HTML = "text/html; charset=utf-8"
_SCRIPT = "text/javascript; charset=utf-8"
_STYLE = "text/css; charset=utf-8"

# Every address there is and the file behind it. A request chooses a row; nothing of it ever becomes a path.
FILES = {
    "/": ("index.html", _HTML),
    "/static/agreement.js": ("agreement.js", _SCRIPT),
    "/static/boxes.js": ("boxes.js", _SCRIPT),
    "/static/camera.js": ("camera.js", _SCRIPT),
    "/static/comparison.js": ("comparison.js", _SCRIPT),
    "/static/icon.svg": ("icon.svg", "image/svg+xml"),
    "/static/images.js": ("images.js", _SCRIPT),
    "/static/models.js": ("models.js", _SCRIPT),
    "/static/page.css": ("page.css", _STYLE),
    "/static/page.js": ("page.js", _SCRIPT),
    "/static/pane.js": ("pane.js", _SCRIPT),
    "/static/requests.js": ("requests.js", _SCRIPT),
    "/static/text.js": ("text.js", _SCRIPT),
    "/static/times.js": ("times.js", _SCRIPT),
}
LIMITS = "/static/limits.json"

# The page talks to this server only, runs and styles itself with these files only, and stands in nobody's frame.
SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def add_page(app: FastAPI, settings: ServingSettings) -> None:
    """Add the page and its files to the server's routes.

    They are read here, once; serving them opens no file. They hold nothing of the models, so they are meant to be
    answered without a token: a browser cannot send one for the page itself. What the page asks for carries it.

    Args:
        app: Gets ``/`` and ``/static/...``, none of them in the OpenAPI document.
        settings: Its limits are told to the page, which then refuses what is too large before sending it: a
            browser that is still sending seldom gets to read the server's refusal.
    """
    for address, (name, media_type) in FILES.items():
        app.add_route(address, _answer((FOLDER / name).read_bytes(), media_type), include_in_schema=False)
    limits = {"max_body_bytes": settings.max_body_bytes, "max_pixels": settings.max_pixels}
    app.add_route(LIMITS, _answer(json.dumps(limits).encode(), "application/json"), include_in_schema=False)


def _answer(content: bytes, media_type: str) -> Callable[[Request], Awaitable[Response]]:
    """Make the handler of one address; a browser that has the same content already gets 304."""
    from starlette.responses import Response

    # A new version of the server must not run with the old one's script, so a browser asks every time.
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {**SECURITY_HEADERS, "Cache-Control": "no-cache", "ETag": tag}

    async def answer(request: Request) -> Response:
        known = {one.strip().removeprefix("W/") for one in request.headers.get("if-none-match", "").split(",")}
        if tag in known:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=media_type, headers=headers)

    return answer
