"""The report of a study: one page that needs nothing else, whatever the rows are, without torch."""

from __future__ import annotations

import base64
import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest

from prunedeploy.study.report.page import write_report
from prunedeploy.study.statistics.caveats import caveats
from prunedeploy.study.statistics.cells import study_from_rows
from prunedeploy.study.statistics.contrasts import all_contrasts
from prunedeploy.study.statistics.paper import paper_rows
from prunedeploy_engines.errors import ConfigError
from study_rows import grid, row

VOID = {"meta", "br", "img", "hr", "link"}


class Page(HTMLParser):
    """Checks that every element is closed by its own end tag, and collects texts, images and ids."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.texts: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == []
        ids = [value for key, value in self.attributes if key == "id"]
        assert len(ids) == len(set(ids))
        links = [value for key, value in self.attributes if key == "href"]
        assert {link.removeprefix("#") for link in links} <= set(ids)

    def handle_starttag(self, tag, attrs):
        self.attributes += [(key, value or "") for key, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))

    @property
    def images(self) -> list[str]:
        return [value for key, value in self.attributes if key == "src"]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    return write_report(paper_rows(), folder, title="the paper's numbers", compare_paper=True, notes=["a note <b>"])


@pytest.fixture(scope="module")
def page(written):
    return Page(written.page.read_text(encoding="utf-8"))


def test_the_page_loads_nothing_from_anywhere(written, page):
    text = written.page.read_text(encoding="utf-8")
    assert len(page.images) == 4
    for source in page.images:
        kind, data = source.split(",")
        assert kind == "data:image/svg+xml;base64"
        assert ElementTree.fromstring(base64.b64decode(data)).tag.endswith("svg")
    without_images = re.sub(r"data:image/svg\+xml;base64,[\w+/=]+", "", text)
    assert not re.search(r"https?:|url\(|@import|<script|<link|<iframe", without_images)


def test_the_page_answers_the_claims_and_has_the_papers_tables(page):
    assert "claims confirmed 7 of 10 claims not confirmed 2 of 10 claims not tested 1 of 10" in page.text
    assert "the paper's numbers, by the same rule" in page.text
    assert "450 models: 5 configurations x 9 ratios x 10 runs" in page.text
    for number in "I II III IV V VI VII VIII IX X XI XII XIII XIV".split():
        assert f"Table {number}: " in page.text
    assert "a note <b>" in page.text
    assert "None" not in page.text
    assert not re.search(r"\bnan\b", page.text)


def test_every_table_and_figure_is_a_file_too(written):
    folder = written.page.parent
    on_disk = sorted(path for path in folder.rglob("*") if path.is_file())
    assert on_disk == sorted([written.page, *written.tables, *written.figures])
    assert len(written.tables) == 2 * 16
    assert {path.name for path in written.figures} == {
        f"figure-{name}.{form}" for name in ("3", "4", "relative", "trade-off") for form in ("png", "svg")
    }


def report_html(rows, **options):
    """The text of the page of a report."""
    with tempfile.TemporaryDirectory() as folder:
        return write_report(rows, Path(folder), **options).page.read_text(encoding="utf-8")


def test_the_same_rows_give_the_same_page():
    assert report_html(grid(CELLS)) == report_html(grid(CELLS))


def test_caveats_of_the_paper_are_counted(page):
    # Of the eight tests at ratio 0 between colour configurations half have p < .05, see test_paper.
    assert "4 of 8 such tests have p < 0.05" in page.text
    assert "Most groups have 10 runs" in page.text
    assert "if it is 1.3 standard deviations or more" in page.text


def sentences(rows):
    study = study_from_rows(rows)
    return " ".join(caveats(study, all_contrasts(study)))


CELLS = {
    (name, ratio): (0.2 + 0.1 * place, 0.25 + 0.1 * place, 0.31 + 0.1 * place)
    for place, name in enumerate(("structured-scaled", "structured-deeplift"))
    for ratio in (0.25, 0.5)
}


def test_one_run_per_cell_is_a_report_without_tests():
    rows = grid({key: values[:1] for key, values in CELLS.items()})
    assert "so there is no ANOVA and no test" in sentences(rows)
    text = Page(report_html(rows)).text
    assert "so there is no ANOVA and no test" in text
    assert "claims confirmed 0 of 10 claims not confirmed 0 of 10" in text


def test_shared_pretraining_is_seen_and_said():
    base = {(name, 0.0): (0.4, 0.41, 0.43) for name in ("structured-scaled", "structured-deeplift")}
    assert "share their pre-training" in sentences(grid({**CELLS, **base}))
    apart = {("structured-scaled", 0.0): (0.4, 0.41, 0.43), ("structured-deeplift", 0.0): (0.4, 0.41, 0.44)}
    assert "share their pre-training" not in sentences(grid({**CELLS, **apart}))
    assert "0 of 1 such tests have p < 0.05" in sentences(grid({**CELLS, **apart}))


def test_times_of_other_machines_are_left_out_and_said():
    rows = [
        *grid({key: tuple(100 * v for v in values) for key, values in CELLS.items()}, "time_ms", machine="m1"),
        *grid({("structured-scaled", 0.25): (1.0, 2.0)}, "time_ms", machine="m2"),
        *grid(CELLS),
    ]
    assert "Times are only compared on one machine, m1; left out are 2 on m2." in sentences(rows)
    assert "times from m1" in Page(report_html(rows)).text
    assert "times from m2" in Page(report_html(rows, machine="m2")).text


def test_noisy_times_failed_and_missing_models_are_said():
    rows = [
        *grid(CELLS),
        row("structured-scaled", 0.75, 0, time_ms=5.0, time_noisy=True),
        row("structured-scaled", 0.75, 1, error="out of memory <here>"),
    ]
    said = sentences(rows)
    assert "1 of 1 times are noisy" in said
    assert "1 model failed and 4 models not done yet" in said
    text = Page(report_html(rows)).text
    assert "structured, scaled at 75%, run 1: out of memory <here>" in text
    assert "structured, DeepLIFT at 75%, run 2" in text


def test_both_score_thresholds_answer_where_rows_have_both():
    rows = [r.model_copy(update={"map_pgd_conf50": r.map_pgd / 2}) for r in grid(CELLS)]
    assert "at score threshold 0.5" in Page(report_html(rows)).text
    assert "at score threshold" not in Page(report_html(grid(CELLS))).text


def test_a_report_of_nothing_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="there is no result row to report on"):
        write_report([], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_title_is_text():
    assert "<i>" not in report_html(grid(CELLS), title="<i>").replace("&lt;i&gt;", "")


PROGRAM = """
import sys
import prunedeploy.study.report.page, prunedeploy.study.rows.file
heavy = {"torch", "onnx", "onnxruntime", "captum", "pycocotools", "matplotlib.pyplot"} & set(sys.modules)
sys.exit(f"loaded: {heavy}" if heavy else 0)
"""


def test_reporting_loads_no_torch(repository):
    path = os.pathsep.join(str(repository / folder) for folder in (".", "export", "engines"))
    environment = {**os.environ, "PYTHONPATH": path}

    def run(program):
        return subprocess.run([sys.executable, "-c", program], env=environment, stderr=subprocess.PIPE, text=True)

    done = run(PROGRAM)
    assert done.returncode == 0, done.stderr
    assert "onnx" in run(PROGRAM.replace("import sys\n", "import sys, onnx\n", 1)).stderr, "the check would see it"
