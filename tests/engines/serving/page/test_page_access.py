"""The page without a mouse, read aloud, and in the colours somebody needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from served_page import LOWEST, Served, Visit, mosaic

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.timeout(120)

FOCUSED = (
    "document.activeElement.id || document.activeElement.getAttribute('aria-label') || document.activeElement.className"
)


def tab_to(visit: Visit, wanted: str) -> None:
    """Press Tab until the element of that id has the focus."""
    for _ in range(40):
        visit.page.keyboard.press("Tab")
        if visit.page.evaluate(FOCUSED) == wanted:
            return
    raise AssertionError(f"Tab does not lead to {wanted}")


def test_everything_can_be_done_with_the_keyboard_alone(served: Served, visit: Visit) -> None:
    image = mosaic(10)
    press = visit.page.keyboard.press
    tab_to(visit, "choose")
    with visit.page.expect_file_chooser() as opened:
        press("Enter")
    opened.value.set_files({"name": "image.png", "mimeType": "image/png", "buffer": image})
    visit.wait_for_answers()
    scores = [one["score"] for one in served.detect("dense", image, LOWEST)]

    tab_to(visit, "threshold")
    for _ in range(15):
        press("ArrowRight")  # .01 each, from .5
    shown = visit.pane("dense").locator("table.detections tbody tr")
    assert shown.count() == sum(score > 0.65 for score in scores)
    press("End")
    assert shown.count() == 0
    press("Home")
    assert shown.count() == len(scores)

    visit.page.keyboard.press("Shift+Tab")
    assert visit.page.evaluate(FOCUSED) == "second"
    press("ArrowUp")  # "nothing" is above "pruned"
    assert visit.page.locator("#panes > article").count() == 1

    tab_to(visit, "again")
    press("Space")
    visit.wait_for_answers("dense")
    tab_to(visit, "reload")
    press("Enter")
    visit.wait_for_answers("dense")


def test_focus_is_visible_on_everything_that_takes_it(visit: Visit) -> None:
    visit.upload(mosaic(11))
    seen = []
    while True:
        visit.page.keyboard.press("Tab")
        name = visit.page.evaluate(FOCUSED)
        if name in seen or visit.page.evaluate("document.activeElement === document.body"):
            break
        seen.append(name)
        style = (
            "(({outlineStyle, outlineWidth}) => [outlineStyle, outlineWidth])(getComputedStyle(document.activeElement))"
        )
        assert visit.page.evaluate(style) == ["solid", "3px"], name
    expected = ["skip", "choose", "camera", "again", "first", "second", "threshold"]
    assert seen == [*expected, "Detections of dense", "Detections of pruned", "scroll", "reload"]


def test_first_tab_skips_to_the_results(visit: Visit) -> None:
    visit.page.keyboard.press("Tab")
    visit.page.keyboard.press("Enter")
    assert visit.page.evaluate("document.activeElement.id") == "results"


def accessibility_tree(visit: Visit) -> list[dict[str, Any]]:
    """Role and name of everything that a screen reader is told about."""
    session = visit.context.new_cdp_session(visit.page)
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    return [
        {"role": node["role"]["value"], "name": node.get("name", {}).get("value", "").strip()}
        for node in nodes
        if not node["ignored"] and "role" in node
    ]


def test_every_control_picture_and_table_has_a_name(visit: Visit) -> None:
    visit.upload(mosaic(12))
    tree = accessibility_tree(visit)
    named = {
        "button",
        "combobox",
        "slider",
        "textbox",
        "image",
        "table",
        "article",
        "region",
        "checkbox",
        "link",
        "Video",
    }
    controls = [node for node in tree if node["role"] in named]
    assert {node["role"] for node in controls} >= {
        "button",
        "combobox",
        "slider",
        "image",
        "table",
        "article",
        "region",
    }
    assert [node for node in controls if not node["name"]] == []
    names = {node["name"] for node in controls if node["role"] in {"button", "combobox", "slider"}}
    assert names >= {"Choose an image", "Use the camera", "Ask again", "Model", "Compare with", "Score above"}
    headers = [node["name"] for node in tree if node["role"] == "columnheader"]
    assert {"Class", "Score", "Left", "Top", "Width", "Height"} <= set(headers)


def test_what_happens_is_announced(visit: Visit) -> None:
    status = visit.page.get_by_role("status")
    assert status.text_content() == "Ready: 3 models."
    visit.upload(mosaic(13))
    assert status.text_content().startswith("dense finds ")
    visit.page.get_by_role("slider").press("End")
    assert status.text_content() == "dense finds 0 objects, pruned finds 0 objects."


def luminance(colour: list[float]) -> float:
    """WCAG 2.1's relative luminance of an sRGB colour in [0, 255]."""
    parts = [value / 255 for value in colour]
    red, green, blue = (value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_buttons_contrast_enough_under_the_pointer(browser: Browser, served: Served, scheme: str) -> None:
    colours = """button => {
        const { color, backgroundColor } = getComputedStyle(button);
        return [color, backgroundColor].map(one => one.match(/\\d+/g).map(Number));
    }"""
    with Visit(browser, served.url, color_scheme=scheme) as visit:
        visit.page.get_by_role("button", name="Use the camera").click()
        visit.pane("dense").get_by_role("img", name="dense finds").wait_for()
        for name in ("Stop the camera", "Choose an image", "Refresh the list"):
            button = visit.page.get_by_role("button", name=name)
            button.hover()
            brighter, darker = sorted(map(luminance, button.evaluate(colours)), reverse=True)
            assert (brighter + 0.05) / (darker + 0.05) >= 4.5, name


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_contrasts_enough_in_light_and_dark(browser: Browser, served: Served, scheme: str) -> None:
    # Text and the background under it, of every element that has text of its own. An element whose own background is
    # transparent stands on its parent's.
    program = """() => {
        const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
        const under = element => {
            for (let one = element; one; one = one.parentElement) {
                const colour = numbers(getComputedStyle(one).backgroundColor);
                if (colour.length === 3) return colour;
            }
        };
        const hasText = element => [...element.childNodes].some(one => one.nodeType === 3 && one.data.trim());
        const name = element => `${element.tagName}.${element.className} ${element.textContent.slice(0, 30)}`;
        return [...document.querySelectorAll("body *")]
            .filter(one => one.checkVisibility() && !one.disabled && hasText(one))
            .map(one => [name(one), numbers(getComputedStyle(one).color), under(one)]);
    }"""
    with Visit(browser, served.url, color_scheme=scheme) as visit:
        visit.upload(mosaic(14))
        texts = visit.page.evaluate(program)
        ground = visit.page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert len(texts) > 100
    assert (luminance(ground) < 0.1) == (scheme == "dark")
    for what, colour, background in texts:
        brighter, darker = sorted((luminance(colour), luminance(background)), reverse=True)
        assert (brighter + 0.05) / (darker + 0.05) >= 4.5, what


def test_less_motion_means_none(browser: Browser, served: Served) -> None:
    moving = "[...document.querySelectorAll('*')].filter(e => getComputedStyle(e).transitionDuration !== '0s').length"
    for choice, expected in (("no-preference", False), ("reduce", True)):
        with Visit(browser, served.url, reduced_motion=choice) as visit:
            assert (visit.page.evaluate(moving) == 0) is expected


@pytest.mark.parametrize("width", [320, 390, 768, 1920])
def test_nothing_is_wider_than_the_window(browser: Browser, served: Served, width: int) -> None:
    with Visit(browser, served.url, viewport={"width": width, "height": 800}) as visit:
        visit.upload(mosaic(15))
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
