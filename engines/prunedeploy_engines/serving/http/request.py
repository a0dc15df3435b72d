"""What every HTTP handler needs of its request: its body, within limits, and its notes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Scope

from prunedeploy_engines.serving.core.errors import (
    ClientGoneError,
    SlowClientError,
    TooLargeError,
    UnsupportedMediaError,
)
from prunedeploy_engines.serving.core.service import Service
from prunedeploy_engines.serving.telemetry.request_notes import RequestNotes

NOTES = "prunedeploy.notes"
"""Key in the ASGI scope."""

Handler = Callable[[Request], Awaitable[Response]]


class NotedRoute(Route):
    """A route whose requests have it in their notes: patterns are few, addresses are not."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """See Starlette."""
        match, found = super().matches(scope)
        if match == Match.FULL:
            scope[NOTES].route = self.path
        return match, found


def notes_of(request: Request) -> RequestNotes:
    """The request's notes."""
    return request.scope[NOTES]


@asynccontextmanager
async def body_of(request: Request, service: Service) -> AsyncIterator[bytes]:
    """The body of a request, whether its length was announced or not; counted as held until the ``with`` ends.

    Args:
        request: Nothing of whose body has been read.
        service: Its settings bound the body's size and time; its budget counts it.

    Raises:
        TooLargeError: It is longer than allowed; the rest is not read.
        SlowClientError: It did not come in time.
        ClientGoneError: The client hung up.
        UnsupportedMediaError: It is compressed.
        OverloadedError: Too much is held already.
    """
    most, seconds = service.settings.max_body_bytes, service.settings.body_timeout_s
    if request.headers.get("content-encoding", "identity") != "identity":
        raise UnsupportedMediaError("Content-Encoding: compressed bodies are not taken", fix="send it as it is")
    announced = request.headers.get("content-length", "0")
    if not announced.isdecimal() or len(announced) > 18 or int(announced) > most:
        raise _too_large(most)
    with service.budget.held() as take:
        try:
            body = await asyncio.wait_for(_collected(request, most, take), seconds)
        except asyncio.TimeoutError:
            raise SlowClientError(f"the body did not arrive within {seconds:g} s") from None
        yield body


async def _collected(request: Request, most: int, take: Callable[[int], None]) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError("the client hung up")
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > most:
            raise _too_large(most)
        take(len(chunk))
        chunks.append(chunk)
        if not message.get("more_body", False):
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _too_large(most: int) -> TooLargeError:
    return TooLargeError(f"the body is larger than the limit of {most} bytes")
