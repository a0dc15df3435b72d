"""Pictures are checked as text and geometry: valid XML, every row in it, no label on another."""

from __future__ import annotations

import itertools
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench_rows import bench_document, bench_row
from prunedeploy_engines.bench.pictures.front import Point, front_picture, front_points, pareto_front
from prunedeploy_engines.bench.pictures.labels import Box, place_labels
from prunedeploy_engines.bench.pictures.latency import latency_picture
from prunedeploy_engines.bench.pictures.page import page, pictures
from prunedeploy_engines.bench.pictures.row_names import common_settings, precision_in_words, row_labels
from prunedeploy_engines.markup.svg import (
    Axis,
    Drawing,
    linear_ticks,
    log_ticks,
    number_text,
    shortened,
    text_width,
)


def texts(svg: str) -> list[str]:
    """What is written in a picture; parsing it also shows that it is XML."""
    return [element.text or "" for element in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def many_rows(count: int) -> list[dict]:
    settings = itertools.product(("onnxruntime", "openvino"), ("fp32", "int8"), (1, 8))
    choices = list(itertools.islice(itertools.cycle(settings), count))
    return [
        bench_row(
            5.0 + 3 * number,
            seed=number,
            model=f"model-{number // 8}",
            runtime=runtime,
            precision=precision,
            computes_in={precision: 1.0},
            batch=batch,
            map_pgd=0.3 + 0.002 * number,
            map_pgd_interval=[0.29, 0.45],
        )
        for number, (runtime, precision, batch) in enumerate(choices)
    ]


@pytest.mark.parametrize("count", [1, 2, 13, 40])
def test_every_row_is_in_the_latency_picture(count: int) -> None:
    rows = many_rows(count)
    written = texts(latency_picture(rows))
    for row in rows:
        assert number_text(row["latency_ms"]["p50"]) in written
        assert number_text(row["latency_ms"]["p99"]) in written
    for model in {row["model"] for row in rows}:
        assert model in written
    if count == 40:
        for setting in ("onnxruntime, fp32, batch 1", "openvino, int8, batch 8"):
            assert written.count(setting) == 5


def test_no_sample_is_hidden_by_the_scale() -> None:
    row = bench_row(10.0)
    row["samples_ms"][3] = 100.0
    row["samples_ms"][7] = 61.0
    assert f"+2 to {100 / row['latency_ms']['p50']:.1f}×" in texts(latency_picture([row]))


def test_samples_that_are_all_equal_are_drawn() -> None:
    row = bench_row(samples_ms=[5.0] * 20, round_sizes=[20])
    row["latency_ms"] |= dict.fromkeys(("p50", "p90", "p99", "mean"), 5.0)
    assert "5.00" in texts(latency_picture([row]))


def test_noisy_rows_are_marked() -> None:
    noisy = bench_row()
    noisy["latency_ms"]["noisy"] = True
    assert any(text.endswith(" *") for text in texts(latency_picture([noisy])))
    assert not any(text.endswith(" *") for text in texts(latency_picture([bench_row()])))


def test_names_that_are_markup_are_text() -> None:
    row = bench_row(model="<script>&\x00\ud800", map_pgd=0.4)
    for svg in pictures(bench_document([row])).values():
        assert any("<script>&" in text for text in texts(svg))
    assert "<script>" not in page(bench_document([row]))


def points(*pairs: tuple[float, float]) -> list[Point]:
    return [Point({}, cost, robust) for cost, robust in pairs]


def test_pareto_front_by_hand() -> None:
    # (2, .4) is beaten by (1, .4); (3, .3) by both; (4, .5) is slower but better; (4, .45) is beaten by it.
    given_points = points((4, 0.5), (1, 0.4), (2, 0.4), (3, 0.3), (4, 0.45))
    assert [(point.cost, point.robust) for point in pareto_front(given_points)] == [(1, 0.4), (4, 0.5)]


@given(pairs=st.lists(st.tuples(st.integers(1, 8), st.integers(0, 8)), min_size=1, max_size=12))
def test_pareto_front_is_what_no_point_beats(pairs: list[tuple[int, int]]) -> None:
    front = {(point.cost, point.robust) for point in pareto_front(points(*pairs))}
    beaten = {
        (cost, robust)
        for cost, robust in pairs
        if any(c <= cost and r >= robust and (c, r) != (cost, robust) for c, r in pairs)
    }
    assert front == set(pairs) - beaten


@pytest.mark.parametrize("count", [1, 6, 40])
def test_every_point_of_the_front_picture_has_its_name(count: int) -> None:
    rows = many_rows(count)
    svg = front_picture(rows)
    assert svg is not None
    written = texts(svg)
    if count == 40:  # numbers in the picture, names below
        assert {str(number + 1) for number in range(count)} <= set(written)
        assert sum(text.startswith(tuple(f"{n}  model-" for n in range(1, 41))) for text in written) == count
    else:
        assert all(any(text.startswith("model-") or "fp32" in text for text in written) for _ in rows)


def test_rows_without_robust_map_are_listed_and_not_drawn() -> None:
    rows = [bench_row(map_pgd=0.4), bench_row(model="foreign"), bench_row(map_pgd=0.4, kind="compute")]
    drawn, left_out = front_points(rows)
    assert [point.row is rows[0] for point in drawn] == [True]
    assert left_out == rows[1:]
    written = texts(str(front_picture(rows)))
    assert "not drawn, since no robust mAP is known:" in written
    assert any(text.startswith("foreign") for text in written)
    assert any("another kind of figure" in text for text in written)
    assert front_picture(rows[1:2]) is None
    assert list(pictures(bench_document(rows[1:2]))) == ["latency.svg"]


def test_cost_is_per_image_and_of_a_server_per_query() -> None:
    batched = bench_row(80.0, batch=8, map_pgd=0.4)
    server = bench_row(map_pgd=0.4, server={"queries_per_s": 50.0})
    assert front_points([batched])[0][0].cost == pytest.approx(batched["latency_ms"]["p50"] / 8)
    assert front_points([server])[0][0].cost == pytest.approx(20.0)


def test_each_device_has_a_front_of_its_own() -> None:
    rows = [bench_row(10.0 * factor, device=device, map_pgd=0.4) for device, factor in (("A", 1), ("B", 5))]
    svg = str(front_picture(rows))
    assert {"A", "B"} <= set(texts(svg))
    assert "beaten by another" not in texts(svg), "the slow device has a front too"


@pytest.mark.parametrize("seed", range(5))
def test_labels_cover_neither_each_other_nor_markers(seed: int) -> None:
    rng = np.random.default_rng(seed)
    spots = [(float(x), float(y)) for x, y in rng.uniform((80, 60), (900, 460), (14, 2))]
    sizes = [(float(width), 13.0) for width in rng.uniform(40, 160, 14)]
    area = Box(60, 40, 990, 490)
    boxes = place_labels(spots, sizes, area)
    markers = [Box(x - 5, y - 5, x + 5, y + 5) for x, y in spots]
    for a, b in itertools.combinations(boxes, 2):
        assert a.overlap(b) == 0
    assert all(box.overlap(marker) == 0 for box in boxes for marker in markers)
    assert all(box.outside(area) == 0 for box in boxes)


def test_a_lone_label_stands_right_of_its_point() -> None:
    (box,) = place_labels([(100, 100)], [(50, 12)], Box(0, 0, 500, 500))
    assert box.left > 100
    assert box.top < 100 < box.bottom
    (box,) = place_labels([(480, 100)], [(50, 12)], Box(0, 0, 500, 500))
    assert box.right < 480, "inside the area"


@given(first=st.floats(-1e3, 1e3), span=st.floats(1e-3, 1e4))
def test_linear_ticks_are_even_and_inside(first: float, span: float) -> None:
    ticks = linear_ticks(first, first + span)
    assert 2 <= len(ticks) <= 13
    assert all(first - 1e-6 * span <= tick <= first + span * (1 + 1e-6) for tick in ticks)
    assert np.ptp(np.diff(ticks)) < 1e-6 * span + 1e-9


@given(first=st.floats(1e-3, 1e3), ratio=st.floats(6, 1e4))
def test_log_ticks_are_inside_and_enough(first: float, ratio: float) -> None:
    ticks = log_ticks(first, first * ratio)
    assert len(ticks) >= 2
    assert ticks == sorted(ticks)
    assert all(first * (1 - 1e-6) <= tick <= first * ratio * (1 + 1e-6) for tick in ticks)


def test_axis_puts_values_on_pixels() -> None:
    assert Axis(0, 10, 100, 200).at(2.5) == 125
    assert Axis(0, 10, 100, 200).at(99) == 200
    assert Axis(1, 100, 0, 200, log=True).at(10) == pytest.approx(100)
    assert Axis(0, 1, 300, 100).at(0.25) == 250  # upwards


def test_long_texts_keep_both_ends() -> None:
    short = shortened("a-very-long-name-of-a-model/model.onnx", 120)
    assert text_width(short) <= 120
    assert short.startswith("a-very")
    assert short.endswith(".onnx")
    assert shortened("short", 120) == "short"


@pytest.mark.parametrize(
    ("value", "text"),
    [(148.23, "148"), (15.44, "15.4"), (1.239, "1.24"), (0.01234, "0.0123"), (1092.3, "1092"), (0, "0")],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert number_text(value) == text


def test_a_drawing_is_a_file_by_itself() -> None:
    drawing = Drawing()
    drawing.marker(5, 5, "diamond", "#000000", filled=False)
    drawing.text(1, 2, "a < b", turn=-90)
    root = ET.fromstring(drawing.to_svg(10, 20, "what it shows"))
    assert root.attrib["viewBox"] == "0 0 10 20"
    assert root[0].text == "what it shows"


def test_labels_say_what_differs_and_the_rest_is_said_once() -> None:
    rows = [bench_row(batch=1), bench_row(batch=8, precision="int8", computes_in={"int8": 0.97, "fp32": 0.03})]
    assert row_labels(rows) == ["fp32, batch 1", "int8 (97 %), batch 8"]
    assert row_labels(rows, without=("precision",)) == ["batch 1", "batch 8"]
    assert common_settings(rows) == "Some CPU, onnxruntime, 2 threads, host"


@pytest.mark.parametrize(
    ("precision", "computes_in", "words"),
    [
        ("fp32", {"fp32": 1.0}, "fp32"),
        ("fp32", {"bf16": 1.0}, "fp32 (runs in bf16)"),
        ("int8", {"int8": 0.9, "fp32": 0.1}, "int8 (90 %)"),
        ("int8", None, "int8"),
        (None, None, "-"),
    ],
)
def test_precision_is_what_really_ran(precision: str | None, computes_in: dict | None, words: str) -> None:
    assert precision_in_words({"precision": precision, "computes_in": computes_in}) == words


def test_page_has_pictures_figures_reasons_and_machines() -> None:
    rows = [bench_row(map_pgd=0.41), bench_row(batch=8, latency_ms=None, reason="no GPU here")]
    rows[0]["layers"] = [{"name": "layer1", "kind": "Conv", "precision": "fp32", "mean_ms": 1.5, "share": 0.4}]
    text = page(bench_document(rows, notes=["the governor is powersave"]))
    assert text.count("<svg") == 2
    for said in ("no GPU here", "the governor is powersave", "layer1", "0.410", "Some CPU", "onnxruntime 1.32.0"):
        assert said in text
