"""``prunedeploy serve`` as it is typed: started in a process of its own, asked, and stopped by signals."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
FREE_PORTS = ("--port", "0", "--grpc-port", "0", "--threads", "1")


@dataclass(frozen=True)
class Command:
    """A server that listens.

    Attributes:
        process: Of the command.
        said: What it printed, by ``--json``.
        tls: Trusts its certificate; None without TLS.
    """

    process: subprocess.Popen[str]
    said: dict[str, Any]
    tls: ssl.SSLContext | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of HTTP."""
        host, _, port = self.said["http"].partition("://")[2].rpartition(":")
        return host, int(port)

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Any]:
        """Status and JSON of one request, over a connection of its own."""
        host, port = self.address
        connection = (
            http.client.HTTPConnection(host, port, timeout=60)
            if self.tls is None
            else http.client.HTTPSConnection(host, port, timeout=60, context=self.tls)
        )
        try:
            connection.request(method, path, body, dict(headers or {}))
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def signal(self, number: int) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def until_refused(self) -> None:
        """Wait until nothing listens any more."""
        while True:
            try:
                socket.create_connection(self.address, timeout=60).close()
            except ConnectionError:
                return
            assert self.process.poll() is None
            time.sleep(0.01)


@contextmanager
def serving(
    *arguments: object,
    tls: ssl.SSLContext | None = None,
    environment: Mapping[str, str] | None = None,
    log: Path = Path(os.devnull),
) -> Iterator[Command]:
    """Start the command on free ports; at the end SIGTERM must end it with 0, and with nothing on standard output.

    Args:
        arguments: Of the command; ports and threads are given.
        tls: Trusts the certificate that the arguments name.
        environment: More of it.
        log: Takes standard error.
    """
    command = [sys.executable, "-m", "prunedeploy.cli", "serve", *map(str, arguments), *FREE_PORTS, "--json"]
    paths = os.pathsep.join(str(REPOSITORY / folder) for folder in (".", "export", "engines"))
    with log.open("w") as errors:
        process = subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": paths, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    try:
        assert process.stdout is not None
        text = ""
        while not text.endswith("}\n"):
            line = process.stdout.readline()
            assert line, f"it ended with {process.wait()}"
            text += line
        yield Command(process, json.loads(text), tls)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert process.stdout.read() == ""
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
