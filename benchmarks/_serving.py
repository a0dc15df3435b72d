"""What the serving benchmarks share: a started server, and a client that costs little beside it."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prunedeploy_engines.bundle import Bundle

HEAD_LENGTH = b"\r\ncontent-length:"  # not the protocol's Inference-Header-Content-Length


@dataclass(frozen=True)
class Server:
    """A running ``prunedeploy serve``.

    Attributes:
        process: Its process.
        http: ``(host, port)``.
        grpc: ``host:port``.
        model: Name of its model.
    """

    process: subprocess.Popen[str]
    http: tuple[str, int]
    grpc: str
    model: str

    def rss_bytes(self) -> int:
        """Resident memory now."""
        text = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        return 1024 * int(re.search(r"VmRSS:\s+(\d+)", text).group(1))  # type: ignore[union-attr]

    def cpu_seconds(self) -> tuple[float, float]:
        """Time on a core so far: of the event loop's thread, and of all others, which is the runners' for the most."""
        taken = {False: 0.0, True: 0.0}
        for thread in Path(f"/proc/{self.process.pid}/task").iterdir():
            nanoseconds = int((thread / "schedstat").read_text(encoding="ascii").split()[0])
            taken[int(thread.name) == self.process.pid] += nanoseconds / 1e9
        return taken[True], taken[False]

    def metrics(self) -> dict[str, float]:
        """What ``/metrics`` says, by name with labels."""
        host, port = self.http
        with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if line and line[0] != "#"}


@contextmanager
def served(bundle: Path, *options: str) -> Iterator[Server]:
    """Start a server on free ports; it is stopped in the end, and must end with 0."""
    command = [sys.executable, "-m", "prunedeploy.cli", "serve", f"model={bundle}", "--port", "0", "--grpc-port", "0"]
    whole = [*command, *options, "--json"]
    process = subprocess.Popen(whole, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    text = ""
    while not text.rstrip().endswith("}"):
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"the server ended with {process.wait()}")
        text += line
    said = json.loads(text)
    host, port = said["http"].removeprefix("http://").rsplit(":", 1)
    try:
        yield Server(process, (host, int(port)), said["grpc"], "model")
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(60)


def pixels_for(bundle: Bundle, count: int) -> np.ndarray:
    """Random images as a bundle's network takes them without a detour: ``(N, 3, H, W)`` float32 or uint8."""
    rng = np.random.default_rng(0)
    shape = (count, bundle.manifest.input.channels, *bundle.input_size)
    with bundle.runner(threads=1, allow_spinning=False) as runner:
        takes_bytes = runner.uint8_input
    return rng.integers(0, 256, shape, dtype=np.uint8) if takes_bytes else rng.random(shape, dtype=np.float32)


def infer_request(images: np.ndarray, model: str = "model", timeout_ms: float | None = None) -> bytes:
    """Bytes of a V2 request with a binary tensor, answered in binary.

    Args:
        images: ``(N, 3, H, W)`` float32 or uint8.
        model: Name.
        timeout_ms: Deadline; None leaves it to the server.
    """
    parameters: dict[str, object] = {"binary_data_output": True}
    if timeout_ms is not None:
        parameters["timeout"] = round(1000 * timeout_ms)  # microseconds
    tensor = images.tobytes()
    head = json.dumps(
        {
            "parameters": parameters,
            "inputs": [
                {
                    "name": "images",
                    "datatype": "UINT8" if images.dtype == np.uint8 else "FP32",
                    "shape": list(images.shape),
                    "parameters": {"binary_data_size": len(tensor)},
                }
            ],
        }
    ).encode()
    return post(f"/v2/models/{model}/infer", head + tensor, f"Inference-Header-Content-Length: {len(head)}\r\n")


def post(path: str, body: bytes, headers: str = "") -> bytes:
    """Bytes of a POST request."""
    length = f"Content-Length: {len(body)}\r\n"
    return f"POST {path} HTTP/1.1\r\nHost: benchmark\r\n{headers}{length}\r\n".encode() + body


class Connection:
    """One connection that is kept open, and opened again when the server has closed it."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Send a request; its status and body.

        Raises:
            OSError: The connection ended before the answer did.
        """
        if self._streams is None:
            self._streams = await asyncio.open_connection(*self._address, limit=1 << 20)
        reader, writer = self._streams
        try:
            writer.write(request)
            await writer.drain()
            head = await reader.readuntil(b"\r\n\r\n")
            lower = head.lower()
            start = lower.index(HEAD_LENGTH) + len(HEAD_LENGTH)
            body = await reader.readexactly(int(lower[start : lower.index(b"\r\n", start)]))
        except BaseException as error:
            self.close()
            if isinstance(error, (asyncio.IncompleteReadError, ValueError)):
                raise ConnectionError("the connection ended before the answer did") from None
            raise
        if b"connection: close" in lower:
            self.close()
        return int(head.split(b" ", 2)[1]), body

    def close(self) -> None:
        """Close it."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def keep_asking(server: Server, request: bytes, clients: int, seconds: float) -> tuple[list[float], float]:
    """So many clients, each with the next request as soon as it has its answer.

    Returns:
        Seconds of every request, and how long all of it took.

    Raises:
        SystemExit: A request was not answered with 200.
    """
    taken: list[float] = []
    end = time.perf_counter() + seconds

    async def client() -> None:
        connection = Connection(server.http)
        while (begun := time.perf_counter()) < end:
            status, body = await connection.ask(request)
            if status != 200:
                raise SystemExit(f"answered {status}: {body[:200]!r}")
            taken.append(time.perf_counter() - begun)
        connection.close()

    begun = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return taken, time.perf_counter() - begun
