"""One HTTP connection: what it may send and how slowly, what happens when its client goes, how it ends at a stop."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from prunedeploy_engines.serving.http.arrival import ARRIVAL, Arrival
from prunedeploy_engines.serving.http.edge import CONNECTION, refuse

CONNECTIONS = 1000
"""Most connections of one server; requests over more of them are refused."""

MAX_HEAD_BYTES = 64 << 10
"""Largest head or trailers of a request, give or take what one read brings; the HTTP parser has no limit of its own."""

LAST_CALL_S = 0.2
"""How long connections without a request stay open when the server stops: one may be on its way."""

LINGER_S = 5.0
LINGER_BYTES = 64 << 20
"""How long, and for how many bytes, the rest of a refused request is read, so that its client can read the answer."""

_MOST_OF_NO_REQUEST = 16 * MAX_HEAD_BYTES  # the same for what never became a request


def connection_type(seconds: float) -> type[HttpToolsProtocol]:
    """The connections of a server.

    Args:
        seconds: A connection is closed when its client takes longer to send a request's head, or to take an answer.
    """

    class Connection(HttpToolsProtocol):
        _alarm: asyncio.TimerHandle | None = None
        _stuck: asyncio.TimerHandle | None = None
        _beside_bodies = 0  # bytes since the last that was body, or ended a head or a request
        _stopping = False
        _answering: asyncio.Task[Any] | None = None
        _arrival = Arrival()
        _thrown_away: int | None = None  # bytes, of a connection that lingers

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._application = self.app

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._alarm = self.loop.call_later(seconds, self._close)

        def data_received(self, data: bytes) -> None:
            if self._thrown_away is not None:
                self._thrown_away += len(data)
                if self._thrown_away > self._most_thrown_away:
                    self._close()
                return
            if self._alarm is None and self._is_idle():
                self._alarm = self.loop.call_later(seconds, self._close)
            before = self._beside_bodies = self._beside_bodies + len(data)
            super().data_received(data)
            if self._beside_bodies == before > MAX_HEAD_BYTES and not self.transport.is_closing():
                self._refuse(431, f"the head of the request has more than {MAX_HEAD_BYTES} bytes")
                self._linger(_MOST_OF_NO_REQUEST)

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self.scope["state"][CONNECTION] = self

        def on_headers_complete(self) -> None:
            self._quiet()
            self._beside_bodies = 0
            self.app = self._application if len(self.connections) <= CONNECTIONS else _too_many
            self._arrival = self.scope["state"][ARRIVAL] = Arrival.of(self.headers, self.expect_100_continue)
            super().on_headers_complete()
            ending = _AnswerTransport(self.transport, partial(self._end, self._arrival))
            self.cycle.transport = ending  # type: ignore[assignment]  # all that it asks of one
            if self._stopping:
                self.cycle.keep_alive = False

        def on_body(self, body: bytes) -> None:
            self._beside_bodies = 0
            self._arrival.came(len(body))
            super().on_body(body)

        def on_message_complete(self) -> None:
            self._beside_bodies = 0
            self._arrival.left = 0
            super().on_message_complete()
            if self._is_idle():  # the rest of a body that nobody wanted
                self._quiet()
                self.timeout_keep_alive_task = self.loop.call_later(
                    self.timeout_keep_alive, self.timeout_keep_alive_handler
                )

        def on_response_complete(self) -> None:
            if self._thrown_away is not None:
                self.pipeline.clear()
            super().on_response_complete()
            if self.transport.is_closing() and self._stuck is None:
                self._stuck = self.loop.call_later(seconds, self.transport.abort)

        def pause_writing(self) -> None:
            super().pause_writing()
            if self._stuck is None:
                self._stuck = self.loop.call_later(seconds, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._stuck is not None and not self.transport.is_closing():
                self._stuck.cancel()
                self._stuck = None

        def timeout_keep_alive_handler(self) -> None:
            self._close()

        def connection_lost(self, exc: Exception | None) -> None:
            self._quiet()
            if self._stuck is not None:
                self._stuck.cancel()
            super().connection_lost(exc)
            if self._answering is not None and self.cycle.disconnected:
                self._answering.cancel()

        def shutdown(self) -> None:
            self._stopping = True
            if self._thrown_away is not None:
                self._close()
            elif self._is_idle():
                self.loop.call_later(LAST_CALL_S, self._close_idle)
            else:
                self.cycle.keep_alive = False

        def send_400_response(self, msg: str) -> None:
            self._refuse(400, "this is not an HTTP/1.1 request")
            self._linger(_MOST_OF_NO_REQUEST)

        @contextmanager
        def answering(self) -> Iterator[None]:
            """What the application does for a request; it is cancelled when nobody waits for the answer any more."""
            self._answering = asyncio.current_task()
            try:
                yield
            except asyncio.CancelledError:
                if not self.cycle.disconnected:  # the server stops, and its grace period is over
                    self._refuse(503, "the server is stopping")
                    self._end(self._arrival)
            finally:
                self._answering = None

        def _refuse(self, status: int, line: str) -> None:
            """Answer what never became a request, in the one form that every error has."""
            if self._is_idle() or not self.cycle.response_started:
                body = json.dumps({"error": line}).encode()
                head = (
                    f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
                    f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
                )
                self.transport.write(head.encode() + body)

        def _end(self, arrival: Arrival) -> None:
            """End the connection after an answer."""
            if arrival.is_whole():
                self._close()
            else:
                self._linger(LINGER_BYTES)

        def _linger(self, most: int) -> None:
            """End the connection in two steps: say that nothing more will come, and read on for a while.

            Closing a connection that has unread bytes resets it, whereupon its client may lose the answer before it
            has read it (RFC 9112, 9.6).
            """
            if self._thrown_away is None and not self.transport.is_closing():
                self._thrown_away, self._most_thrown_away = 0, most
                self._quiet()
                self._unset_keepalive_if_required()
                self.flow.resume_reading()
                if self.transport.can_write_eof():  # over TLS it cannot
                    self.transport.write_eof()
                self._alarm = self.loop.call_later(LINGER_S, self._close)

        def _is_idle(self) -> bool:
            return self.cycle is None or self.cycle.response_complete

        def _close_idle(self) -> None:
            if self._is_idle():
                self._close()

        def _quiet(self) -> None:
            if self._alarm is not None:
                self._alarm.cancel()
                self._alarm = None

        def _close(self) -> None:
            self._alarm = None
            if not self.transport.is_closing():
                self.transport.close()  # which waits for a client that does not read
                self._stuck = self._stuck or self.loop.call_later(seconds, self.transport.abort)

    return Connection


@dataclass(frozen=True)
class _AnswerTransport:
    """What an answer is written to: a transport whose end is the connection's to choose."""

    transport: Any
    close: Callable[[], None]

    def write(self, data: bytes) -> None:
        self.transport.write(data)

    def is_closing(self) -> bool:
        return self.transport.is_closing()


async def _too_many(scope: Any, receive: Any, send: Any) -> None:
    await refuse(send, 503, "too many connections are open", retry_after="1", connection="close")
