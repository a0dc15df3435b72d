"""The outermost layer of the HTTP application: who may ask, which headers go out, what a failure looks like."""

from __future__ import annotations

import asyncio
import json
import logging
import math
from typing import TYPE_CHECKING, Any

from prunedeploy_engines.serving.core.errors import OverloadedError, ServingError, UnauthorisedError, drop_frames
from prunedeploy_engines.serving.core.security import HEADERS, is_open
from prunedeploy_engines.serving.core.service import Service
from prunedeploy_engines.serving.http.arrival import ARRIVAL, Arrival
from prunedeploy_engines.serving.http.request import NOTES
from prunedeploy_engines.serving.telemetry.request_notes import RequestNotes, request_id

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

CONNECTION = "connection"
"""Key in the ASGI scope's state: the connection, which ends `answering` when its client goes."""

_log = logging.getLogger(__name__)
_HEADERS = [(name.encode(), value.encode()) for name, value in HEADERS.items()]


class HttpEdge:
    """ASGI middleware; every answer goes through it.

    Args:
        app: What is inside.
        service: Token and telemetry.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; whatever is raised inside becomes an answer too."""
        headers = dict(scope["headers"])
        arrival: Arrival = scope["state"][ARRIVAL]
        notes = RequestNotes(
            request_id(headers.get(b"x-request-id", b"").decode("latin-1")),
            trace_parent=headers.get(b"traceparent", b"").decode("latin-1"),
            begun=arrival.begun,
        )
        scope[NOTES] = notes
        status = 0

        async def asked_receive() -> Message:
            arrival.expects = False  # since this tells the client to go on
            return await receive()

        async def finished_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                present = message["headers"] = list(message.get("headers", ()))
                names = {name for name, _ in present}
                present += [header for header in _HEADERS if header[0] not in names]
                present.append((b"x-request-id", notes.request_id.encode()))
                if status == 408 or not arrival.is_small():
                    present.append((b"connection", b"close"))
            await send(message)

        with scope["state"][CONNECTION].answering():
            try:
                if not is_open(scope["path"]) and not self._service.token.opens(headers.get(b"authorization")):
                    raise UnauthorisedError("the token is missing or wrong", "Authorization", "send Bearer TOKEN")
                await self._app(scope, asked_receive, finished_send)
            except ServingError as error:
                notes.error = error.kind
                if error.kind == "internal":
                    _log.error("request %s failed: %s", notes.request_id, error)
                drop_frames(error)
                await refuse(finished_send, error.status, str(error), **_extra_headers(error))
            except asyncio.CancelledError:
                notes.error = "client-gone"
                status = status or 499
                raise
            except Exception as error:
                notes.error = "internal"
                _log.exception("request %s failed", notes.request_id)
                if status:
                    raise  # the answer has begun, so it cannot become another one
                drop_frames(error)
                await refuse(
                    finished_send, 500, f"the server failed; its log says more about request {notes.request_id}"
                )
            finally:
                if status >= 400 and not notes.error:
                    notes.error = "no-such-route"
                self._service.telemetry.answered(notes, str(status))


def _extra_headers(error: ServingError) -> dict[str, str]:
    if isinstance(error, OverloadedError):
        return {"retry-after": str(max(1, math.ceil(error.retry_after_s)))}
    if isinstance(error, UnauthorisedError):
        return {"www-authenticate": "Bearer"}
    return {"retry-after": "1"} if error.status == 503 else {}


async def refuse(send: Send, status: int, line: str, **headers: str) -> None:
    """Answer with the one form that every error has."""
    body = json.dumps({"error": line}).encode()
    sent: list[Any] = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *((name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": sent})
    await send({"type": "http.response.body", "body": body})
