"""Sockets, TLS and the HTTP server: what is checked or limited before a request exists."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator
from typing import Any

import uvicorn

from prunedeploy_engines.errors import ConfigError
from prunedeploy_engines.serving.core.settings import ServingSettings
from prunedeploy_engines.serving.http.connection import connection_type

BACKLOG = 256


def listen(host: str, port: int, option: str) -> socket.socket:
    """Bind a socket.

    Args:
        host: Name or address.
        port: 0 takes a free one.
        option: Option of the command line, for the message.

    Raises:
        ConfigError: The address cannot be used, or the port is taken.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"cannot listen at {host} ({error.strerror or error})", "--host", "choose another") from None
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise ConfigError(f"cannot listen at {host}:{port} ({error.strerror})", option, "choose another port") from None
    return listening


def tls_bytes(settings: ServingSettings) -> tuple[bytes, bytes] | None:
    """Key and certificate, read and checked; None without TLS.

    Raises:
        ConfigError: They cannot be read or do not fit each other.
    """
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    try:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        # With a password, if a wrong one, or OpenSSL would ask for it at the terminal.
        context.load_cert_chain(settings.tls_certificate, settings.tls_key, password="-")
        return settings.tls_key.read_bytes(), settings.tls_certificate.read_bytes()
    except (OSError, ssl.SSLError) as error:
        reason = getattr(error, "strerror", None) or getattr(error, "reason", None) or "not PEM"
        where = f"{settings.tls_certificate}, {settings.tls_key}"
        raise ConfigError(f"certificate and key cannot be used ({reason})", where, "give PEM files of a pair") from None


class HttpServer(uvicorn.Server):
    """uvicorn's server, without its signal handlers: the two servers of this project stop together."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


def http_server(app: Any, settings: ServingSettings) -> HttpServer:
    """The HTTP server of an application, silent: the application logs its requests itself."""
    config = uvicorn.Config(
        app,
        http=connection_type(settings.body_timeout_s),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=round(settings.grace_s),
        backlog=BACKLOG,
        ssl_certfile=settings.tls_certificate,
        ssl_keyfile=settings.tls_key,
    )
    return HttpServer(config)
