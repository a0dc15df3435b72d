"""Take the picture of the server's page that the guide shows.

Serve a dense and a pruned bundle of the demo, then run this with any of the demo's test images:

    prunedeploy serve dense=runs/dense/bundle pruned=runs/pruned/bundle
    python docs/images/serving_page.py http://127.0.0.1:8000 image.png docs/images/serving-page.png
"""

from __future__ import annotations

import argparse
import io
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

REPEATS = 20  # requests that the latencies are medians of


def picture(url: str, image: Path, *, scheme: str, width: int) -> bytes:
    """Give the page an image, let it ask a few times, and photograph it down to the comparison.

    Args:
        url: URL of a running server.
        image: What its models are to look at.
        scheme: ``"light"`` or ``"dark"``.
        width: Width of the window, in CSS pixels.

    Returns:
        A PNG file.
    """
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        page.goto(url)
        page.locator("#first option").first.wait_for(state="attached")
        page.locator("#file").set_input_files(image)
        for asked in range(1, REPEATS + 1):
            page.wait_for_function("() => / finds .* finds /.test(document.getElementById('status').textContent)")
            if asked < REPEATS:
                page.get_by_role("button", name="Ask again").click()
        page.mouse.move(0, 0)
        page.evaluate("document.activeElement.blur()")
        bottom = page.locator("#results").evaluate("section => section.getBoundingClientRect().bottom + scrollY")
        taken = page.screenshot(full_page=True, clip={"x": 0, "y": 0, "width": width, "height": bottom + 16})
        browser.close()
    return taken


def main() -> None:
    """Take the picture and write it as small as it stays the same."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("url", help="of a running server with at least two models")
    parser.add_argument("image", type=Path, help="what its models are to look at")
    parser.add_argument("out", type=Path, help="PNG to write")
    parser.add_argument("--scheme", choices=["light", "dark"], default="light")
    parser.add_argument("--width", type=int, default=1180, help="of the window, in pixels")
    given = parser.parse_args()
    taken = picture(given.url, given.image, scheme=given.scheme, width=given.width)
    Image.open(io.BytesIO(taken)).convert("RGB").save(given.out, optimize=True)


if __name__ == "__main__":
    main()
