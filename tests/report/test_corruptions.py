"""The report's section on corruptions: its figures, its chart, and what it does with what is not known."""

from __future__ import annotations

from typing import Any

from prunedeploy.report.page import report_html

TORCH = {
    "severities": [1, 5], "map": {"fog": [0.4, 0.2], "snow": [0.3, 0.1]}, "map_clean": 0.5, "mpc": 0.25, "rpc": 0.5,
    "intervals": {"map_clean": [0.45, 0.55], "mpc": [0.205, 0.295], "rpc": [0.42, 0.58]},
}  # fmt: skip


def page_of(*runners: dict[str, Any]) -> str:
    names = ("torch", "onnxruntime", "onnxruntime|model.int8.onnx")
    return report_html(
        {"corruptions": {"pruned": {"images": 600, "runners": dict(zip(names, runners, strict=False))}}}, []
    )


def test_means_and_files_are_named() -> None:
    page = page_of(TORCH, TORCH, TORCH)
    for text in ("Under bad weather", "on 600 test images", "severities 1, 5", "pruned, model.int8.onnx", "50.0 %",
                 "42.0 to 58.0 %", "0.205 to 0.295", "0.300", "0.200"):  # fmt: skip
        assert text in page, text
    assert "Of the clean mAP, under corruption on average: pruned 50 %" in page


def test_a_line_goes_from_clean_images_through_the_severities() -> None:
    page = page_of(TORCH)
    # Fog: 0, 1 and 5 of five severities over 162 pixels from 36; mAP .5, .4 and .2 of .5 on 84 pixels from 108 upwards.
    assert "M36.0 24.0L68.4 40.8L198.0 74.4" in page


def test_what_is_not_known_is_a_dash() -> None:
    blind = {**TORCH, "map": {"fog": [None, None]}, "map_clean": None, "mpc": None, "rpc": None, "intervals": None}
    page = page_of(blind)
    assert "Under bad weather" in page
    assert "nan" not in page
    assert "None" not in page.partition("Under bad weather")[2].partition("What these numbers")[0]
    for nothing in (
        {},
        {"pruned": None},
        {"pruned": {"runners": {"torch": None}}},
        {"pruned": {"runners": {"torch": {}}}},
    ):
        assert "Under bad weather" not in report_html({"corruptions": nothing}, [])
