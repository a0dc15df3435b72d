"""The paper's numbers: our code gives what it prints from them."""

from __future__ import annotations

import json
import math
import re
from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal

import numpy as np
import pytest

from prunedeploy.resources import asset_path
from prunedeploy.study.statistics.cells import study_from_rows
from prunedeploy.study.statistics.contrasts import all_contrasts
from prunedeploy.study.statistics.design import MAP_PGD_CONF50, ORIGINAL, PAPER_CONFIGURATIONS, TIME_MS
from prunedeploy.study.statistics.paper import paper_rows
from prunedeploy.study.statistics.tables import all_tables, raw_table
from study_rows import printed_p_values

TABLES = {("map_pgd_conf50", 4): "I", ("time_ms", 4): "II", ("map_pgd_conf50", 1): "III", ("time_ms", 1): "IV"}


@pytest.fixture(scope="module")
def study():
    return study_from_rows(paper_rows())


@pytest.fixture(scope="module")
def both(study):
    """Printed and computed p-value by table, pair and ratio."""
    printed = printed_p_values()
    found = {}
    for contrast in all_contrasts(study):
        of_grey = contrast.pair.label.startswith("Greyscale")
        table = TABLES[contrast.metric.field, 1 if of_grey else 4]
        at = study.ratios.index(contrast.ratio)
        found[table, contrast.pair.label, contrast.ratio] = (
            printed[table][contrast.pair.label][at],
            contrast.comparison.p_anova,
        )
    return found


def test_all_90_p_values_of_the_paper_come_out_to_one_percent(both):
    assert len(both) == sum(len(values) for pairs in printed_p_values().values() for values in pairs.values()) == 90
    for where, (printed, computed) in both.items():
        assert computed == pytest.approx(printed, rel=0.01), where


def digits(value: float, rounding: str, unit: str = "0.01") -> str:
    """Three significant digits, or as many as the unit says, e.g. ``1.03e-01``."""
    exponent = math.floor(math.log10(value))
    mantissa = Decimal(value).scaleb(-exponent).quantize(Decimal(unit), rounding)
    return f"{mantissa}e{exponent:+03d}"


def test_the_paper_cuts_off_maps_p_values_and_rounds_those_of_time(both):
    for (table, *where), (printed, computed) in both.items():
        rounding = ROUND_DOWN if table in ("I", "III") else ROUND_HALF_UP
        assert digits(computed, rounding) == f"{printed:.2e}", (table, where)
    # Neither rule alone explains all of them.
    for rounding in (ROUND_DOWN, ROUND_HALF_UP):
        wrong = [key for key, (printed, computed) in both.items() if digits(computed, rounding) != f"{printed:.2e}"]
        assert len(wrong) > 15


def test_the_appendix_is_450_models_and_the_original(study):
    rows = paper_rows()
    assert len(rows) == 451
    assert len({row.cell for row in rows}) == 451
    assert study.configurations == PAPER_CONFIGURATIONS
    assert study.ratios == (0, 0.25, 0.5, 0.65, 0.75, 0.85, 0.9, 0.95, 0.99)
    assert study.runs == tuple(range(1, 11))
    assert (study.failed, study.missing) == ((), ())
    assert study.map_metric == MAP_PGD_CONF50
    assert study.values(TIME_MS, ORIGINAL, 0.0).tolist() == [119.3]
    # Table VIII, run 7 at 25 %; Table XIV, run 7 at 99 %.
    assert study.by_run(MAP_PGD_CONF50, "structured-scaled", 0.25)[7] == 0.339
    assert study.by_run(TIME_MS, "unstructured-deeplift-grey", 0.99)[7] == 36.6


def test_summaries_of_table_vi_are_those_printed(study):
    # The last four lines of Table VI in the paper, at 0, 65 and 99 %.
    rows = dict(raw_table(study, MAP_PGD_CONF50, "unstructured-scaled", "VI").rows)
    shown = {label: [rows[label][at].text for at in (0, 3, 8)] for label in ("max", "min", "avg", "std dev")}
    assert shown == {
        "max": ["0.413", "0.334", "0.073"],
        "min": ["0.407", "0.290", "0.016"],
        "avg": ["0.409", "0.311", "0.047"],
        "std dev": ["1.9e-03", "1.3e-02", "1.7e-02"],
    }


@pytest.mark.shared
def test_the_asset_holds_the_numbers_of_the_appendix(shared):
    given = json.loads((shared / "paper" / "appendix.json").read_text(encoding="utf-8"))
    ours = json.loads(asset_path("paper-appendix.json").read_text(encoding="utf-8"))
    assert "Liu" in ours.pop("source")
    assert ours == given


@pytest.mark.shared
def test_all_printed_summaries_of_tables_v_to_xiv_come_out(shared, study):
    text = (shared / "paper" / "efficient-robust-object-detection.txt").read_text(encoding="utf-8")
    printed = re.findall(r"^TABLE ([VXI]+): [^\n]* (?:mAP|Time)\n\n(.*?)(?:\n\n|\Z)", text, re.MULTILINE | re.DOTALL)
    ours = {table.number: dict(table.rows) for table in all_tables(study, ()) if table.number}
    compared = 0
    for number, body in (one for one in printed if one[0] in ours):
        lines = dict(line.split("\t", 1) for line in body.strip().splitlines())
        for label in ("max", "min", "avg", "std dev"):
            for cell, theirs in zip(ours[number][label], lines[label].split("\t"), strict=True):
                shown = cell.text
                exact, unit = Decimal(repr(round(cell.value, 12))), Decimal(1).scaleb(-theirs[::-1].find("."))
                if number == "V" and label == "std dev":  # Table V is cut off
                    shown = digits(cell.value, ROUND_DOWN, "0.1")
                elif number == "V":
                    shown = str(exact.quantize(unit, ROUND_DOWN))
                elif label == "avg" and abs(exact - Decimal(theirs)) * 2 == unit:
                    shown = theirs  # halfway: 43.85 became 43.9 in Table XIV, .1765 became .176 in Table VII
                assert shown == theirs, (number, label)
                compared += 1
    assert compared == 10 * 4 * 9


def test_the_papers_control_at_ratio_0_is_not_silent(both):
    # Not pruned, the four colour configurations are one network trained alike; half of the eight tests between them
    # have p < .05 nevertheless, in mAP and in time (Tables I and II, first column).
    first = [computed for (table, _, ratio), (_, computed) in both.items() if ratio == 0 and table in ("I", "II")]
    assert len(first) == 8
    assert np.sum(np.array(first) < 0.05) == 4
