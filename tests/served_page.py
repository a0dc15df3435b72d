"""A real server with tiny bundles and a real browser, for the tests of the page."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from prunedeploy_engines import Bundle
from prunedeploy_engines.bundle import BundleFile, write_bundle
from tiny_detector import CLASS_NAMES, save_tiny_detector

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, Request

IMAGE_SIZE = (64, 96)  # twice the network's input, so every cell is 16 x 16 pixels of the image
CELL = 16
LOWEST = 0.05  # what the page asks for
BLACK = (0, 0, 0)
ENGINES = [
    {"runtime": "onnxruntime", "precision": "int8", "target": "cpu", "map_clean": 0.1},
    {
        "runtime": "onnxruntime",
        "precision": "fp32",
        "target": "cpu",
        "map_clean": 0.64,
        "map_pgd_transfer": 0.47,
        "square": {"images": 20, "map_square": 0.31},
        "lowest": {"map": 0.31, "attack": "square", "images": 20, "interval": [0.25, 0.4]},
        "latency_ms": {"p50": 1.0, "p99": 1.25},
        "flood": {
            "clean": {"p99": 2.0},
            "flooded": {"apart": {"p99": 2.2, "ratio": 1.1}, "classes": {"p99": 2.44, "ratio": 1.22}},
            "worst": "classes",
        },
    },
]
"""What a build says of the engines of the bundle ``pruned``."""
ENGINES_HEAD = [
    *("Model", "Engine", "mAP", "PGD, transfer", "Square", "Lowest"),
    *("p99 of the network, ms", "p99 to detections, ms", "p99 flooded, ms"),
]
ENGINES_ROW = [
    *("pruned", "onnxruntime, fp32", "0.640", "0.470", "0.310 (20 images)", "0.310 by square (20 images)"),
    *("1.3", "2.0", "2.4, 1.22 × by classes"),
]
"""What the page makes of them."""
MARKUP = "<b>red</b><img src=x>"

SERVE = [sys.executable, "-m", "prunedeploy.cli", "serve"]
REPOSITORY = Path(__file__).resolve().parents[1]


def chromium() -> str | None:
    """The browser, or None where there is none."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def png(pixels: np.ndarray) -> bytes:
    """``(H, W, 3)`` uint8 as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def mosaic(seed: int) -> bytes:
    """A PNG whose cells have one random colour each: 24 boxes of 3 classes with scores all over [0, 1]."""
    rows, columns = IMAGE_SIZE[0] // CELL, IMAGE_SIZE[1] // CELL
    colours = np.random.default_rng(seed).integers(0, 256, (rows, columns, 3), dtype=np.uint8)
    return png(colours.repeat(CELL, axis=0).repeat(CELL, axis=1))


def block(colour: str, column: int, row: int) -> bytes:
    """A black PNG with one cell in a class's own colour: one detection of score 1."""
    pixels = np.zeros((*IMAGE_SIZE, 3), np.uint8)
    pixels[CELL * row :, CELL * column :][:CELL, :CELL, CLASS_NAMES.index(colour)] = 255
    return png(pixels)


def write_bundles(folder: Path) -> dict[str, Bundle]:
    """Three bundles around the same file: two that find different things, and one with a name like markup."""
    model = BundleFile(save_tiny_detector(folder / "tiny.onnx"), "onnx", "fp32")
    size = {"height": 32, "width": 48, "letterbox_colour": BLACK}
    record = {"method": "structured", "scores": "scaled", "ratio_requested": 0.75, "ratio_achieved": 0.75}
    metrics = {"params": 2_000_000, "macs": 100, "map_clean": 0.7, "map_pgd": 0.5}
    pruned_metrics = {"params": 500_000, "macs": 25, "map_clean": 0.65, "map_pgd": 0.48, "engines": ENGINES}
    unpruned = {**record, "ratio_requested": 0.0, "ratio_achieved": 0.0}
    parts: dict[str, dict[str, Any]] = {
        "dense": {"input": size, "pruning": unpruned, "metrics": metrics},
        "pruned": {"input": {**size, "greyscale": True}, "pruning": record, "metrics": pruned_metrics},
        "markup": {"input": size, "class_names": [MARKUP, *CLASS_NAMES[1:]]},
    }
    return {
        name: write_bundle(folder / name, {"model.onnx": model}, **{"class_names": CLASS_NAMES, **part})
        for name, part in parts.items()
    }


