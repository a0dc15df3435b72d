"""A whole server in a thread of the test's own process, and tiny bundles for it."""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from prunedeploy_engines.bundle import Bundle, BundleFile, write_bundle
from prunedeploy_engines.serving.core.settings import ServingSettings
from tiny_detector import CLASS_NAMES, save_tiny_detector

HEIGHT, WIDTH = 32, 48


@dataclass(frozen=True)
class Answer:
    """Of HTTP; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Running:
    """Where a server listens."""

    http: str
    grpc: str

    def ask(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None, chunked: bool = False
    ) -> Answer:
        """One request over a connection of its own; JSON values are written as such."""
        sent = dict(headers or {})
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        connection = http.client.HTTPConnection(self.http, timeout=30)
        try:
            payload = iter([body]) if chunked else body
            connection.request(method, path, payload, sent, encode_chunked=chunked)
            answer = connection.getresponse()
            named = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, named, answer.read())
        finally:
            connection.close()


@contextmanager
def running(bundles: Mapping[str, Bundle], **changed: Any) -> Iterator[Running]:
    """Start a server, wait until it is ready, and stop it at the end."""
    from prunedeploy_engines.serving.server import Addresses, serve

    plain: dict[str, Any] = {"port": 0, "grpc_port": 0, "threads": 1}
    settings = ServingSettings(**{**plain, **changed})
    ready = threading.Event()
    there: list[Addresses] = []
    loop = asyncio.new_event_loop()
    folders = {name: bundle.path for name, bundle in bundles.items()}

    def announce(addresses: Addresses) -> None:
        there.append(addresses)
        ready.set()

    task = loop.create_task(serve(folders, settings, announce))
    task.add_done_callback(lambda _: ready.set())

    def run() -> None:
        try:
            loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
        finally:
            loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        assert ready.wait(60)
        assert there, task.exception()
        yield Running(there[0].http.split("//")[1], there[0].grpc or "")
    finally:
        if not task.done():
            loop.call_soon_threadsafe(task.cancel)
        thread.join(60)
        assert not thread.is_alive()


def tiny_bundle(folder: Path, **parts: Any) -> Bundle:
    """A bundle around the tiny detector."""
    folder.mkdir(parents=True, exist_ok=True)
    file = BundleFile(save_tiny_detector(folder / "tiny.onnx", HEIGHT, WIDTH), "onnx", "fp32")
    size = {"height": HEIGHT, "width": WIDTH, "letterbox_colour": (0, 0, 0)}
    return write_bundle(folder / "bundle", {"model.onnx": file}, class_names=CLASS_NAMES, input=size, **parts)


def picture(seed: int, size: tuple[int, int] = (64, 96), file_format: str = "PNG") -> bytes:
    """A file of random colours in 16 x 16 cells; ``size`` is (height, width)."""
    cells = (-(-size[0] // 16), -(-size[1] // 16), 3)
    colours = np.random.default_rng(seed).integers(0, 256, cells, dtype=np.uint8)
    pixels = colours.repeat(16, axis=0).repeat(16, axis=1)[: size[0], : size[1]]
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, file_format)
    return file.getvalue()


def images(seed: int, count: int) -> np.ndarray:
    """``(count, 3, HEIGHT, WIDTH)`` float32 in [0, 1]."""
    return np.random.default_rng(seed).random((count, 3, HEIGHT, WIDTH), np.float32)


def infer_body(pixels: np.ndarray, **more: Any) -> dict[str, Any]:
    """An inference request as JSON."""
    tensor = {"name": "images", "datatype": "FP32", "shape": list(pixels.shape), "data": pixels.ravel().tolist()}
    return {"inputs": [tensor], **more}
