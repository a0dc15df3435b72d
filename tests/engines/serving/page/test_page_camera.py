"""The page with a camera: Chromium's own, which shows moving test pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from served_page import Served, Visit, mosaic

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.timeout(120)

# Once the page's medians are of at least five pictures.
RUNNING = """() => {
    const median = /median of (\\d+)/.exec(document.querySelector("#panes .times").textContent);
    return median && median[1] >= 5;
}"""
FRAMES = """() => new Promise(done => {
    let left = 10;
    const tick = () => left-- > 0 ? requestAnimationFrame(tick) : done();
    tick();
})"""
REFUSED = """() => {
    navigator.mediaDevices.getUserMedia = async () => { throw new DOMException("no", "NotAllowedError"); };
}"""


def test_camera_sends_one_picture_after_the_other(visit: Visit) -> None:
    page = visit.page
    page.get_by_role("button", name="Use the camera").click()
    page.wait_for_function(RUNNING)
    assert page.get_by_role("button", name="Stop the camera").get_attribute("aria-pressed") == "true"
    assert page.get_by_role("button", name="Ask again").is_disabled()
    page.wait_for_function("() => document.getElementById('rate').textContent.endsWith('pictures a second')")
    assert page.locator("#comparison").is_visible()
    page.get_by_role("button", name="Stop the camera").click()
    page.wait_for_function("() => !document.querySelector('[aria-busy=true]')")  # a last one may be on its way
    assert visit.in_flight == {"dense": 1, "pruned": 1}, "never more than one at a time, whichever the model"
    sent = visit.detect_requests
    assert sent >= 10
    # The picture that stays is an image like any other: it can be asked about again.
    visit.again()
    assert visit.detect_requests == sent + 2
    assert page.evaluate("document.getElementById('video').srcObject") is None


def test_other_image_ends_the_camera(served: Served, visit: Visit) -> None:
    visit.page.get_by_role("button", name="Use the camera").click()
    visit.page.wait_for_function(RUNNING)
    image = mosaic(20)
    visit.upload(image)
    found = served.detect("dense", image, 0.5)
    assert visit.pane("dense").locator("table.detections tbody tr").count() == len(found)
    assert visit.page.get_by_role("button", name="Use the camera").get_attribute("aria-pressed") == "false"
    sent = visit.detect_requests
    visit.page.evaluate(FRAMES)
    assert visit.detect_requests == sent


def test_camera_that_is_refused_is_told_in_words(browser: Browser, served: Served) -> None:
    with Visit(browser, served.url) as visit:
        visit.page.evaluate(REFUSED)
        visit.page.get_by_role("button", name="Use the camera").click()
        assert "was not allowed" in visit.page.get_by_role("alert").text_content()
