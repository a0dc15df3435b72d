"""The report's table of what every engine leaves and how long it takes."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from engine_figures import ALL, FEWER, PLAIN
from prunedeploy.report.engine_figures import engine_figures_table
from prunedeploy.report.words import caveats

NOT_RUN = {
    "runtime": "tensorrt", "target": "sm86", "precision": "fp16", "map_clean": None, "note": "no such GPU here"
}  # fmt: skip


class Cells(HTMLParser):
    """Rows of cells as text, and what stands below the table."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.below = ""
        self.in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self.in_cell = self.in_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.in_cell:
            self.rows[-1][-1] = re.sub(r"\s+", " ", f"{self.rows[-1][-1]} {data}").strip()
        else:
            self.below += data


def shown(*engines: object) -> Cells:
    return Cells(str(engine_figures_table({"engines": list(engines)})))


def test_every_figure_has_its_column() -> None:
    found = shown(ALL, FEWER, NOT_RUN)
    assert found.rows == [
        ["Engine", "mAP clean", "mAP PGD, transfer", "mAP PGD, adaptive", "mAP Square", "mAP lowest", "mPC",
         "Latency, median", "p99 clean", "p99 flooded"],
        ["ONNX Runtime int8", "0.700", "0.500", "0.450", "0.420", "0.380 0.310 to 0.440 ensemble adaptive, 60 images",
         "0.330", "1.50 ms p99 1.75 ms", "2.50 ms 12 candidates", "3.00 ms noisy 1.20 × by classes, 6,400 candidates"],
        ["OpenVINO fp32", "0.710", "0.520", "–", "0.400 20 images", "0.400 square, 20 images", "0.300 20 images",
         "–", "–", "–"],
        ["TensorRT fp16, sm86", "not measured here: no such GPU here"],
    ]  # fmt: skip
    for words in ("Adaptive:", "Square:", "Lowest:", "mPC:", "p99 clean and flooded:", "fewer images"):
        assert words in found.below


def test_only_columns_that_have_figures_are_there() -> None:
    found = shown(PLAIN)
    assert found.rows[0] == ["Engine", "mAP clean", "mAP PGD, transfer", "Latency, median"]
    assert found.below == ""
    assert "fewer images" not in shown(ALL).below
    assert engine_figures_table({"engines": []}) is None


def test_a_failed_check_of_an_engine_is_among_the_caveats() -> None:
    (said,) = [line for line in caveats({"engines": [ALL, FEWER]}) if "black-box" in line]
    assert said == "The attacks on model.int8.onnx failed a check, black-box: square leaves 0.42, pgd 0.45."
