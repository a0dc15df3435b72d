"""Starting and stopping: load every model, open both ports, and answer what was accepted before ending."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunedeploy_engines.errors import ConfigError
from prunedeploy_engines.serving.core.settings import ServingSettings

NEEDED = ("fastapi", "uvicorn", "httptools", "grpc", "google.protobuf", "prometheus_client", "python_multipart")


@dataclass(frozen=True)
class Addresses:
    """Where a server listens: a URL, and ``host:port`` of gRPC or None."""

    http: str
    grpc: str | None


def check_extra() -> None:
    """Refuse to go on without what the extra ``serve`` installs.

    Raises:
        ConfigError: Something is missing.
    """
    for name in NEEDED:
        try:
            found = importlib.util.find_spec(name)
        except ModuleNotFoundError:
            found = None
        if found is None:
            raise ConfigError(f"serving needs {name}, which is not installed", fix="pip install 'prunedeploy[serve]'")


def run(bundles: Mapping[str, Path], settings: ServingSettings, announce: Callable[[Addresses], None]) -> None:
    """Serve until SIGINT or SIGTERM, with a line of JSON on standard error for every request; see `serve`."""
    check_extra()
    from prunedeploy_engines.serving.telemetry.logs import configure_logs

    configure_logs()
    with contextlib.suppress(ImportError):
        import uvloop

        uvloop.run(serve(bundles, settings, announce))
        return
    asyncio.run(serve(bundles, settings, announce))


async def serve(bundles: Mapping[str, Path], settings: ServingSettings, announce: Callable[[Addresses], None]) -> None:
    """Serve bundles until the process is told to stop.

    Args:
        bundles: Folders by the name that clients know them by.
        settings: How.
        announce: Is told the addresses once everything is loaded and both ports are open.

    Raises:
        ConfigError: A port is taken, TLS files do not fit, the extra is missing.
        PrunedeployError: A bundle cannot be loaded.
    """
    from prunedeploy_engines.serving.core.errors import ModelUnavailableError
    from prunedeploy_engines.serving.core.repository import ModelRepository
    from prunedeploy_engines.serving.core.service import Service
    from prunedeploy_engines.serving.http.app import create_app
    from prunedeploy_engines.serving.http.listening import http_server, listen, tls_bytes
    from prunedeploy_engines.serving.telemetry.metrics import Metrics

    tls = tls_bytes(settings)
    grpc_server: Any = None
    stopping: set[asyncio.Task[None]] = set()

    def stop() -> None:
        repository.stop_being_ready()
        # A second signal does not wait for anybody.
        server.force_exit = server.should_exit
        server.should_exit = True
        if grpc_server is not None:  # stops while HTTP does, not after it, so that the grace period is one
            stopping.add(asyncio.ensure_future(_stop(grpc_server, None if server.force_exit else settings.grace_s)))

    async with contextlib.AsyncExitStack() as opened:
        http_socket = opened.enter_context(listen(settings.host, settings.port, "--port"))
        if settings.grpc_port is not None:  # gRPC binds it itself, and its error says nothing
            listen(settings.host, settings.grpc_port, "--grpc-port").close()
        repository = ModelRepository(bundles, settings, Metrics())
        service = Service(repository)
        server = http_server(create_app(service), settings)
        opened.callback(service.regions.close)
        opened.push_async_callback(repository.close)
        _on_signals(stop)
        for name in repository.names:
            with contextlib.suppress(ModelUnavailableError):  # a signal came before the first request could
                await repository.load(name)
        grpc_address = None
        if settings.grpc_port is not None:
            grpc_server, grpc_address = await _grpc_server(service, tls)
            opened.push_async_callback(_stop, grpc_server, settings.grace_s)
        scheme = "http" if tls is None else "https"
        if not server.should_exit:
            host, port = http_socket.getsockname()[:2]
            announce(Addresses(f"{scheme}://{_bracketed(host)}:{port}", grpc_address))
        await server.serve(sockets=[http_socket])


async def _stop(grpc_server: Any, grace_s: float | None) -> None:
    """Stop gRPC; calls that are on their way first get an answer, since the library would cancel them."""
    from prunedeploy_engines.serving.http.connection import LAST_CALL_S

    if grace_s is not None:
        await asyncio.sleep(LAST_CALL_S)
    await grpc_server.stop(grace_s)


async def _grpc_server(service: Any, tls: tuple[bytes, bytes] | None) -> tuple[Any, str]:
    import grpc
    import grpc.aio

    from prunedeploy_engines.serving.grpc.service import add_grpc

    settings = service.settings
    server = grpc.aio.server(
        options=[
            ("grpc.so_reuseport", 0),  # or a second server would share the port silently
            ("grpc.max_receive_message_length", settings.max_body_bytes),
            ("grpc.max_send_message_length", -1),
        ]
    )
    add_grpc(server, service)
    address = f"{_bracketed(settings.host)}:{settings.grpc_port}"
    try:
        if tls is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, grpc.ssl_server_credentials([tls]))
    except RuntimeError:
        raise ConfigError(f"cannot listen at {address}", "--grpc-port", "choose another port") from None
    await server.start()
    return server, f"{_bracketed(settings.host)}:{port}"


def _on_signals(stop: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        # A server in a thread of another program, or on Windows, is stopped by cancelling it.
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
            loop.add_signal_handler(number, stop)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
