"""The page in a real browser, against a real server with real bundles."""

from __future__ import annotations

import itertools
import re
from typing import Any

import numpy as np
import pytest

from served_page import (
    BLACK,
    ENGINES_HEAD,
    ENGINES_ROW,
    IMAGE_SIZE,
    LOWEST,
    MARKUP,
    Served,
    Visit,
    block,
    mosaic,
    png,
)

pytestmark = pytest.mark.timeout(120)


def rows(visit: Visit, name: str) -> list[tuple[str, str, str, str, str, str]]:
    """What the table of a model's detections says, as text."""
    table = visit.pane(name).locator("table.detections tbody tr")
    return [tuple(row) for row in table.evaluate_all("rows => rows.map(row => [...row.cells].map(c => c.textContent))")]


def as_row(detection: dict[str, Any]) -> tuple[str, str, str, str, str, str]:
    """The same of one detection as the server writes it."""
    left, top, right, bottom = detection["box"]
    numbers = (left, top, right - left, bottom - top)
    return (detection["class"], f"{detection['score']:.3f}", *(f"{number:.0f}" for number in numbers))


def test_uploaded_image_shows_what_the_server_finds(served: Served, visit: Visit) -> None:
    image = mosaic(1)
    visit.upload(image)
    for name in ("dense", "pruned"):
        found = served.detect(name, image, 0.5)
        assert 5 < len(found) < 60, "the image must tell thresholds apart"
        assert rows(visit, name) == [as_row(one) for one in found]
        picture = visit.pane(name).get_by_role("img")
        spoken = picture.get_attribute("aria-label")
        assert spoken.startswith(f"{name} finds {len(found)} objects: {found[0]['class']} {found[0]['score']:.2f}, ")
        assert visit.pane(name).locator(".count strong").text_content() == f"{len(found)} detections"


def test_boxes_are_drawn_where_the_objects_are(visit: Visit) -> None:
    # One block of one colour, so one detection: 32..48 across and 16..32 down of a 96 x 64 image, which is
    # drawn 8 times as large. Its class is the second, whose colour is #56b4e9.
    visit.upload(block("green", column=2, row=1))
    ((name, _, *box),) = rows(visit, "dense")
    assert (name, box) == ("green", ["32", "16", "16", "16"])
    canvas = visit.pane("dense").locator("canvas")
    assert canvas.evaluate("canvas => [canvas.width, canvas.height]") == [768, 512]
    seen = """(canvas, points) => {
        const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        return points.map(([x, y]) => [...data.slice(4 * (y * canvas.width + x)).slice(0, 3)]);
    }"""
    edges = [[256, 192], [383, 192], [320, 255]]  # left, right, bottom
    *edge_colours, label, inside, outside = canvas.evaluate(seen, [*edges, [258, 112], [320, 192], [60, 450]])
    for colour in edge_colours:
        assert colour == pytest.approx([0x56, 0xB4, 0xE9], abs=3)
    assert label == pytest.approx([0x56, 0xB4, 0xE9], abs=3), "the label's plate stands above its box"
    assert inside == pytest.approx([0, 255, 0], abs=3), "the object stays visible"
    assert outside == [0, 0, 0], "and so does what is around it"


def test_slider_filters_without_asking_the_server(served: Served, visit: Visit) -> None:
    image = mosaic(2)
    visit.upload(image)
    scores = [one["score"] for one in served.detect("dense", image, LOWEST)]
    asked = visit.detect_requests
    counts = []
    for threshold in (0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95, 1.0):
        visit.slide(threshold)
        counts.append(len(rows(visit, "dense")))
        assert counts[-1] == sum(score > threshold for score in scores), threshold
        assert visit.page.locator("#threshold-value").text_content() == f"{threshold:.2f}"
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[3] > counts[-1] == 0
    assert visit.detect_requests == asked
    # What the slider leaves is what the server itself gives for that score.
    visit.slide(0.65)
    assert rows(visit, "dense") == [as_row(one) for one in served.detect("dense", image, 0.65)]


