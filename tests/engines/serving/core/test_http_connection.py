"""A connection whose client goes away, and one that is idle when the server stops; the application is a few lines."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="serving needs the extra 'serve'")

from prunedeploy_engines.serving.core.settings import ServingSettings
from prunedeploy_engines.serving.http import connection as http_connection
from prunedeploy_engines.serving.http.edge import CONNECTION
from prunedeploy_engines.serving.http.listening import http_server, listen

REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


class Application:
    """Answers when it is let go, and writes down what becomes of each request."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.ends: list[str] = []
        self.begun = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.begun += 1
        with scope["state"][CONNECTION].answering():
            try:
                await self.go.wait()
                headers = [(b"content-length", b"2")]
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                await send({"type": "http.response.body", "body": b"ok"})
                self.ends.append("answered")
            except asyncio.CancelledError:
                self.ends.append("cancelled")
                raise


def with_server(what: Callable[[Application, Any, tuple[str, int]], Awaitable[None]]) -> None:
    async def whole() -> None:
        application = Application()
        server = http_server(application, ServingSettings(grace_s=20.0))
        with listen("127.0.0.1", 0, "--port") as listening:
            running = asyncio.create_task(server.serve(sockets=[listening]))
            await what(application, server, listening.getsockname())
            server.should_exit = True
            application.go.set()
            await running

    asyncio.run(whole())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def test_work_for_a_client_that_went_away_ends_and_nobody_elses():
    async def ask(application: Application, server: Any, address: tuple[str, int]) -> None:
        _, writer = await asyncio.open_connection(*address)
        writer.write(REQUEST)
        other_reader, other_writer = await asyncio.open_connection(*address)
        other_writer.write(REQUEST)
        await until(lambda: application.begun == 2)
        writer.close()
        await until(lambda: application.ends == ["cancelled"])
        application.go.set()
        assert (await other_reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        assert await other_reader.readexactly(2) == b"ok"
        # The same connection again, after the work for its first request has ended.
        other_writer.write(REQUEST)
        assert (await other_reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200 ")
        other_writer.close()
        await until(lambda: application.ends == ["cancelled", "answered", "answered"])

    with_server(ask)


def test_a_request_on_its_way_when_the_server_stops_is_answered_and_told_that_it_was_the_last(monkeypatch):
    monkeypatch.setattr(http_connection, "LAST_CALL_S", 15.0)  # the test decides when the request comes

    async def ask(application: Application, server: Any, address: tuple[str, int]) -> None:
        application.go.set()
        reader, writer = await asyncio.open_connection(*address)
        writer.write(REQUEST)
        first = await reader.readuntil(b"ok")
        assert b"connection: close" not in first
        server.should_exit = True
        await until(lambda: all(one._stopping for one in server.server_state.connections))
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
        writer.write(REQUEST)
        last = await reader.read()
        assert last.startswith(b"HTTP/1.1 200 ")
        assert b"connection: close" in last
        assert last.endswith(b"ok")
        writer.close()

    with_server(ask)


def test_an_idle_connection_is_closed_when_the_server_stops(monkeypatch):
    monkeypatch.setattr(http_connection, "LAST_CALL_S", 0.0)

    async def ask(application: Application, server: Any, address: tuple[str, int]) -> None:
        reader, writer = await asyncio.open_connection(*address)
        await until(lambda: len(server.server_state.connections) == 1)
        server.should_exit = True
        assert await reader.read() == b""
        writer.close()

    with_server(ask)


def test_when_the_grace_period_is_over_a_request_is_told_why():
    async def whole() -> bytes:
        application = Application()
        server = http_server(application, ServingSettings(grace_s=1.0))
        with listen("127.0.0.1", 0, "--port") as listening:
            running = asyncio.create_task(server.serve(sockets=[listening]))
            reader, writer = await asyncio.open_connection(*listening.getsockname())
            writer.write(REQUEST)
            await until(lambda: application.begun == 1)
            server.should_exit = True
            answer = await reader.read()
            await running
            writer.close()
            return answer

    answer = asyncio.run(whole())
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert answer.endswith(b'{"error": "the server is stopping"}')
