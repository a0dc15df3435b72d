"""Tables as data, and the same in HTML, CSV and LaTeX."""

from __future__ import annotations

import csv
import html
import io
import re

import pytest

from prunedeploy.study.report.table_formats import latex_text, to_csv, to_html, to_latex
from prunedeploy.study.statistics.cells import study_from_rows
from prunedeploy.study.statistics.contrasts import all_contrasts
from prunedeploy.study.statistics.design import MAP_PGD, PAPER_CONFIGURATIONS
from prunedeploy.study.statistics.paper import paper_rows
from prunedeploy.study.statistics.tables import all_tables, raw_table
from study_rows import grid, printed_p_values


@pytest.fixture(scope="module")
def tables():
    study = study_from_rows(paper_rows())
    return {table.name: table for table in all_tables(study, all_contrasts(study))}


def test_the_papers_fourteen_tables_and_the_comparisons_behind_them(tables):
    numbers = "I II III IV V VI VII VIII IX X XI XII XIII XIV".split()
    assert list(tables) == [
        *(f"table-{number}" for number in numbers[:4]),
        "comparisons-map",
        "comparisons-time",
        *(f"table-{number}" for number in numbers[4:]),
    ]
    assert tables["table-VI"].caption == "Table VI: Unstructured HYDRA mAP"
    assert tables["table-XIV"].caption == "Table XIV: Unstructured DeepLIFT Greyscale Time"
    assert tables["table-I"].head == ("Pruning ratio", "0%", "25%", "50%", "65%", "75%", "85%", "90%", "95%", "99%")
    labels = [label for label, _ in tables["table-V"].rows]
    assert labels == [*(f"run {run}" for run in range(1, 11)), "max", "min", "avg", "std dev"]
    for table in tables.values():
        assert all(len(cells) == len(table.head) - 1 for _, cells in table.rows)


def test_tables_i_to_iv_have_the_papers_rows_in_its_order(tables):
    for number, pairs in printed_p_values().items():
        assert [label for label, _ in tables[f"table-{number}"].rows] == list(pairs)


def test_raw_table_of_three_runs_worked_by_hand():
    study = study_from_rows(grid({("structured-scaled", 0.25): (0.1, 0.2, 0.6), ("structured-scaled", 0.5): (0.3,)}))
    rows = dict(raw_table(study, MAP_PGD, "structured-scaled", "VIII").rows)
    # Mean .3, deviations -.2, -.1, .3: population variance .14 / 3.
    shown = {label: [cell.text for cell in cells] for label, cells in rows.items()}
    assert shown == {
        "run 0": ["0.100", "0.300"],
        "run 1": ["0.200", "–"],
        "run 2": ["0.600", "–"],
        "max": ["0.600", "0.300"],
        "min": ["0.100", "0.300"],
        "avg": ["0.300", "0.300"],
        "std dev": ["2.2e-01", "0.0e+00"],
    }
    assert rows["std dev"][0].value == pytest.approx((0.14 / 3) ** 0.5)


def test_bold_is_what_survives_holm_and_a_star_what_welch_decides(tables):
    study = study_from_rows(paper_rows())
    by_key = {(c.pair.label, c.ratio): c for c in all_contrasts(study) if c.metric == study.map_metric}
    for label, cells in tables["table-I"].rows:
        for ratio, cell in zip(study.ratios, cells, strict=True):
            contrast = by_key[label, ratio]
            assert cell.strong == (contrast.p_holm < 0.05)
            assert cell.text.endswith("*") == (contrast.comparison.test == "Welch")


def test_without_tests_a_table_says_why():
    cells = {("structured-scaled", 0.5): (0.2,), ("structured-deeplift", 0.5): (0.4,)}
    study = study_from_rows(grid(cells))
    table = next(t for t in all_tables(study, all_contrasts(study)) if t.number == "I")
    ((_, (cell,)),) = table.rows
    assert (cell.text, cell.value, cell.strong) == ("–", None, False)
    assert cell.note == "one run says nothing about chance: no test"


def test_csv_has_every_value_unrounded(tables):
    study = study_from_rows(paper_rows())
    head, *lines = csv.reader(io.StringIO(to_csv(tables["table-I"])))
    assert head[0] == "Pruning ratio"
    contrasts = iter(all_contrasts(study))
    for line in lines:
        for text in line[1:]:
            assert float(text) == next(contrasts).comparison.p_anova
    details = list(csv.reader(io.StringIO(to_csv(tables["comparisons-time"]))))
    assert len(details) == 46
    assert all(len(line) == 16 for line in details)


def test_html_shows_what_the_table_says(tables):
    for table in tables.values():
        text = to_html(table)
        cells = re.findall(r"<t[dh](?: [^>]*)?>(?:<b>)?(.*?)(?:</b>)?</t[dh]>", text)
        expected = [*table.head, *(part for label, row in table.rows for part in (label, *(c.text for c in row)))]
        assert [html.unescape(cell) for cell in cells] == expected


def test_latex_escapes_and_has_as_many_columns_as_it_says(tables):
    assert latex_text("a_b & 5% of {x} #1 $ ~ ^ \\") == (
        r"a\_b \& 5\% of \{x\} \#1 \$ \textasciitilde{} \textasciicircum{} \textbackslash{}"
    )
    for table in tables.values():
        text = to_latex(table)
        columns = re.search(r"\\begin\{tabular\}\{([lr]+)\}", text)[1]
        lines = [line for line in text.splitlines() if line.endswith(r"\\")]
        assert len(columns) == len(table.head)
        assert len(lines) == len(table.rows) + 1
        for line in lines:
            assert len(re.split(r"(?<!\\)&", line)) == len(columns)
        assert text.isascii(), [c for c in text if not c.isascii()]
    assert r"\textbf{1.57e-06}" in to_latex(tables["table-I"]) or r"\textbf{1.58e-06}" in to_latex(tables["table-I"])


def test_configurations_beyond_the_papers_have_tables_without_a_number():
    study = study_from_rows(grid({("kernel-taylor", 0.5): (0.2, 0.3)}))
    (table,) = all_tables(study, all_contrasts(study))
    assert (table.name, table.number, table.caption) == ("raw-kernel-taylor-map", "", "Kernel taylor mAP")
    assert len(PAPER_CONFIGURATIONS) == 5
