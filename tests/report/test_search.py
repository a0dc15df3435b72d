"""The report's section about a search for the ratio."""

from __future__ import annotations

import re
from typing import Any

import pytest

from prunedeploy.config.ratio_target import RatioTarget
from prunedeploy.pipeline.ratio.search import Measured, RatioSearch, Trial
from prunedeploy.report.search import search_section


def cells(page: str) -> list[list[str]]:
    """Texts of the rows of the table's body."""
    body = page.split("<tbody>")[1].split("</tbody>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", body)
    return [
        [re.sub(r"<[^>]*>", "", one).strip() for one in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)] for row in rows
    ]


def test_every_ratio_that_was_tried_stands_in_the_table_by_size() -> None:
    search = RatioSearch(
        RatioTarget("latency_ms", 20.0),
        (Trial(0.0, 30.0, False), Trial(0.99, 3.0, True, noisy=True), Trial(0.5, 19.5, True), Trial(0.49, 20.5, False)),
        0.5,
        (Trial(0.49, 21.25, False),),
    )
    page = search_section({"search": search.as_dict(Measured(20.25))})
    assert page is not None
    assert "--target-latency asked for the lowest ratio with a median latency of at most 20.00 ms" in page
    assert cells(page) == [
        ["0", "30.00 ms", "no", ""],
        ["0.49", "20.50 ms", "no", ""],
        ["0.49", "21.25 ms", "no", "once trained"],
        ["0.5", "19.50 ms", "yes", "chosen"],
        ["0.99", "3.000 ms noisy", "yes", ""],
    ]
    assert "The finished network, measured with all others, misses it: median latency 20.25 ms" in page


def test_ratio_without_a_network_says_why() -> None:
    trials = (Trial(0.0, 0.4, True), Trial(0.99, None, False, reason="a < b is wrong"))
    search = RatioSearch(RatioTarget("map_pgd", 0.3), trials, 0.5)
    page = search_section({"search": search.as_dict()})
    assert page is not None
    assert 'title="a &lt; b is wrong"' in page
    assert "finished network" not in page


@pytest.mark.parametrize(
    "search",
    [None, {}, [], {"target": None}, {"target": {"measure": ["x"], "value": 1}}, {"target": {"measure": "map_pgd"}}],
)
def test_build_of_a_given_ratio_has_no_such_section(search: Any) -> None:
    assert search_section({"search": search}) is None


def test_what_is_missing_in_a_search_is_left_out() -> None:
    target = {"measure": "onnx_bytes", "value": 5e6}
    page = search_section({"search": {"target": target, "tried": [{"ratio": None}, {"value": 3}, {"ratio": 0.5}]}})
    assert page is not None
    assert cells(page) == [["0.5", "–", "no", ""]]
