"""What the page says when the server refuses, is busy, or is gone."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from prunedeploy_engines import Bundle
from served_page import Served, Visit, mosaic, png, serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.timeout(120)

TOKEN = "a-token-of-this-test"


@pytest.fixture
def lonely(browser: Browser, bundles: dict[str, Bundle]) -> Iterator[tuple[Served, Visit]]:
    """A server of one test's own, with narrow limits, and a visit to it."""
    pytest.importorskip("fastapi", reason="the server needs the extra 'serve'")
    with (
        serving(bundles, "--max-body-mb", "1", "--max-megapixels", "0.5") as served,
        Visit(browser, served.url, "503") as visit,
    ):
        yield served, visit


def choose(visit: Visit, image: bytes, name: str = "image.png", kind: str = "image/png") -> None:
    """Choose a file without waiting for an answer."""
    visit.page.locator("#file").set_input_files({"name": name, "mimeType": kind, "buffer": image})


def told(visit: Visit) -> str:
    """What the page says went wrong, once it does."""
    alert = visit.page.get_by_role("alert")
    alert.wait_for()
    return str(alert.locator("p").text_content())


def in_format(name: str) -> bytes:
    """A small image in one of Pillow's formats."""
    file = io.BytesIO()
    Image.fromarray(np.full((64, 96, 3), 200, np.uint8)).save(file, name)
    return file.getvalue()


def test_too_large_is_told_without_sending_it(lonely: tuple[Served, Visit]) -> None:
    _, visit = lonely
    noise = np.random.default_rng(0).integers(0, 256, (650, 650, 3), dtype=np.uint8)  # cannot be compressed
    choose(visit, png(noise))
    assert told(visit) == "This image is too large for the server. It has 1.2 MiB, the limit is 1.0 MiB."
    choose(visit, png(np.zeros((800, 800, 3), np.uint8)))
    visit.page.get_by_text("0.5 million").wait_for()
    assert told(visit) == "This image is too large for the server. It has 800 x 800 pixels, the limit is 0.5 million."
    assert visit.detect_requests == 0
    visit.upload(mosaic(30))
    assert visit.page.get_by_role("alert").is_hidden(), "the next image makes it good"


def test_kind_that_the_server_does_not_read(browser: Browser, served: Served) -> None:
    with Visit(browser, served.url, "415") as visit:
        choose(visit, in_format("BMP"), "image.bmp", "image/bmp")
        assert told(visit).startswith("The server cannot read this kind of file: send JPEG, PNG or WebP.")


def test_file_that_is_no_image(visit: Visit) -> None:
    choose(visit, b"no image at all", "notes.txt", "text/plain")
    assert told(visit) == "notes.txt is not an image that this browser can show: choose a JPEG, PNG or WebP."
    assert visit.detect_requests == 0


def test_server_that_is_gone_and_comes_back(browser: Browser, bundles: dict[str, Bundle]) -> None:
    pytest.importorskip("fastapi", reason="the server needs the extra 'serve'")
    with serving(bundles) as served, Visit(browser, served.url, "ERR_CONNECTION_REFUSED") as visit:
        visit.upload(mosaic(31))
        served.stop()
        visit.page.get_by_role("button", name="Ask again").click()
        assert told(visit) == "The server does not answer. Is it still running, and is the network up?"
        with serving(bundles, port=served.port):
            visit.page.get_by_role("button", name="Try again").click()
            visit.wait_for_answers("dense", "pruned")
            assert visit.page.get_by_role("alert").is_hidden()


def test_model_that_is_not_loaded(lonely: tuple[Served, Visit]) -> None:
    served, visit = lonely
    served.ask("/v2/repository/models/pruned/unload", b"{}", **{"Content-Type": "application/json"})
    choose(visit, mosaic(32))
    assert told(visit).startswith("The server is busy, or this model is not loaded at the moment. The server says: ")
    assert "pruned" in told(visit)
    assert visit.pane("dense").locator("table.detections tbody tr").count() > 0, "the other one has answered"
    visit.page.get_by_role("button", name="Refresh the list").click()
    visit.wait_for_answers("dense")
    assert visit.page.locator("#panes > article").count() == 1
    assert "unavailable" in visit.page.locator("#models").text_content()
    assert visit.page.get_by_label("Compare with").locator("option").all_text_contents() == ["nothing", "markup"]
    for name in ("dense", "markup"):
        served.ask(f"/v2/repository/models/{name}/unload", b"{}", **{"Content-Type": "application/json"})
    visit.page.get_by_role("button", name="Refresh the list").click()
    visit.page.get_by_text("The server has no model that is ready.").wait_for()
    assert visit.page.get_by_role("button", name="Choose an image").is_disabled()
    assert visit.page.get_by_role("button", name="Use the camera").is_disabled()


def test_camera_waits_for_a_model_that_is_away(lonely: tuple[Served, Visit]) -> None:
    served, visit = lonely
    page = visit.page
    asked = {"Content-Type": "application/json"}
    page.get_by_role("button", name="Use the camera").click()
    visit.pane("pruned").get_by_role("img", name="pruned finds").wait_for()
    served.ask("/v2/repository/models/pruned/unload", b"{}", **asked)
    assert "not loaded at the moment" in told(visit)
    assert page.get_by_role("button", name="Stop the camera").is_visible()
    assert visit.pane("pruned").get_by_text("No answer for this image.").is_visible()
    assert visit.pane("dense").get_by_role("img", name="dense finds").is_visible()
    served.ask("/v2/repository/models/pruned/load", b"{}", **asked)
    page.get_by_role("alert").wait_for(state="hidden")
    visit.pane("pruned").get_by_role("img", name="pruned finds").wait_for()


def test_token_is_asked_for_and_kept_in_memory_only(
    browser: Browser, bundles: dict[str, Bundle], tmp_path: Path
) -> None:
    pytest.importorskip("fastapi", reason="the server needs the extra 'serve'")
    file = tmp_path / "token"
    file.write_text(TOKEN)
    refused = "() => document.getElementById('status').textContent.includes('not accept')"
    kept = "[localStorage.length, sessionStorage.length, document.cookie, location.search, location.hash]"
    options = ("--token-file", str(file))
    with serving(bundles, *options, token=TOKEN) as served, Visit(browser, served.url, "401") as visit:
        page = visit.page
        field = page.get_by_role("textbox", name="Token")
        assert field.is_visible()
        assert page.evaluate("document.activeElement.id") == "token", "the focus is where something is to be typed"
        assert page.get_by_role("status").text_content() == "This server asks for a token."
        field.fill("another one")
        field.press("Enter")
        page.wait_for_function(refused)
        assert field.input_value() == ""
        field.fill(TOKEN)
        field.press("Enter")
        field.wait_for(state="hidden")
        visit.upload(mosaic(33))
        assert page.evaluate(kept) == [0, 0, "", "", ""]
        assert TOKEN not in page.content()
        page.reload()
        field.wait_for()  # a page that is loaded again has forgotten it