def overlap(a: list[float], b: list[float]) -> float:
    """IoU of two boxes xyxy, from the areas of what both and what either covers."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    both = width * height
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def test_two_models_are_compared_figure_by_figure(served: Served, visit: Visit) -> None:
    image = mosaic(3)
    visit.upload(image)
    table = visit.page.locator("#comparison tbody tr")
    figures = dict(
        table.evaluate_all(
            "rows => rows.map(r => [r.cells[0].textContent, [...r.cells].slice(1).map(c => c.textContent)])"
        )
    )
    dense, pruned = (served.detect(name, image, 0.5) for name in ("dense", "pruned"))
    assert len(dense) != len(pruned)
    # The bundles say 2,000,000 and 500,000 parameters, and mAPs .7 and .65; both have the same file.
    assert figures["Parameters"] == ["2 M", "500 k", "4.00 × fewer"]
    size = served.bundles["dense"].manifest.files["model.onnx"].bytes
    assert size < 1000
    assert figures["File"] == [f"{size} B", f"{size} B", "the same"]
    assert figures["mAP, measured by the build"] == ["0.700", "0.650", "\u22120.050"]
    sign = "\u2212" if len(pruned) < len(dense) else "+"
    assert figures["Detections"] == [str(len(dense)), str(len(pruned)), f"{sign}{abs(len(pruned) - len(dense))}"]
    # Cells do not overlap, so a detection has at most one partner and no order of matching can matter.
    both = sum(
        a["class"] == b["class"] and overlap(a["box"], b["box"]) >= 0.5 for a, b in itertools.product(dense, pruned)
    )
    said = visit.page.locator("#agreement").text_content()
    assert said.startswith(f"{both} object{'s' * (both != 1)} found by both, {len(dense) - both} only by dense")
    assert visit.page.locator("#panes .badge").all_text_contents() == ["not pruned", "pruned 75 %"]


def test_second_model_can_be_left_out_and_models_can_be_swapped(served: Served, visit: Visit) -> None:
    image = mosaic(4)
    visit.upload(image)
    visit.page.get_by_label("Compare with").select_option("nothing")
    assert visit.page.locator("#panes > article").count() == 1
    assert visit.page.locator("#comparison").is_hidden()
    visit.page.get_by_label("Model", exact=True).select_option("pruned")
    visit.page.get_by_label("Compare with").select_option("dense")
    visit.wait_for_answers("pruned", "dense")
    assert visit.page.locator("#panes h2").all_text_contents() == ["pruned", "dense"]
    for name in ("dense", "pruned"):
        assert rows(visit, name) == [as_row(one) for one in served.detect(name, image, 0.5)]


def test_matching_agrees_with_every_assignment_tried(visit: Visit) -> None:
    # Two boxes here are the same or do not touch, and are of the same class or not: then the largest possible number of
    # pairs, found by trying all assignments, is what matching greedily finds as well.
    random = np.random.default_rng(0)
    for _ in range(20):
        sides = [
            [
                {"class": f"c{class_id}", "score": 0.5, "box": [20.0 * place, 0, 20.0 * place + 10, 10]}
                for place, class_id in random.integers(0, 2, size=(random.integers(0, 5), 2)).tolist()
            ]
            for _ in range(2)
        ]
        few, many = sorted(sides, key=len)
        best = max(
            sum(
                a["class"] == b["class"] and overlap(a["box"], b["box"]) >= 0.5 for a, b in zip(few, order, strict=True)
            )
            for order in itertools.permutations(many, len(few))
        )
        program = "async sides => (await import('/static/agreement.js')).inBoth(...sides)"
        assert visit.page.evaluate(program, sides) == best, sides


def test_latency_is_told_by_stage(visit: Visit) -> None:
    visit.upload(mosaic(5))
    for _ in range(2):
        visit.again()
    pane = visit.pane("dense")
    assert pane.locator(".times caption").text_content() == "Latency, median of 3 requests"
    text = pane.locator(".times tbody tr").evaluate_all("rows => rows.map(r => [...r.cells].map(c => c.textContent))")
    names = [name for name, _ in text]
    assert {"Decode the image", "Letterbox", "Run the network", "Network and browser"} < set(names)
    assert names[-1] == "Round trip"
    values = {name: float(value.removesuffix(" ms")) for name, value in text}
    round_trip = values.pop("Round trip")
    # Of medians only this much is sure; each is rounded to a tenth.
    assert sum(values.values()) >= round_trip - 0.1 * len(values)


def test_models_are_listed_with_their_pruning_record(visit: Visit) -> None:
    listed = visit.page.locator("#models tr").evaluate_all(
        "rows => rows.map(r => [...r.cells].map(c => c.textContent))"
    )
    dense, pruned, _ = (" | ".join(row) for row in listed)
    assert "not pruned | 2 M" in dense
    assert "75.1 % of 75 % asked for" not in pruned
    assert "75 %, structured, scaled | 500 k" in pruned
    for row, (map_clean, map_pgd) in ((dense, ("0.700", "0.500")), (pruned, ("0.650", "0.480"))):
        assert re.search(rf"\| ready \|.*onnxruntime, fp32 \| 48 × 32 \| 3 classes \| {map_clean} \| {map_pgd}", row)


def test_engines_are_listed_with_what_the_build_measured_of_them(visit: Visit) -> None:
    table = visit.page.locator("#attacked table")
    shown = table.locator("tr").evaluate_all("rows => rows.map(r => [...r.cells].map(c => c.textContent))")
    assert shown == [ENGINES_HEAD, ENGINES_ROW]
    assert visit.page.locator("#attacked").is_visible()


def test_newer_image_is_not_overtaken_by_an_older_one(served: Served, visit: Visit) -> None:
    held: list[Any] = []  # the first request, which is not let through
    visit.page.route("**/v1/detect?*", lambda route: route.continue_() if held else held.append(route))
    visit.page.locator("#file").set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": mosaic(7)})
    visit.page.wait_for_function("() => document.querySelector('[aria-busy=true]')")
    newer = mosaic(8)
    visit.upload(newer)
    for name in ("dense", "pruned"):
        assert rows(visit, name) == [as_row(one) for one in served.detect(name, newer, 0.5)]


def test_image_without_objects_says_so(visit: Visit) -> None:
    visit.upload(png(np.full((*IMAGE_SIZE, 3), BLACK, np.uint8)))
    assert rows(visit, "dense") == []
    assert visit.page.get_by_role("status").text_content() == "dense finds 0 objects, pruned finds 0 objects."


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_image_can_be_dropped_and_pasted(served: Served, visit: Visit, way: str) -> None:
    image = mosaic(6)
    visit.hand_over(way, image)
    assert rows(visit, "dense") == [as_row(one) for one in served.detect("dense", image, 0.5)]


def test_names_from_a_bundle_are_text_and_never_markup(visit: Visit) -> None:
    visit.page.get_by_label("Model", exact=True).select_option("markup")
    visit.upload(block("red", column=0, row=0))
    assert rows(visit, "markup")[0][0] == MARKUP
    assert MARKUP in visit.pane("markup").get_by_role("img").get_attribute("aria-label")
    assert visit.page.locator("b, img[src=x]").count() == 0


def test_policy_of_the_page_is_in_force_and_would_be_noticed(visit: Visit) -> None:
    inject = """() => {
        const script = document.createElement("script");
        script.textContent = "window.intruder = true";
        document.body.append(script);
        document.body.insertAdjacentHTML("beforeend", '<p style="color: red" onclick="window.intruder = true">x</p>');
        return fetch("http://127.0.0.1:9/elsewhere").then(() => "answered", () => "refused");
    }"""
    assert visit.page.evaluate(inject) == "refused"
    visit.page.get_by_text("x", exact=True).click()
    assert visit.page.evaluate("window.intruder") is None
    broken = " ".join(visit.problems)
    for directive in ("script-src-elem", "script-src-attr", "style-src-attr", "connect-src"):
        assert f"policy: {directive}" in broken
    visit.problems.clear()
