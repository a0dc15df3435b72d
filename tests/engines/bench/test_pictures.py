"""Pictures are checked as text and geometry: valid XML, every row in it, no label on another."""

from __future__ import annotations

import itertools
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench_rows import bench_document, bench_row
from prunedeploy_engines.bench.pictures.front import front_picture, front_points, pareto_front
from prunedeploy_engines.bench.pictures.latency import latency_picture
from prunedeploy_engines.bench.pictures.page import page, pictures
from prunedeploy_engines.bench.pictures.row_names import common_settings, precision_in_words, row_labels
from prunedeploy_engines.markup.scales import number_text


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


def test_pareto_front_by_hand() -> None:
    # (2, .4) is beaten by (1, .4); (3, .3) by both; (4, .5) is slower but better; (4, .45) is beaten by it.
    assert pareto_front((4, 1, 2, 3, 4), (0.5, 0.4, 0.4, 0.3, 0.45)) == [1, 0]
    with pytest.raises(ValueError, match="shorter"):
        pareto_front((1, 2), (1,))


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12))
def test_pareto_front_is_what_no_point_beats(pairs: list[tuple[int, int]]) -> None:
    costs, gains = [cost for cost, _ in pairs], [gain for _, gain in pairs]
    front = pareto_front(costs, gains)
    beaten = [any(c <= cost and g >= gain and (c < cost or g > gain) for c, g in pairs) for cost, gain in pairs]
    assert sorted(front) == [i for i, is_beaten in enumerate(beaten) if not is_beaten]
    assert [costs[i] for i in front] == sorted(costs[i] for i in front)


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
