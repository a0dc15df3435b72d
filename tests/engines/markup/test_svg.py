from __future__ import annotations

import xml.etree.ElementTree as ET

from prunedeploy_engines.markup.scales import Axis
from prunedeploy_engines.markup.svg import Bar, Drawing, Key, shortened, text_width

SVG = "{http://www.w3.org/2000/svg}"


def test_long_texts_keep_both_ends() -> None:
    short = shortened("a-very-long-name-of-a-model/model.onnx", 120)
    assert text_width(short) <= 120
    assert short.startswith("a-very")
    assert short.endswith(".onnx")
    assert shortened("short", 120) == "short"


def test_a_drawing_is_a_file_by_itself() -> None:
    drawing = Drawing()
    drawing.marker(5, 5, "diamond", "#000000", filled=False)
    drawing.text(1, 2, "a < b", turn=-90)
    root = ET.fromstring(drawing.to_svg(10, 20, "what it shows"))
    assert root.attrib["viewBox"] == "0 0 10 20"
    assert root[0].text == "what it shows"


def test_a_page_chooses_the_colours_and_a_file_has_its_own() -> None:
    for on_page, ink in ((True, "var(--ink)"), (False, "#1b1f24")):
        drawing = Drawing(on_page=on_page)
        drawing.line(0, 0, 1, 1, "ink")
        drawing.line(0, 0, 1, 1, "#abcdef")
        svg = drawing.to_svg(10, 20, "two lines")
        assert f'stroke="{ink}"' in svg
        assert 'stroke="#abcdef"' in svg
        assert ("://" in svg) is not on_page, "a page needs no name space"
        assert ("rect" in svg) is not on_page, "a page has its own paper"


def drawn(drawing: Drawing) -> ET.Element:
    return ET.fromstring(drawing.to_svg(500, 100, "a test"))


def test_a_bar_says_what_it_is_and_its_whisker_stays_on_the_scale() -> None:
    drawing = Drawing()
    axis = Axis(0, 10, 100, 300)
    drawing.bar(axis, 20, Bar("long", 5.0, "5.0 ms", "#000000", (5.0, 6.0, 40.0)))
    drawing.bar(axis, 40, Bar("none", None, "not measured", "#000000"))
    root = drawn(drawing)
    _paper, bar = root.findall(f"{SVG}rect")
    assert (float(bar.attrib["x"]), float(bar.attrib["width"])) == (100, 100)
    (whisker,) = (path.attrib["d"] for path in root.iter(f"{SVG}path"))
    assert whisker == "M200.0 20.0H300.0M200.0 16.0v8M220.0 16.0v8M295.0 16.0l5 4l-5 4", "an arrow beyond the scale"
    words = {text.text: float(text.attrib["x"]) for text in root.iter(f"{SVG}text")}
    assert words == {"long": 92, "5.0 ms": 307, "none": 92, "not measured": 107}


def test_a_legend_goes_on_in_the_next_line() -> None:
    drawing = Drawing()
    below = drawing.legend([Key(f"a rather long name {i}", "#000000") for i in range(4)], 10, 20, 400)
    texts = [(float(text.attrib["x"]), float(text.attrib["y"])) for text in drawn(drawing).iter(f"{SVG}text")]
    assert [y for _, y in texts] == [20, 20, 40, 40]
    assert texts[0][0] == texts[2][0]
    assert below == 60
