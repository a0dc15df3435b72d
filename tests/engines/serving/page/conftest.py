"""A server and a browser for the tests of the page; where either cannot run, they skip and say why."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from prunedeploy_engines import Bundle
from served_page import Served, Visit, chromium, serving, write_bundles

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """What is served, by name; see `write_bundles`."""
    return write_bundles(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="session")
def served(bundles: dict[str, Bundle]) -> Iterator[Served]:
    """One server for all tests that leave it as it is."""
    pytest.importorskip("fastapi", reason="the server needs the extra 'serve'")
    pytest.importorskip("uvicorn", reason="the server needs the extra 'serve'")
    with serving(bundles) as running:
        yield running


# A module at a time: Playwright keeps an event loop running as long as it is open, and other modules run their own.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Headless Chromium with a camera that shows moving test pictures."""
    api = pytest.importorskip("playwright.sync_api", reason="driving a browser needs playwright")
    program = chromium()
    if program is None:
        pytest.skip("no browser here: neither chromium, chromium-browser nor google-chrome is on PATH")
    flags = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, args=flags)
        yield opened
        opened.close()


@pytest.fixture
def visit(browser: Browser, served: Served) -> Iterator[Visit]:
    """The page, loaded. At the end nothing may have gone wrong in it."""
    with Visit(browser, served.url) as visited:
        yield visited