class Served:
    """A running ``prunedeploy serve``.

    Attributes:
        bundles: By the names they are served under.
        url: Where, without a slash at its end.
    """

    def __init__(
        self, bundles: dict[str, Bundle], port: int, process: subprocess.Popen[bytes], token: str | None = None
    ) -> None:
        self.bundles = bundles
        self.url = f"http://127.0.0.1:{port}"
        self.port = port
        self.process = process
        self.token = token

    def ask(self, path: str, body: bytes | None = None, **headers: str) -> Any:
        """The JSON answer of the server, asked past the page."""
        if self.token is not None:
            headers["Authorization"] = f"Bearer {self.token}"
        request = urllib.request.Request(self.url + path, body, headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            content = answer.read()
        return json.loads(content) if content else None

    def detect(self, name: str, image: bytes, threshold: float) -> list[dict[str, Any]]:
        """What ``POST /v1/detect`` gives for one image."""
        query = urllib.parse.urlencode({"model": name, "score_threshold": threshold})
        answer = self.ask(f"/v1/detect?{query}", image, **{"Content-Type": "image/png"})
        return answer["images"][0]["detections"]

    def stop(self) -> None:
        """End it as a service manager would, and wait until it is gone."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)


@contextmanager
def serving(bundles: dict[str, Bundle], *options: str, port: int = 0, token: str | None = None) -> Iterator[Served]:
    """Start the server, wait until it is ready, and stop it at the end.

    Args:
        bundles: To serve, by name.
        options: Of ``prunedeploy serve``.
        port: 0 takes a free one.
        token: That the options ask for, so that the tests' own requests carry it.
    """
    named = [f"{name}={bundle.path}" for name, bundle in bundles.items()]
    command = [*SERVE, *named, "--port", str(port), "--no-grpc", *options]
    path = os.pathsep.join(str(REPOSITORY / folder) for folder in (".", "export", "engines"))
    process = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        assert process.stdout is not None
        said = process.stdout.readline().decode()  # the one line that it writes when everything is loaded
        announced = re.search(r" at http://127\.0\.0\.1:(\d+)$", said.strip())
        assert announced, f"{' '.join(command)} says {said!r} and ends with {process.poll()}"
        yield Served(bundles, int(announced[1]), process, token)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(30)


class Visit:
    """One visit to the page in a browser, which notes what must not happen.

    Attributes:
        page: Playwright's page.
        detect_requests: How many images it has sent.
        in_flight: By model, how many requests had been sent and not been answered; the most there ever were.
        problems: Errors and warnings in the console, uncaught exceptions, requests to other hosts, and violations of
            the content security policy. At the end of a ``with`` there must be none.
    """

    def __init__(self, browser: Browser, url: str, expected: str | None = None, **context: Any) -> None:
        """Open a window.

        Args:
            browser: Where.
            url: Of the server.
            expected: What a message of the console may have in it; browsers write one for each refused request.
            context: See Playwright's ``new_context``.
        """
        self.url = url
        self.expected = expected
        self.context = browser.new_context(**context)
        self.page: Page = self.context.new_page()
        self.problems: list[str] = []
        self.detect_requests = 0
        self.open_requests: dict[str, int] = {}
        self.in_flight: dict[str, int] = {}
        self.page.on("console", self._noted)
        self.page.on("pageerror", lambda error: self.problems.append(f"exception: {error}"))
        # Playwright takes the dialog for choosing files over a moment after somebody listens for it, so that is now.
        self.page.on("filechooser", lambda chooser: None)
        self.page.on("request", self._sent)
        self.page.on("requestfinished", self._answered)
        self.page.on("requestfailed", self._answered)
        self.page.add_init_script(
            "document.addEventListener('securitypolicyviolation', e => console.error('policy: ' + e.violatedDirective))"
        )

    def __enter__(self) -> Visit:
        """Load the page, and wait until it knows the models or has said why not."""
        self.page.goto(f"{self.url}/")
        self.page.wait_for_function(
            "() => document.querySelector('#first option, #problem:not([hidden]), #token-form:not([hidden])')"
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.context.close()
        if kind is None:
            assert self.problems == []

    def upload(self, image: bytes, name: str = "image.png", kind: str = "image/png") -> None:
        """Choose a file, and wait until every model that is looked at has answered."""
        self.page.locator("#file").set_input_files({"name": name, "mimeType": kind, "buffer": image})
        self.wait_for_answers()

    def hand_over(self, way: str, image: bytes) -> None:
        """Drop or paste a file anywhere on the page."""
        program = """([way, bytes]) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], "image.png", { type: "image/png" }));
            const event = way === "drop"
                ? new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true })
                : new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true, cancelable: true });
            document.body.dispatchEvent(event);
        }"""
        self.page.evaluate(program, [way, list(image)])
        self.wait_for_answers()

    def again(self) -> None:
        """Ask for the same image again."""
        self.page.get_by_role("button", name="Ask again").click()
        self.wait_for_answers()

    def wait_for_answers(self, *names: str) -> None:
        """Wait until the page says what the models find."""
        wanted = names or tuple(self.page.locator("#panes h2").all_text_contents())
        self.page.wait_for_function(
            "names => names.every(name => document.getElementById('status').textContent.includes(`${name} finds`))",
            arg=list(wanted),
        )

    def slide(self, threshold: float) -> None:
        """Move the slider as a hand would: its value changes and the page hears of it."""
        self.page.get_by_role("slider").fill(f"{threshold}")

    def pane(self, name: str) -> Locator:
        """The part of the page about one model."""
        return self.page.get_by_role("article", name=name, exact=True)

    def _noted(self, message: ConsoleMessage) -> None:
        foreseen = self.expected is not None and self.expected in message.text
        if message.type in {"error", "warning"} and not foreseen:
            self.problems.append(f"console: {message.text}")

    def _sent(self, request: Request) -> None:
        if not request.url.startswith(f"{self.url}/") and not request.url.startswith("blob:"):
            self.problems.append(f"request to {request.url}")
        name = asked_model(request)
        if name:
            self.detect_requests += 1
            self.open_requests[name] = self.open_requests.get(name, 0) + 1
            self.in_flight[name] = max(self.in_flight.get(name, 0), self.open_requests[name])

    def _answered(self, request: Request) -> None:
        name = asked_model(request)
        if name:
            self.open_requests[name] -= 1


def asked_model(request: Request) -> str | None:
    """The model a request wants detections of; None for any other request."""
    address = urllib.parse.urlsplit(request.url)
    if address.path != "/v1/detect":
        return None
    return urllib.parse.parse_qs(address.query)["model"][0]
