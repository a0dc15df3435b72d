"""What every HTTP handler needs of its request: its body, within limits, and its notes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Scope

from prunedeploy_engines.serving.core.admission import Visit
from prunedeploy_engines.serving.core.errors import (
    ClientGoneError,
    DeadlineError,
    SlowClientError,
    TooLargeError,
    UnsupportedMediaError,
)
from prunedeploy_engines.serving.core.service import Service
from prunedeploy_engines.serving.http.arrival import ARRIVAL, Arrival
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
async def body_of(request: Request, service: Service) -> AsyncIterator[Body]:
    """The body of a request, whether its length was announced or not; counted as held until the ``with`` ends.

    Args:
        request: Nothing of whose body has been read.
        service: Its settings bound the body's size and time; its budget counts it.

    Raises:
        TooLargeError: It is longer than allowed; nothing is read if that is known, or the rest is not.
        UnsupportedMediaError: It is compressed.
        OverloadedError: Too much is held already.
    """
    most = service.settings.max_body_bytes
    if request.headers.get("content-encoding", "identity") != "identity":
        raise UnsupportedMediaError("Content-Encoding: compressed bodies are not taken", fix="send it as it is")
    announced = request.headers.get("content-length", "0")
    if not announced.isdecimal() or len(announced) > 18 or int(announced) > most:
        raise _too_large(most)
    service.budget.check(int(announced))
    with service.budget.held() as take:
        yield Body(request, most, take, service.settings.body_timeout_s)


class Body:
    """A body as it comes; see `body_of`.

    Attributes:
        visit: Of a request to a model: knows its deadline, and is told when the body is whole.
    """

    def __init__(self, request: Request, most: int, take: Callable[[int], None], seconds: float) -> None:
        self.visit: Visit | None = None
        self._request = request
        self._arrival: Arrival = request.scope["state"][ARRIVAL]
        self._most = most
        self._take = take
        self._seconds = seconds
        self._until = time.monotonic() + seconds
        self._chunks: list[bytes] = []
        self._size = 0
        self._more = True

    async def read(self, size: int | None = None) -> bytes:
        """What has come, from the first byte on.

        Args:
            size: Wait for so many bytes only; None: for all of it.

        Raises:
            DeadlineError: The deadline came first.
            SlowClientError: It did not come in time.
            ClientGoneError: The client hung up.
            TooLargeError: It is longer than allowed.
            OverloadedError: Too much is held already, or see `Visit.whole`.
        """
        more = self._more
        if self._arrival.is_whole():  # so nothing waits, which is worth a task less
            await self._collect(size)
        elif self._more and (size is None or self._size < size):
            deadline = None if self.visit is None else self.visit.deadline
            until = self._until if deadline is None else min(deadline, self._until)
            try:
                await asyncio.wait_for(self._collect(size), max(0.0, until - time.monotonic()))
            except asyncio.TimeoutError:
                if until < self._until:
                    raise DeadlineError("the deadline passed before the body was there") from None
                raise SlowClientError(f"the body did not arrive within {self._seconds:g} s") from None
        if more and not self._more and self.visit is not None:
            self.visit.whole()
        if len(self._chunks) > 1:
            self._chunks = [b"".join(self._chunks)]
        return self._chunks[0] if self._chunks else b""

    async def _collect(self, size: int | None) -> None:
        while self._more and (size is None or self._size < size):
            message = await self._request.receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError("the client hung up")
            chunk = message.get("body", b"")
            self._size += len(chunk)
            if self._size > self._most:
                raise _too_large(self._most)
            self._take(len(chunk))
            self._chunks.append(chunk)
            self._more = message.get("more_body", False)


def _too_large(most: int) -> TooLargeError:
    return TooLargeError(f"the body is larger than the limit of {most} bytes")
